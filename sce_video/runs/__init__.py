"""What keeps a run alive: its folder, lock, status, checkpoints, and what happens when it has to stop."""
