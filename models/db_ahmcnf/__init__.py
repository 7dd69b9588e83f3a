"""DB_AHMCN_F: a global and a local flow over a frozen encoder."""
