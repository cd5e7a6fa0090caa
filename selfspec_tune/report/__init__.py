"""What people see: progress while something runs, tables and sentences afterwards.

text        figures as short strings, and the one sentence that matters
bench       a bench result, in any runtime: table, breakdown, checks, warnings
sweep       the same at several values of one thing
search      what a search would do, and its skip.json: skip set, layer map, score, provenance
answer      who drafted what of an answer, and how fast it came
comparison  several searches side by side
export      an exported draft, the lines that start it, and what verifying it showed
plot        results as pictures
models      the alias table
doctor      what the machine can do, and how near the engine comes
progress    lines for logs and pipes, or a display for terminals
"""
