"""Ways to run a model's passes, from obviously right to fast; each proves equal to the first when it is chosen."""
