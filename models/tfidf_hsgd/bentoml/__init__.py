"""What the service of Tfidf_HSGD is made from; written by utils.scaffold."""
