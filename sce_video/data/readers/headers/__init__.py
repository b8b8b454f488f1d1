"""Parsers of the headers of files and packets, without a decoder."""
