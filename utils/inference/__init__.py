"""Trained classifiers at work: from texts to scores, answers and tables of answers."""
