"""The habits of the repository: what CI runs, what the Makefile lists, what the page for contributors draws."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PACKAGE = ROOT / "airflow_provider_agents"
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):.* ## ", MAKEFILE, re.MULTILINE))


def made_in(text):
    return set(re.findall(r"\bmake ([a-z-]+)", text))


def steps_of(workflow):
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job.get("steps", ())]


def test_the_jobs_of_ci_make_what_the_one_script_makes():
    # `make test UNIT=coverage` is the three that stand beside each other in CI.
    script = made_in((ROOT / ".ci/run").read_text()) - {"test"} | {"lint", "coverage", "system"}
    (ci,) = [workflow for workflow in WORKFLOWS if workflow.name == "ci.yml"]
    assert made_in("\n".join(step.get("run", "") for step in steps_of(ci))) == script


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_a_workflow_makes_targets_that_exist_and_pins_each_action_by_its_commit(workflow):
    for step in steps_of(workflow):
        assert made_in(step.get("run", "")) <= TARGETS
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step.get("uses", "a/b@" + 40 * "0"))


def test_each_page_names_only_commands_of_make_that_exist():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)}
    assert named - TARGETS == set()


def test_each_module_has_its_place_in_the_picture_or_the_table_of_the_contributors_page():
    modules = {file.stem for file in PACKAGE.rglob("*.py") if file.stem not in {"__init__", "__main__"}}
    words = set(re.findall(r"\w+", CONTRIBUTING))
    assert modules - words == set()


def test_the_contributors_page_names_only_files_that_exist():
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", CONTRIBUTING))
    there = {str(file.relative_to(ROOT)) for file in ROOT.rglob("*.py") if ".venv" not in file.parts}
    assert {name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in there)} == set()
