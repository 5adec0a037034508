"""Reduced-dimension experts on a shared trunk."""
