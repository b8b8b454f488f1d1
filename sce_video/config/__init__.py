"""Define, document and check the options of all programs."""
