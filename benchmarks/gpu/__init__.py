"""What only CUDA can show, in one command: see ``python -m benchmarks.gpu --help``."""

from .checkout import find_adapters

# Here, so that `pytest -p benchmarks.gpu` finds them too, before it imports a test.
find_adapters()
