"""Recipes of tools/pretrain.py: `recipe=<file name>`."""
