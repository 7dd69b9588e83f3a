"""DB_BHCN_AWX: a branched hierarchical classifier under an AWX layer."""
