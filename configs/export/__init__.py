"""tools/export.py"""
