"""Data modules that build long-tailed splits."""
