"""What the headers of files and packets say, read without a decoder."""
