"""What the service of DB_AC_HMCNN is made from; written by utils.scaffold."""
