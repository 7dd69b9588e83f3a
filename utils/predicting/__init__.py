"""Answering tables of any length: rows in, the same rows with their predictions out."""

RUNTIMES = ("onnx", "torch")
"""What answers: the exported graph, or the checkpoint."""
