"""Benchmarks of tools/benchmark.py: one file per part of the system and sub-command."""
