"""Answering tables of any length: rows in, the same rows with their predictions out."""
