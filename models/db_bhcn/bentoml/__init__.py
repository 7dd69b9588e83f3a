"""What the service of DB_BHCN is made from; written by utils.scaffold."""
