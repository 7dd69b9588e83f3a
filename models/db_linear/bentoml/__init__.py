"""What the service of DB_Linear is made from; written by utils.scaffold."""
