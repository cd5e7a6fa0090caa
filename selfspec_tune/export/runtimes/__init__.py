"""Runtimes of others, driven here: each imports its library when it is asked for."""
