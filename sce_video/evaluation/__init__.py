"""Measure features: views, extraction, kNN and retrieval (metrics.py), search, linear classifiers."""
