"""tools/features.py"""
