"""What people see: progress while something runs, tables and sentences afterwards.

text      figures as short strings
verdict   the one sentence that matters
tables    a bench result: table, breakdown, checks, warnings
config    a skip.json: skip set, layer map, score, provenance
models    the alias table
plan      what a search would do
doctor    what the machine can do, and how near the engine comes
plain     progress as lines, for logs and pipes
live      progress as a display, for terminals
"""
