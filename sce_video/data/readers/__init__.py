"""How each kind of video file is read exactly, one file per library or kind."""
