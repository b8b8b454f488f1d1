"""Rows that do not come from lists of files: data sets of one's own."""
