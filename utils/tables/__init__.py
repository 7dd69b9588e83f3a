"""Tables of users: which files, which format, and their rows as columns or a stream."""
