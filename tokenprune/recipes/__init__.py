"""Whole training runs, each a command: ``python -m tokenprune.recipes.mix665k --help``."""
