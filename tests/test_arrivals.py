"""What `make watcher` and `make cluster-test` count of the runs that reach a DAG: each fault is found, and no other."""

from __future__ import annotations

import json

from arrivals import Reading, judge, load_readings


def test_runs_that_all_arrive_once_are_no_finding():
    found = judge({"a", "b"}, {"one": ("a",), "two": ("b", "other")})
    assert (found.dag_runs, found.returned, found.findings) == (2, 2, [])


def test_a_run_that_no_task_returned_is_lost():
    found = judge({"a", "b"}, {"one": ("a",), "two": ()})
    assert (found.returned, found.findings) == (1, ["LOST BY THE CONSUMER b"])


def test_a_run_of_a_task_that_returned_nothing_is_lost():
    found = judge({"a"}, {"one": None}, [Reading(dag_run="one", runs=("a",))])
    assert found.findings == ["LOST BY THE CONSUMER a"]


def test_a_run_that_two_tasks_returned_is_found():
    found = judge({"a"}, {"one": ("a",), "two": ("a",)})
    assert (found.returned, found.findings) == (1, ["TWICE TO THE CONSUMER a"])


def test_a_retry_that_reads_the_same_runs_is_counted_and_no_finding():
    readings = [Reading(dag_run="one", runs=("a",)), Reading(dag_run="one", runs=("a",))]
    found = judge({"a"}, {"one": ("a",), "two": ()}, [*readings, Reading(dag_run="two", runs=())])
    assert (found.retried, found.findings) == (1, [])


def test_a_retry_that_reads_other_runs_is_found():
    readings = [Reading(dag_run="one", runs=("a", "b")), Reading(dag_run="one", runs=("a",))]
    assert judge({"a"}, {"one": ("a",)}, readings).findings == ["CHANGED one"]


def test_a_task_that_returns_other_runs_than_it_has_read_is_found():
    assert judge({"a"}, {"one": ("a",)}, [Reading(dag_run="one", runs=("b",))]).findings == ["CHANGED one"]


def test_readings_are_loaded_but_not_that_of_a_try_that_was_killed_in_it(tmp_path):
    run_id = "asset_triggered__2026-01-01T00:00:00.5+00:00_x"
    (tmp_path / f"{run_id}.1").write_text('["a", "')
    (tmp_path / f"{run_id}.2").write_text(json.dumps(["a", "b"]))
    (tmp_path / f"{run_id}.3").write_text("")
    assert load_readings(tmp_path) == [Reading(dag_run=run_id, runs=("a", "b"))]
