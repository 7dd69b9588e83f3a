"""From tables and databases to datasets: labels, parents, splits and a report."""
