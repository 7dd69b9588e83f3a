"""DB_BHCN: an encoder with a branched hierarchical classifier."""
