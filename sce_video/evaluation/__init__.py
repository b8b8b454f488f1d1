"""How good features are: views, extraction, nearest neighbours, retrieval, linear classifiers."""
