"""The command line: a table of options, one library call a command, and rendering."""
