"""Keep a run alive: its folder, lock, status and checkpoints, stopping and restarting."""
