"""Exact readers of video frames, one file per library or file format."""
