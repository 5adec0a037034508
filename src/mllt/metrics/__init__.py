"""Metrics of long-tailed recognition."""
