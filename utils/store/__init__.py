"""The model store: what lies in weights/, by tag, with what is known about it."""
