"""What a release is built by: one version, metadata that says where it is from, pinned actions."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import setuptools
import yaml

import tokenprune as tp

from .test_packaging import PROJECT

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github/workflows/release.yml"


def test_citation_says_what_the_metadata_says() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    assert str(cited["version"]) == tp.__version__
    assert "version" not in project  # read from the package
    assert cited["license"] == project["license"]
    assert cited["abstract"] == project["description"]
    assert cited["title"] == project["name"]
    assert [{"name": a["name"]} for a in cited["authors"]] == project["authors"]
    assert f"## {tp.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def given_to_setup(monkeypatch: pytest.MonkeyPatch, **environment: str) -> dict[str, Any]:
    for name in ("GITHUB_REPOSITORY", "GITHUB_SERVER_URL", "GITHUB_REF_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **said: given.update(said))
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_a_release_links_to_the_repository_that_it_is_built_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = given_to_setup(monkeypatch, GITHUB_REPOSITORY="someone/fork", GITHUB_REF_NAME="v1.2")
    home = "https://github.com/someone/fork"
    assert given["project_urls"]["Homepage"] == home
    assert all(url.startswith(home) for url in given["project_urls"].values())
    links = re.findall(r"(!?)\[[^]]*\]\(([^)#]+)", given["long_description"])
    assert links
    for image, link in links:
        assert link.startswith("https://"), link
        if link.startswith(home):
            folder = f"{home}/{'raw' if image else 'blob'}/v1.2/"
            assert link.startswith(folder), link
            assert (ROOT / link.removeprefix(folder)).exists(), link


def test_a_build_elsewhere_links_to_no_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    given = given_to_setup(monkeypatch)
    assert given["project_urls"] == {}
    assert given["long_description"] == (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_workflow_pins_its_actions_and_may_do_little() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    used = re.findall(r"uses: (.+)", text)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {}
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads `on` as true
    allowed = {name: job["permissions"] for name, job in workflow["jobs"].items()}
    read = {"contents": "read"}
    assert allowed == {"test": read, "build": read, "publish": {"id-token": "write"}}
    assert set(workflow["jobs"]["publish"]["needs"]) == {"test", "build"}
    assert "secrets." not in text


def test_the_workflow_runs_what_is_there() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    assert "scripts/release.sh dist" in commands
    script = ROOT / "scripts/release.sh"
    assert script.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", script], check=True)
    targets = re.findall(r"^make ([\w-]+)", "\n".join(commands), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)
