"""Which tests `make check` runs for a changed file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from changed_tests import BY_FOLDER, related_tests

ROOT = Path(__file__).parents[1]
TESTS = {
    "tests/runs/test_tracker.py": "from airflow_provider_agents.runs.tracker import RunTracker",
    "tests/runs/test_joint_worlds.py": "from airflow_provider_agents.runs import joint",
    "tests/test_cli_probe.py": "",
    "tests/polling/test_plan.py": "from driving import Driver",
    "tests/test_operators.py": "from airflow_provider_agents.operators import ExecuteAgentOperator",
}


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        ("airflow_provider_agents/runs/tracker.py", {"tests/runs/test_tracker.py"}),
        ("airflow_provider_agents/cli/probe.py", {"tests/test_cli_probe.py"}),
        ("airflow_provider_agents/runs/joint.py", {"tests/runs/test_joint_worlds.py"}),
        ("tests/support/driving.py", {"tests/polling/test_plan.py"}),
        ("tests/test_operators.py", {"tests/test_operators.py"}),
        ("tests/test_deleted.py", set()),
        ("docs/operator.md", {"tests/test_docs.py"}),
        ("LICENSE", set()),
    ],
)
def test_a_changed_file_has_the_tests_that_are_named_after_it_or_import_it(changed, tests):
    assert related_tests(changed, TESTS) == tests


def test_the_related_tests_what_is_no_module_exist():
    assert [test for tests in BY_FOLDER.values() for test in tests if not (ROOT / test).exists()] == []
    assert [start for start in BY_FOLDER if not (ROOT / start).exists()] == []


def test_outside_of_a_git_repository_the_command_says_so_in_one_sentence(tmp_path):
    (tmp_path / "dev").mkdir()
    for name in ("changed_tests.py", "command.py"):
        shutil.copy(ROOT / "dev" / name, tmp_path / "dev")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_CEILING_DIRECTORIES"] = str(tmp_path.parent)
    command = [sys.executable, str(tmp_path / "dev" / "changed_tests.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith('Git cannot say what was changed ("not a git repository')
    assert done.stderr.endswith("run make unit instead.\n")
    assert done.stderr.count("\n") == 1
