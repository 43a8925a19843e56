"""Side-by-side timings; `python -m recipes.speed --help` lists the topics."""
