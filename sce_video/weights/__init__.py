"""Exchange weights with other programs: load encoders, read weight files, convert key names."""
