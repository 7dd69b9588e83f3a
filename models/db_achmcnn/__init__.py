"""DB_AC_HMCNN: a sigmoid per class, coherent by construction."""
