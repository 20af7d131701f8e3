"""Which rows the table of clears has, and when it fails."""

from __future__ import annotations

import re

import clear_dags
import pytest
from clears import ENDED, ON_WORKER, WAITS, WAYS, Job, Result, Row, RowRunner, main, of_matrix, rows, table_of
from conftest import AIRFLOW, needs_airflow

CLEAR, KEEP, CLEAR_RUN, COMMAND, FAILED, SUCCESS, RETRY = WAYS


def right(row):
    return Result(row, row.wanted, "success")


def test_every_way_is_tried_in_every_phase_and_shape_that_an_airflow_has():
    older, newer = rows("3.3"), rows("3.4")
    assert {row.way for row in older} == set(WAYS) - {KEEP}
    assert {row.way for row in newer} == set(WAYS)
    assert {row.shape for row in older} == {"plain", "mapped"}
    assert {row.shape for row in newer} == {"plain", "mapped", "looped"}
    for way in WAYS:
        # What has ended well is not retried, and cannot be marked as successful.
        ended = set() if way in {RETRY, SUCCESS} else {ENDED}
        assert {row.phase for row in newer if row.way == way} == {WAITS, ON_WORKER, *ended}
    assert len(newer) == len(set(newer))


def test_every_way_names_what_the_bench_does():
    assert [step for way in WAYS for step in way.steps if not callable(getattr(RowRunner, step, None))] == []


@needs_airflow("3.3")
def test_every_row_has_a_dag():
    made = {dag_id for dag_id in vars(clear_dags) if dag_id.startswith("clears_")}
    assert {row.dag_id for row in rows(".".join(map(str, AIRFLOW)))} <= made
    assert {row.shape for row in rows(".".join(map(str, AIRFLOW)))} == set(clear_dags.SHAPES)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_only_a_clear_after_the_end_asks_for_a_second_run(way):
    wanted = {phase: Row(way, phase, "plain").wanted for phase in way.phases}
    assert wanted == {phase: 2 if phase == ENDED else 1 for phase in way.phases}


@pytest.mark.parametrize(
    ("phase", "runs", "ended", "is_right"),
    [
        (WAITS, 1, "success", True),
        (WAITS, 2, "success", False),
        (WAITS, 1, "failed", False),
        (WAITS, 1, "not over", False),
        (ENDED, 2, "success", True),
        (ENDED, 1, "success", False),
        (ENDED, 3, "success", False),
    ],
)
def test_a_row_is_right_if_each_run_was_asked_for_and_the_task_ended_well(phase, runs, ended, is_right):
    assert Result(Row(CLEAR, phase, "plain"), runs, ended).is_right is is_right


def test_the_runs_of_a_mapped_row_are_those_of_its_dearest_task():
    job = Job(Row(CLEAR, WAITS, "mapped"), 7, Result(Row(CLEAR, WAITS, "mapped")))
    assert job.agents == ["clears-7-0", "clears-7-1"]
    job.instances = [{"state": "success"}]
    assert not job.is_complete()


def test_the_table_has_a_line_for_each_way_and_phase_and_marks_what_is_wrong():
    bad = Row(CLEAR, WAITS, "plain")
    results = {
        "3.3.2": [right(row) for row in rows("3.3")],
        "3.4.0": [Result(row, 2, "success") if row == bad else right(row) for row in rows("3.4")],
    }
    lines = table_of(results).splitlines()
    assert len(lines) == 2 + 5 * 3 + 2 * 2
    assert lines[0] == (
        "| what is done | to a task that | 3.3.2, plain | 3.3.2, mapped "
        "| 3.4.0, plain | 3.4.0, mapped | 3.4.0, looped |"
    )
    assert f"| {CLEAR.name} | {WAITS} | 1, success | 1, success | **2, success** | 1, success | 1, success |" in lines
    assert f"| {KEEP.name} | {ENDED} |  |  | 2, success | 2, success | 2, success |" in lines
    assert table_of(results).count("**") == 2


@pytest.mark.parametrize(("runs", "status"), [(1, 0), (2, 1)])
def test_the_command_fails_if_a_row_is_wrong(capsys, runs, status):
    row = Row(CLEAR, WAITS, "plain")
    given = []

    def counted(python, home):
        given.append((python, home.name))
        return python, [Result(row, runs, "success")]

    assert main(["--python", "a", "--python", "b"], counted=counted) == status
    assert given == [("a", "0"), ("b", "1")]
    assert f"2 rows, {2 * status} wrong" in capsys.readouterr().out


def test_the_environments_of_the_matrix_are_taken_and_what_is_missing_is_named(tmp_path):
    for cell in ("3.0-py3.11", "3.3-py3.11", "3.3-py3.12"):
        python = tmp_path / cell / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
    found, missing = of_matrix(tmp_path)
    assert found == [str(tmp_path / "3.3-py3.11" / "venv" / "bin" / "python")]
    assert "3.3" not in missing
    assert of_matrix(tmp_path / "nowhere")[0] == []


def test_without_an_airflow_the_command_says_how_to_make_one(capsys, tmp_path):
    assert main([], folder=tmp_path) == 2
    assert re.search(r"no environment of Airflow 3\.3.*make matrix CELLS=", capsys.readouterr().err)
