"""mllt: mutual learning for long-tailed recognition."""
