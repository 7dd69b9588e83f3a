"""What the service of Tfidf_LSGD is made from; written by utils.scaffold."""
