"""The programs, one per verb of `tools/`: options -> parts -> result. They never import each other."""
