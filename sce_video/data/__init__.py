"""From video files to batches: lists, decoding, clip and crop arithmetic, datasets, the loader, the built-in videos."""
