"""The command line's vocabulary (Hydra groups), installed as the package `mllt.conf`."""
