"""What every part needs: errors, files, paths, configuration, checkpoints, printing."""
