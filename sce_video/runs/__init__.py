"""Keep a run alive: its folder, lock, status and checkpoints; signals and STOP (stop.py)."""
