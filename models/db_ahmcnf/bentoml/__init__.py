"""What the service of DB_AHMCN_F is made from; written by utils.scaffold."""
