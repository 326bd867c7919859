"""What every study uses: files, settings, run folders, progress bars and distributed processes."""
