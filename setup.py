"""Which packages are installed; everything else about the project is in ``pyproject.toml``.

The folder ``adapters/`` stands at the top level of the repository and is installed as
``tokenprune.adapters``: PyPI's ``adapters`` is another project. ``pyproject.toml`` lists packages
or finds them, but does not find them in two places under one name.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["tokenprune", "tokenprune.*"]),
        *(f"tokenprune.{name}" for name in find_packages(include=["adapters", "adapters.*"])),
    ],
)
