"""Recipes and defaults, installed as `sce_video.configs`."""
