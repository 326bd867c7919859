"""What every study stands on: files, settings, a run's folder, progress, processes."""
