"""Training runs: start, resume, finish; report, metrics files, TensorBoard events."""
