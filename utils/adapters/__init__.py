"""From a table of texts and labels to an intermediate dataset."""
