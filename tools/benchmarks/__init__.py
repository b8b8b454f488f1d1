"""Measurements printed by tools/benchmark.py: one file per part of the system, each a sub-command."""
