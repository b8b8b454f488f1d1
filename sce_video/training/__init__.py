"""Train any method: the loop, the set-up, the optimiser, the log, evaluation while training."""
