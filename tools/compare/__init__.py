"""Pretrain with several methods or values of options, evaluate each run, and put the scores side by side."""
