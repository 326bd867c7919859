"""What needs a GPU: checks against the CPU, speeds, and a campaign of trainings. See README.md."""
