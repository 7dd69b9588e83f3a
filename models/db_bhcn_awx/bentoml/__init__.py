"""What the service of DB_BHCN_AWX is made from; written by utils.scaffold."""
