"""Work on many files that may be split into shards, killed and continued."""
