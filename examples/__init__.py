"""Short programs that use the library: run one with ``python -m examples.NAME``."""
