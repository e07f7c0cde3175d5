"""One module per kind of source; each reads it as a whole and hands over frames (see `etl.frames`)."""
