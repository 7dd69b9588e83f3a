"""Text encoders, the training loop, several processes, and the exported graphs."""
