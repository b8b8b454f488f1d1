"""Published lists and folders of videos: read their entries, find the files, write the summary."""
