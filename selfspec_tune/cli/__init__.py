"""The command line: typed signatures, one library call each, and rendering."""
