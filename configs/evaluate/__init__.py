"""tools/evaluate.py"""
