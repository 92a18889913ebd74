"""What ``pyproject.toml`` cannot say: which packages are installed, and where the project lives.

The folder ``adapters/`` stands at the top level of the repository and is installed as
``tokenprune.adapters``: PyPI's ``adapters`` is another project. ``pyproject.toml`` lists packages
or finds them, but does not find them in two places under one name.

A release is built in the repository that it belongs to: the workflow's environment names it, and
the metadata gets its links. Elsewhere it has none, and the readme's links stay relative.
"""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
urls = {}
if repository := os.environ.get("GITHUB_REPOSITORY"):
    home = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{repository}"
    tag = os.environ.get("GITHUB_REF_NAME", "main")
    urls = {
        "Homepage": home,
        "Documentation": f"{home}/blob/{tag}/docs/guide.md",
        "Changelog": f"{home}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{home}/issues",
    }
    # A package index shows the readme without the files beside it.
    readme = re.sub(r"(!\[[^]]*\]\()(?!https?:|#)", rf"\1{home}/raw/{tag}/", readme)
    readme = re.sub(r"(\]\()(?!https?:|#)", rf"\1{home}/blob/{tag}/", readme)

setup(
    packages=[
        *find_packages(include=["tokenprune", "tokenprune.*"]),
        *(f"tokenprune.{name}" for name in find_packages(include=["adapters", "adapters.*"])),
    ],
    long_description=readme,
    long_description_content_type="text/markdown",
    project_urls=urls,
)
