"""The HTTP service of a bundle: requests, routes, metrics, log and monitoring client."""
