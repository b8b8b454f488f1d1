"""Measure how good features are: views, extraction, nearest neighbours, retrieval, linear classifiers."""
