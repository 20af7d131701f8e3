"""Which cells the matrix has, and what it makes of what it reads."""

from __future__ import annotations

import re
import sys

import pytest
from matrix import (
    Cell,
    Result,
    StepError,
    airflows,
    chosen_cells,
    coming_airflows,
    counts,
    default_cells,
    do,
    find_pythons,
    is_pre_release,
    pythons,
    status_of_cells,
    table_of,
)
from pins import lines_of

JUNIT = (
    '<?xml version="1.0"?><testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10" '
    'time="1.5"></testsuite></testsuites>'
)


def test_every_airflow_and_every_python_that_is_supported_is_in_some_cell():
    cells = default_cells()
    assert {cell.airflow for cell in cells} == {*airflows(), *coming_airflows()}
    assert {cell.python for cell in cells} == set(pythons())
    assert Cell(airflows()[0], pythons()[0]) in cells
    assert Cell(airflows()[-1], pythons()[-1]) in cells
    assert len(cells) == len(set(cells))


def test_lowest_and_newest_stand_for_the_ends_of_what_this_machine_has():
    assert [cell.name for cell in chosen_cells(["lowest", "newest"], ["3.11", "3.13"])] == ["3.0-py3.11", "3.3-py3.13"]
    assert [cell.name for cell in chosen_cells(["lowest", "newest"], ["3.13"])] == ["3.1-py3.13", "3.3-py3.13"]
    assert chosen_cells(["newest", "3.3-py3.12"], ["3.12"]) == [Cell("3.3", "3.12")]


def test_between_stands_for_each_airflow_but_the_ends_on_the_oldest_python_here():
    assert [cell.name for cell in chosen_cells(["between"], ["3.11", "3.13"])] == ["3.1-py3.11", "3.2-py3.11"]


@pytest.mark.parametrize("name", ["3.0-py3.13", "2.11-py3.11", "nonsense"])
def test_a_cell_that_is_not_there_is_refused_with_those_that_are(name):
    with pytest.raises(
        ValueError, match=rf"no cell '{re.escape(name)}': there are lowest, between, newest, next, 3\.0-py3\.11"
    ):
        chosen_cells([name], ["3.11"])


@pytest.fixture
def pins(tmp_path, monkeypatch):
    """A folder of pins with a method that writes one file."""

    def pin(minor, version):
        (tmp_path / f"airflow-{minor}.txt").write_text(f"anyio==4.0\napache-airflow-core=={version}\n")

    monkeypatch.setattr("matrix.PINS", tmp_path)
    pin("3.3", "3.3.2")
    return pin


def test_next_is_the_pre_release_until_its_release_makes_it_the_newest(pins):
    pins("3.4", "3.4.0b2")
    assert chosen_cells(["newest", "next"], ["3.11", "3.13"]) == [Cell("3.3", "3.13"), Cell("3.4", "3.13")]
    assert chosen_cells(["3.4-py3.12"], ["3.12"]) == [Cell("3.4", "3.12")]
    assert (airflows(), coming_airflows()) == (["3.3"], ["3.4"])
    pins("3.4", "3.4.0")
    assert chosen_cells(["newest", "next"], ["3.11", "3.13"]) == [Cell("3.4", "3.13")]
    assert (airflows(), coming_airflows()) == (["3.3", "3.4"], [])


def test_a_fault_with_a_pre_release_is_shown_and_fails_nothing(pins, capsys):
    pins("3.4", "3.4.0rc1")
    broken = Result(Cell("3.4", "3.13"), faults=["tests ended with status 1. The end:\nlong"])
    assert status_of_cells([Result(Cell("3.3", "3.13")), broken]) == 0
    said = "3.4-py3.13: tests ended with status 1. The end: (counts from the release on: 3.4.0rc1 is a pre-release)\n"
    assert capsys.readouterr().err == said
    assert status_of_cells([Result(Cell("3.3", "3.13"), faults=["x"]), broken]) == 1
    pins("3.4", "3.4.0")
    assert status_of_cells([broken]) == 1


@pytest.mark.parametrize("version", ["3.4.0b2", "3.4.0rc1", "3.4.0a1", "3.4.0.dev0"])
def test_a_version_with_letters_is_a_pre_release(version):
    assert is_pre_release(version)
    assert not is_pre_release("3.4.0")


@pytest.mark.parametrize("airflow", [*airflows(), *coming_airflows()])
def test_the_pins_of_an_airflow_name_it_and_nothing_but_versions(airflow):
    cell = Cell(airflow, pythons()[0])
    lines = cell.pins.read_text().splitlines()
    assert cell.version.startswith(f"{airflow}.")
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w-]+==[\w.]+( ; python_version .+)?", line)] == []


def test_an_interpreter_that_is_named_comes_before_those_on_the_path(capsys):
    found = find_pythons([sys.executable, "/nowhere/python3.12"])
    assert found[".".join(map(str, sys.version_info[:2]))] == sys.executable
    assert "/nowhere/python3.12 does not run" in capsys.readouterr().err


def test_tests_that_failed_and_tests_that_broke_are_failures():
    assert counts(JUNIT) == (4, 3, 3)


def test_the_table_names_what_failed_and_what_was_not_run():
    good = Result(Cell("3.3", "3.11"), "3.3.2", "3.11.7", passed=10, skipped=2, examples="9 of 9", seconds=61.4)
    broken = Result(Cell("3.0", "3.11"), "3.0.6", "3.11.7", passed=9, failed=1, examples="failed", faults=["x"])
    uninstalled = Result(Cell("3.1", "3.11"), faults=["no such version"])
    rows = table_of([good, broken, uninstalled], [Cell("3.3", "3.12")]).splitlines()[2:]
    assert rows[0] == "| 3.3-py3.11 | 3.3.2 | 3.11.7 | 10 | 2 | 9 of 9 | 61 |"
    assert "9, 1 failed" in rows[1]
    assert "| failed |" in rows[2]
    assert "not run: no python3.12 was found" in rows[3]


def test_a_step_that_fails_shows_the_end_of_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr("matrix.ROOT", tmp_path)
    log = tmp_path / "step.log"
    script = "print('the reason'); raise SystemExit(3)"
    with pytest.raises(StepError, match=r"(?s)a step ended with status 3\. The end of step\.log:.*the reason"):
        do("a step", [sys.executable, "-c", script], log, 60, {})


def test_a_step_that_hangs_is_ended_and_said_to_have_hung(tmp_path, monkeypatch):
    monkeypatch.setattr("matrix.ROOT", tmp_path)
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    with pytest.raises(StepError, match=r"was not over after 0\.5 seconds"):
        do("a step", command, tmp_path / "step.log", 0.5, {})


def test_a_pin_that_differs_between_pythons_has_a_marker():
    pins = {
        "3.11": {"both": "1.0", "old": "1.3", "moved": "1.0"},
        "3.12": {"both": "1.0", "moved": "2.0"},
        "3.13": {"both": "1.0", "moved": "2.0"},
    }
    assert lines_of(pins) == [
        "both==1.0",
        "moved==1.0 ; python_version == '3.11'",
        "moved==2.0 ; python_version == '3.12' or python_version == '3.13'",
        "old==1.3 ; python_version == '3.11'",
    ]
