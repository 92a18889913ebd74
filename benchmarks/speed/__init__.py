"""How fast, against the best possible: see ``python -m benchmarks.speed --help``."""
