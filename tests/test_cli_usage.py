"""`airflow agents usage`, over real HTTP."""

from __future__ import annotations

import json

import pytest
import yaml
from test_cli import columns


@pytest.fixture
def history(platform):
    """Two agents with runs of an hour apart; the last ones are still active."""
    platform.sim.add_agent("agent-2", end_status="FAILED")
    platform.sim.add_history("agent-2", 2, every=3600 * 12, run_seconds=90, end_status="FAILED")
    platform.sim.start_scheduled_run("agent-1")
    platform.advance(3)
    return platform


def test_the_usage_of_the_account_is_one_row(history, command):
    ended = command("usage")
    assert (ended.code, ended.err) == (0, "")
    assert columns(ended) == [
        ["runs", "completed", "failed", "active", "browser", "steps", "mean", "longest"],
        ["6", "3", "2", "1", "6m 2s", str(command("usage", "--output", "json").found[0]["browser_steps"]), "1m 12s",
         "1m 30s"],
    ]  # fmt: skip


def test_a_row_for_each_agent_comes_with_a_total(history, command):
    head, *rows = columns(command("usage", "--by", "agent"))
    assert head[:5] == ["agent", "runs", "completed", "failed", "active"]
    assert [row[:5] for row in rows] == [
        ["agent-1", "4", "3", "0", "1"],
        ["agent-2", "2", "0", "2", "0"],
        ["total", "6", "3", "2", "1"],
    ]


def test_a_row_for_each_day_or_model_of_one_agent(history, command):
    days = columns(command("usage", "agent-2", "--by", "day"))
    assert [row[:2] for row in days] == [["day (UTC)", "runs"], ["2025-12-31", "2"], ["total", "2"]]
    models = columns(command("usage", "--by", "model"))
    assert [row[:2] for row in models[1:]] == [["-", "1"], ["claude-3-7-sonnet", "5"], ["total", "6"]]


def test_only_the_runs_since_a_moment_are_counted(history, command):
    assert command("usage", "--since", "90m", "--output", "json").found[0]["runs"] == 2


def test_for_scripts_the_groups_have_no_total(history, command):
    ended = command("usage", "--by", "agent", "--output", "json")
    assert [(one["agent"], one["runs"], one["browser_seconds"]) for one in ended.found] == [
        ("agent-1", 4, 182.0),
        ("agent-2", 2, 180.0),
    ]
    assert yaml.safe_load(command("usage", "--by", "agent", "--output", "yaml").out) == json.loads(ended.out)


def test_rows_that_cannot_be_read_have_a_column_if_there_are_any(history, command):
    assert "unreadable" not in command("usage").out
    history.sim.add_row("agent-1", {"status": None})
    head, row = columns(command("usage"))
    assert dict(zip(head, row, strict=True))["unreadable"] == "1"


def test_no_runs_is_no_failure(history, command):
    history.advance(86400)
    ended = command("usage", "--since", "1m")
    assert (ended.code, ended.out, ended.err) == (0, "", "No runs since 2026-01-02 08:59:03 UTC.\n")
    assert command("usage", "--since", "1m", "--output", "json").found[0]["runs"] == 0


def test_an_agent_that_there_is_not_is_one_line_and_code_1(history, command):
    ended = command("usage", "agent-3")
    assert (ended.code, ended.out) == (1, "")
    assert "agent-3" in ended.err
