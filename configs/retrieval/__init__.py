"""tools/retrieval.py"""
