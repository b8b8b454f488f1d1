"""What every method shares: the loop, the optimiser, the log, evaluation while training."""
