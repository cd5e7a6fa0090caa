"""Other runtimes, driven from here: what an export is verified and measured in."""
