"""DB_Linear: an encoder with one softmax over the terminal classes."""
