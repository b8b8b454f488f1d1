"""Video files to batches: lists, decoding, clip and crop arithmetic, data sets, the loader, the built-in videos."""
