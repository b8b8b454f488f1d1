"""Video files: probe them, examine their health, write smaller copies."""
