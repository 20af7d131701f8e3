"""The commands, over real HTTP: what they print and where, and with which code they end."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pty
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import AIRFLOW, KEY, change, connection, needs_airflow
from ctrl_c import interrupt_in_pause, interrupt_when
from sqlalchemy import create_engine, select
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool, StaticPool

from airflow_provider_agents.api.models import schedule_in_words
from airflow_provider_agents.runs.copies import RecordCopy, TaskPlace
from airflow_provider_agents.runs.record import Attempt, Phase, RunRecord
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.simulator import Fault, Simulator, running_server

STRANGE = "[red]Prices[/red] :bug: \x1b[31m\u202ecaf\u00e9"


def columns(ended):
    """The cells of a table, its head first."""
    return [[cell.strip() for cell in line.split("|")] for line in ended.out.splitlines() if "|" in line]


def all_of(terminal):
    """All that was written to a terminal whose other end is closed. One read may return only a part of it."""
    parts = []
    with contextlib.suppress(OSError):  # EIO: the end
        while part := os.read(terminal, 65536):
            parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()


# --- list -----------------------------------------------------------------------------------------------------------


def test_the_list_names_agents_and_their_schedules_in_words(platform, command):
    platform.sim.add_agent("agent-2", name="Daily prices", status="PAUSED", schedule_every=86400, schedule_offset=900)
    ended = command("list")
    assert ended.code == 0
    assert ended.err == ""
    head, *rows = columns(ended)
    assert head == ["id", "name", "status", "schedule"]
    assert rows == [
        ["agent-2", "Daily prices", "PAUSED", "once a day at 09:00"],
        ["agent-1", "agent-1", "ACTIVE", "-"],
    ]


def test_the_list_goes_over_all_pages(platform, command):
    for number in range(2, 8):
        platform.sim.add_agent(f"agent-{number}")
    change(platform, page_rows=2, empty_pages=1)
    found = command("list", "--output", "json").found
    assert [agent["id"] for agent in found] == [f"agent-{number}" for number in range(7, 0, -1)]


def test_for_scripts_the_list_is_as_the_api_sends_it(platform, command):
    platform.sim.add_agent("agent-2", schedule_every=86400, schedule_offset=900)
    ended = command("list", "--output", "json")
    assert ended.found[0]["schedule"] == '{"tasksPerDay": 1, "times": ["09:00"]}'
    assert set(ended.found[0]) == {"id", "name", "baseUrl", "status", "schedule", "createdAt", "updatedAt"}
    assert yaml.safe_load(command("list", "--output", "yaml").out) == ended.found


def test_plain_output_has_its_columns_one_above_the_other(platform, command):
    platform.sim.add_agent("1e5", name="\u4fa1\u683c")
    assert command("list", "--output", "plain").out.splitlines() == [
        "id       name     status  schedule",
        "1e5      \u4fa1\u683c     ACTIVE  -",
        "agent-1  agent-1  ACTIVE  -",
    ]


def test_an_account_without_agents_is_said_apart_from_the_output(platform, command):
    platform.sim.remove_agent("agent-1")
    ended = command("list")
    assert (ended.code, ended.out, ended.err) == (0, "", "The account has no agents.\n")
    assert command("list", "--output", "json").found == []


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ('{"tasksPerDay":1,"times":["09:00"]}', "once a day at 09:00"),
        ('{"tasksPerDay":3,"times":["09:00","12:00","18:00"]}', "3 times a day at 09:00, 12:00, 18:00"),
        ('{"tasksPerDay":2}', "2 times a day"),
        ('{"tasksPerDay":2,"times":[9]}', "2 times a day"),
        ('{"cron":"0 9 * * *"}', '{"cron":"0 9 * * *"}'),
        ("every full moon", "every full moon"),
        ("[" * 100_000, "[" * 100_000),
        ("null", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_a_schedule_is_put_into_words_or_shown_as_it_is(schedule, words):
    assert schedule_in_words(schedule) == words


def test_strange_names_are_shown_as_they_are_and_cannot_move_the_terminal(platform, command):
    platform.sim.add_agent("agent-2", name=STRANGE)
    for output in ("table", "plain"):
        shown = command("list", "--output", output).out
        assert "[red]Prices[/red] :bug: [31m caf\u00e9" in shown
        assert all(letter.isprintable() for letter in shown.replace("\n", ""))
    for output, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        shown = command("list", "--output", output).out
        assert read(shown)[0]["name"] == STRANGE
        assert shown.replace("\n", "").isascii()
        assert shown.replace("\n", "").isprintable()


def test_a_terminal_that_lacks_a_letter_is_shown_its_code(platform, command, monkeypatch):
    platform.sim.add_agent("agent-2", name="caf\u00e9")
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert command("list").code == 0
    assert b"caf\\xe9" in shown.buffer.getvalue()


def test_a_reader_that_has_enough_is_no_failure(platform, command, monkeypatch):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        ended = command("list", "--output", "json")
    assert (ended.code, ended.err) == (0, "")


# --- runs -----------------------------------------------------------------------------------------------------------


def test_the_runs_are_listed_newest_first(platform, command):
    platform.sim.add_agent("agent-1", end_status="FAILED", error="the shop [bold]answers[/bold]\x1b[2J 503")
    newest = platform.sim.start_scheduled_run("agent-1")
    platform.advance(66)
    ended = command("runs", "agent-1")
    assert ended.code == 0
    assert ended.err == ""
    head, *rows = columns(ended)
    assert head == ["event", "status", "created (UTC)", "took", "error"]
    assert rows[0] == [
        newest,
        "FAILED",
        "2026-01-01 09:00:00",
        "5s",
        "the shop [bold]answers[/bold] [2J 503",
    ]
    assert [row[1:4] for row in rows[1:]] == [["COMPLETED", f"2026-01-01 0{hour}:00:00", "1m"] for hour in (8, 7, 6)]


def test_the_column_for_errors_is_there_only_if_there_are_any(platform, command):
    assert "error" not in command("runs", "agent-1").out


def test_for_scripts_the_runs_are_as_the_api_sends_them(platform, command):
    change(platform, extra_event_fields={"cost": 0.25})
    found = command("runs", "agent-1", "--output", "json").found
    assert found[0]["startedAt"] == "2026-01-01T08:00:00.000Z"
    assert found[0]["browserStepCount"] == 31
    assert found[0]["cost"] == 0.25


@pytest.mark.parametrize("rows", [None, 2])
def test_a_limit_is_kept_over_pages(platform, command, rows):
    platform.sim.add_history("agent-1", 8, every=7200)
    change(platform, page_rows=rows)
    everything = command("runs", "agent-1", "--output", "json").found
    some = command("runs", "agent-1", "--limit", "5", "--output", "json").found
    assert len(everything) == 11
    assert some == everything[:5]


def test_a_status_may_be_written_in_small_letters(platform, command):
    platform.sim.add_agent("agent-1", end_status="FAILED")
    failed = platform.sim.start_scheduled_run("agent-1")
    platform.advance(60)
    found = command("runs", "agent-1", "--status", "failed", "--output", "json").found
    assert [event["id"] for event in found] == [failed]


@pytest.mark.parametrize(
    "since", ["2026-01-01T06:30:00Z", "2026-01-01T07:30+01:00", "2026-01-01 06:30", "150m", "2.5h"]
)
def test_runs_since_a_moment_or_for_so_long(platform, command, since):
    found = command("runs", "agent-1", "--since", since, "--output", "json").found
    assert [event["createdAt"][11:16] for event in found] == ["08:00", "07:00"]


@pytest.mark.parametrize("limit", ["2", "20"])
def test_runs_that_wait_to_begin_are_listed_wherever_the_platform_sorts_them(platform, command, limit):
    change(platform, sort_by="startedAt", nulls="last", queue_seconds=3600.0)
    waiting = platform.sim.start_scheduled_run("agent-1")
    platform.advance(60)
    found = command("runs", "agent-1", "--since", "2h", "--limit", limit, "--output", "json").found
    assert [event["status"] for event in found] == ["PENDING", "COMPLETED"]
    assert found[0]["id"] == waiting


def test_a_long_history_is_not_read_beyond_the_moment_asked_for(platform, command):
    platform.sim.add_history("agent-1", 1000, every=3600)
    before = platform.sim.count()
    command("runs", "agent-1", "--since", "3h", "--limit", "200")
    assert platform.sim.count() - before == 2


def test_no_runs_is_no_failure(platform, command):
    ended = command("runs", "agent-1", "--since", "60s")
    assert (ended.code, ended.out, ended.err) == (0, "", "No such runs.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs",),
        ("runs", "agent-1", "--since", "yesterday"),
        ("runs", "agent-1", "--since", "\x1b[31m"),
        ("runs", "agent-1", "--since", "0001-01-01T00:00:00+23:00"),
        ("runs", "agent-1", "--since", "999999999d"),
        ("runs", "agent-1", "--since", "2026-01-01T10:00:00"),
        ("runs", "agent-1", "--since", "9999-12-31T23:59:59-23:00"),
        ("runs", "agent-1", "--status", "DONE"),
        ("runs", "agent-1", "--status", ""),
        ("runs", "agent-1", "--status", "\x1b[31m"),
        ("run", "agent-1", "--timeout", "1h"),
        ("run", "agent-1", "--poll-interval", "5s"),
        ("run", "agent-1", "--timeout", "24h", "--poll-interval", "5s"),
        ("runs", "agent-1", "--limit", "0"),
        ("run", "agent-1", "--wait", "--timeout", "0"),
        ("run", "agent-1", "--wait", "--poll-interval", "nan"),
        ("list", "--output", "xml"),
        ("forget", "--older-than", "soon"),
        ("forget", "--older-than", "0"),
        ("forget", "--older-than"),
        ("forget", "agent-1"),
        ("forget", "--conn-id", "agents_default"),
        (),
    ],
)
def test_arguments_that_are_none_are_refused_before_anything_is_asked(platform, command, arguments):
    ended = command(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.replace("\n", "").isprintable()
    assert platform.sim.count() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("runs", "agent-1", "--status", "done"), "(PENDING, RUNNING, COMPLETED, FAILED); leave --status out"),
        (("runs", "agent-1", "--since", "2099-01-01"), "is in the future, so no run can match"),
        (("run", "agent-1", "--timeout", "1h"), "--timeout is for a wait, and this command would not wait. Add --wait"),
        (
            ("run", "agent-1", "--poll-interval", "1m"),
            "--poll-interval is for a wait, and this command would not wait.",
        ),
    ],
)
def test_an_option_that_could_have_no_effect_is_refused_with_what_to_do(platform, command, arguments, words):
    ended = command(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert words in " ".join(ended.err.split())
    assert platform.sim.count() == 0


@pytest.mark.parametrize("status", ["PENDING", "running", "Completed", "FAILED"])
def test_every_documented_status_is_taken(platform, command, status):
    assert command("runs", "agent-1", "--status", status, "--output", "json").code == 0


def test_a_moment_of_a_server_whose_clock_is_ahead_is_taken(platform, command):
    assert command("runs", "agent-1", "--since", "2026-01-01T09:20:00Z").code == 0


# --- run ------------------------------------------------------------------------------------------------------------


def test_a_run_is_started_and_its_request_named(platform, command):
    ended = command("run", "agent-1", "--output", "json")
    (started,) = platform.sim.executions
    assert ended.code == 0
    assert ended.found == [
        {"agentId": "agent-1", "requestId": started.request_id, "outcome": "submitted", "events": []}
    ]
    assert ended.err == (
        f"The run was accepted. agent=agent-1 request_id={started.request_id}\n"
        "It cannot be cancelled. Look at it with: "
        "python -m airflow_provider_agents runs agent-1 --since 2026-01-01T08:59:55Z\n"
    )
    shown = columns(command("run", "agent-1"))
    assert shown == [["agent", "requestId", "outcome"], ["agent-1", platform.sim.executions[1].request_id, "submitted"]]


def test_a_run_that_is_waited_for_is_shown_as_it_ended(platform, command):
    ended = command("run", "agent-1", "--wait", "--output", "json")
    (started,) = platform.sim.executions
    assert ended.code == 0
    (found,) = ended.found
    assert found["outcome"] == "completed"
    assert [event["id"] for event in found["events"]] == [started.event_id]
    lines = ended.err.splitlines()
    assert lines[0] == f"The run was accepted. agent=agent-1 request_id={started.request_id}"
    assert any("COMPLETED" in line and line.endswith(f"event={started.event_id}") for line in lines[1:])


def test_the_run_before_is_never_taken_for_the_one_that_was_started(platform, command):
    platform.sim.add_agent("agent-1", end_status="FAILED")
    change(platform, record_lag=20.0)
    ended = command("run", "agent-1", "--wait")
    assert ended.code == 3
    assert platform.executions()[0] in ended.out


@pytest.mark.parametrize(
    ("agent", "knobs", "arguments", "code", "words"),
    [
        ({"end_status": "FAILED"}, {}, [], 3, "It is the only run that fits"),
        ({"run_seconds": 9e4}, {}, ["--timeout", "10m"], 4, "not finished at the deadline"),
        (
            {"run_seconds": 9e4},
            {},
            ["--timeout", "1h", "--poll-interval", "90"],
            4,
            "cannot be cancelled and is still running",
        ),
        ({}, {"record_lag": 9e4}, [], 6, "no event of it has appeared"),
        ({}, {"record_lag": 9e4}, ["--timeout", "5s"], 4, "no event of it had appeared"),
    ],
)
def test_the_code_says_how_a_run_ended(platform, command, agent, knobs, arguments, code, words):
    platform.sim.add_agent("agent-1", **agent)
    change(platform, **knobs)
    ended = command("run", "agent-1", "--wait", "--output", "json", *arguments)
    assert ended.code == code
    assert words in ended.err
    assert "Look at the agent's runs with: python -m airflow_provider_agents runs agent-1 --since" in ended.err
    assert ended.found[0]["requestId"] == platform.sim.executions[0].request_id
    assert len(platform.executions()) == 1


@pytest.mark.parametrize(
    ("statuses", "code"), [(["COMPLETED", "FAILED"], 5), (["COMPLETED"] * 2, 0), (["FAILED"] * 2, 3)]
)
def test_runs_that_cannot_be_told_apart_are_all_shown(platform, command, statuses, code):
    ends = iter(statuses)
    platform.sim.add_agent("agent-1", end_status=lambda _: next(ends))

    class Executions(list):
        def append(self, execution):
            super().append(execution)
            # The platform starts one by itself in the same second.
            platform.sim.start_scheduled_run("agent-1")

    platform.sim.executions = Executions()
    ended = command("run", "agent-1", "--wait", "--output", "json")
    assert ended.code == code
    assert [event["status"] for event in ended.found[0]["events"]] == statuses


def test_a_run_that_appears_late_is_shown_with_one_warning(platform, command):
    lags = iter([10_000_000.0])
    change(platform, record_lag=lambda rng: next(lags, 0.0))

    class Executions(list):
        def append(self, execution):
            super().append(execution)
            theirs.append(platform.sim.start_scheduled_run("agent-1", after=100))

    platform.sim.executions, theirs = Executions(), []
    ended = command("run", "agent-1", "--wait", "--output", "json")
    assert ended.code == 0
    assert ended.err.count("No event of this run appeared within 30 seconds") == 1
    assert [event["id"] for event in ended.found[0]["events"]] == theirs


def test_a_lost_answer_is_looked_for_and_not_asked_for_again(platform, command):
    platform.sim.faults.append(Fault(kind="reset_after", method="POST"))
    ended = command("run", "agent-1", "--wait", "--output", "json")
    assert ended.code == 0
    assert "A run may have started" in ended.err
    assert ended.found[0]["requestId"] is None
    assert [event["id"] for event in ended.found[0]["events"]] == platform.executions()
    assert platform.sim.count("POST") == 1


@pytest.mark.parametrize(
    ("faults", "code", "words"),
    [
        ([Fault(kind="status", status=429, method="POST", times=None)], 1, "Nothing was started."),
        ([Fault(kind="status", status=401, method="POST")], 1, "Nothing was started."),
        ([Fault(kind="status", status=401, method="GET", times=None)], 1, "Nothing was started."),
        # Each of these was looked for, and no run has appeared.
        ([Fault(kind="reset_before", method="POST", times=None)], 1, "Nothing was started."),
        (
            [Fault(kind="reset_before", method="POST"), Fault(kind="status", status=403, method="POST")],
            1,
            "Nothing was started.",
        ),
        (
            [Fault(kind="reset_before", method="POST"), Fault(kind="status", status=403, method="GET", skip=2)],
            6,
            "It is not known whether a run was started.",
        ),
        ([Fault(kind="status", status=501, method="POST")], 6, "It is not known whether a run was started."),
        *(
            ([Fault(kind="status", status=status, method="POST")], 1, "Nothing was started.")
            for status in (300, 307, 400, 402, 405, 409, 410, 422, 423, 499)
        ),
    ],
)
def test_a_run_that_could_not_be_started_says_whether_it_may_have(platform, command, faults, code, words):
    platform.sim.faults.extend(faults)
    ended = command("run", "agent-1", "--wait")
    assert ended.code == code
    assert ended.out == ""
    assert ended.err.splitlines()[-1].startswith(words)
    assert platform.executions() == []


def test_a_key_that_is_revoked_meanwhile_leaves_a_run_that_goes_on(platform, command):
    platform.sim.faults.append(Fault(kind="status", status=401, method="GET", skip=4, times=None))
    ended = command("run", "agent-1", "--wait")
    assert ended.code == 4
    (started,) = platform.sim.executions
    assert f"request_id={started.request_id}" in ended.err.splitlines()[-1]


def test_a_blip_ends_no_wait(platform, command):
    platform.sim.faults.append(Fault(kind="status", status=503, method="GET", skip=3, times=12))
    ended = command("run", "agent-1", "--wait")
    assert ended.code == 0
    assert "503: " in ended.err


def test_ctrl_c_while_waiting_says_that_the_run_goes_on_and_how_to_look(platform, command, monkeypatch):
    platform.sim.add_agent("agent-1", run_seconds=600)
    interrupt_in_pause(platform, monkeypatch)
    ended = command("run", "agent-1", "--wait")
    assert ended.code == 130
    assert ended.out == ""
    (started,) = platform.sim.executions
    assert ended.err.endswith(
        "Interrupted.\nThe run is still running, and cannot be cancelled. "
        f"agent=agent-1 request_id={started.request_id}. "
        "Look at it with: python -m airflow_provider_agents runs agent-1 --since 2026-01-01T08:59:55Z\n"
    )
    assert platform.sim.count("POST") == 1


def test_ctrl_c_around_the_request_says_that_a_run_may_have_been_started(platform, command):
    platform.sim.faults.append(Fault(kind="hang_after", method="POST"))
    pressed = interrupt_when(lambda: platform.sim.executions)
    ended = command("run", "agent-1", "--wait")
    pressed.join()
    assert ended.code == 130
    assert "It is not known whether a run was started. Before you start another, look with:" in ended.err
    assert len(platform.executions()) == 1


def test_ctrl_c_before_the_request_says_that_nothing_was_started(platform, command):
    platform.sim.faults.append(Fault(kind="hang_before", method="GET"))
    pressed = interrupt_when(lambda: not platform.sim.faults)
    ended = command("run", "agent-1")
    pressed.join()
    assert ended.code == 130
    assert ended.err == "Interrupted.\nNothing was started.\n"


def test_ctrl_c_ends_any_command_without_a_traceback(platform, command):
    platform.sim.faults.append(Fault(kind="hang_before", method="GET"))
    pressed = interrupt_when(lambda: not platform.sim.faults)
    ended = command("list")
    pressed.join()
    assert (ended.code, ended.out, ended.err) == (130, "", "Interrupted.\n")


def test_the_hint_to_look_fits_a_shell_and_the_connection(platform, command, monkeypatch):
    platform.sim.add_agent("it's mine")
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", connection(platform.url))
    ended = command("run", "it's mine", "--conn-id", "other")
    assert ended.code == 0
    assert """runs 'it'"'"'s mine' --since 2026-01-01T08:59:55Z --conn-id other""" in ended.err


def test_on_a_terminal_a_clock_runs_below_the_changes(platform, command, monkeypatch):
    terminal, there = pty.openpty()
    with os.fdopen(there, "w") as standard_error:
        monkeypatch.setattr(sys, "stderr", standard_error)
        monkeypatch.setenv("TERM", "xterm")
        ended = command("run", "agent-1", "--wait", "--output", "json")
    shown = all_of(terminal)
    assert ended.code == 0
    assert ended.found[0]["outcome"] == "completed"
    assert "waiting; Ctrl-C ends the waiting, not the run" in shown
    assert f"event={platform.executions()[0]}" in shown.replace("\r\n", "")


@pytest.mark.parametrize("skew", [-1800.0, 1800.0])
def test_the_hint_to_look_finds_the_run_whatever_the_servers_clock(platform, command, skew):
    change(platform, clock_skew=skew, queue_seconds=3600.0)
    hint = command("run", "agent-1").err.rpartition("airflow_provider_agents ")[2]
    found = command(*hint.split(), "--output", "json").found
    assert [event["id"] for event in found] == platform.executions()


def test_log_lines_do_not_come_between_what_a_script_reads(platform, command, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stdout)])
    monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
    ended = command("list", "--output", "json")
    assert [agent["id"] for agent in ended.found] == ["agent-1"]


@needs_airflow("3.1")  # before, they always are
def test_connections_are_looked_for_in_airflows_database_too(platform, command, monkeypatch):
    from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded

    monkeypatch.delenv("_AIRFLOW_PROCESS_CONTEXT")
    command("list")
    assert "MetastoreBackend" in {type(backend).__name__ for backend in ensure_secrets_backend_loaded()}


# --- what goes wrong ------------------------------------------------------------------------------------------------

COMMANDS = [("list",), ("runs", "agent-1"), ("run", "agent-1"), ("run", "agent-1", "--wait")]


@pytest.mark.parametrize("arguments", COMMANDS)
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "The connection 'agents_default' does not exist"),
        ("agents://:wrong-key-12345@", "The API key of the connection is missing, wrong or revoked"),
        ("agents://@", "has no API key"),
        ("{]", "cannot be read"),
    ],
)
def test_a_bad_connection_is_one_line_and_code_1(platform, command, monkeypatch, arguments, value, words):
    if value is None:
        monkeypatch.delenv("AIRFLOW_CONN_AGENTS_DEFAULT")
    else:
        if "wrong" in value:
            value = connection(platform.url, "wrong-key-12345")
        monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", value)
    ended = command(*arguments)
    assert ended.code == 1
    assert ended.out == ""
    assert words in ended.err.splitlines()[0]
    assert ended.err.splitlines()[1:] == (["Nothing was started."] if arguments[0] == "run" else [])
    assert "wrong-key" not in ended.err


@pytest.mark.parametrize("arguments", [("runs",), ("run",), ("run", "--wait")])
@pytest.mark.parametrize(
    ("agent_id", "words"),
    [
        ("agent-9", "404: The agent does not exist, or the key does not own it."),
        ("[red]a[/red]", "Request: listing the events of agent [red]a[/red]."),
        ("..", "the id of an agent and not a path"),
        ("a\x1b[31m", "control characters"),
    ],
)
def test_an_agent_that_there_is_not_is_one_line_and_code_1(platform, command, arguments, agent_id, words):
    name, *options = arguments
    ended = command(name, agent_id, *options)
    assert ended.code == 1
    assert ended.out == ""
    assert words in ended.err.splitlines()[0]
    assert ended.err.replace("\n", "").isprintable()
    assert platform.executions() == []


# --- check ----------------------------------------------------------------------------------------------------------


def results(ended):
    return {row["check"]: row["result"] for row in ended.found}


def details(ended):
    return {row["check"]: row["detail"] for row in ended.found}


def test_a_check_of_what_works_says_so(platform, command):
    ended = command("check", "--output", "json")
    assert ended.code == 0
    assert set(results(ended).values()) == {"ok"}
    assert details(ended) == {
        "connection": f"agents_default leads to {platform.url}",
        "server": "answers",
        "API key": "is accepted in the header Authorization",
        "clock": "is the server's, give or take 5 seconds",
        "events": "can be read: 3 on the first page",
    }
    assert [row[0] for row in columns(command("check"))] == [
        "check", "connection", "server", "API key", "clock", "events",
    ]  # fmt: skip
    assert platform.sim.count("POST") == 0


@pytest.mark.parametrize(
    ("password", "found"),
    [
        ("wrong-key-12345", ["ok", "ok", "failed", "not tried", "not tried"]),
        ("***", ["failed", "not tried", "not tried", "not tried", "not tried"]),
    ],
)
def test_a_check_of_a_bad_key_says_what_to_do(platform, command, monkeypatch, password, found):
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection(platform.url, password))
    ended = command("check", "--output", "json")
    assert ended.code == 1
    assert list(results(ended).values()) == found
    assert "connection's password (API key)" in str(details(ended))
    assert password == "***" or password not in ended.out


def test_a_check_of_a_missing_connection_says_how_to_make_one(platform, command):
    ended = command("check", "--conn-id", "nobody", "--output", "json")
    assert ended.code == 1
    assert results(ended)["connection"] == "failed"
    assert "AIRFLOW_CONN_NOBODY='agents://:KEY@'" in details(ended)["connection"]


@pytest.mark.parametrize(
    ("value", "environment", "words"),
    [
        ("agents://:sk/0123456789@", {}, "it is not a URI"),
        (
            '{"conn_type": "agents", "password": "sk-0123456789",}',
            {},
            "it is not JSON at line 1, column 5",
        ),  # Python versions differ by one
        (connection("https://gateway.example/v1"), {}, "ends in the path of the API itself, /v1"),
        (connection("https://gateway.example", "Bearer sk-0123456789"), {}, "begins with the word Bearer"),
        (connection("https://gateway.example", run_ulr="https://app.example"), {}, "did you mean 'run_url'"),
        ('{"conn_type": "http", "password": "sk-0123456789"}', {}, "another type, 'http'"),
        (connection("https://gateway.example"), {"HTTPS_PROXY": "ftp://x"}, "HTTPS_PROXY is not the URL of a proxy"),
        (connection("https://gateway.example"), {"SSL_CERT_FILE": "/missing"}, "SSL_CERT_FILE names the CA bundle"),
    ],
)
def test_a_check_finds_what_is_wrong_with_a_connection_and_its_environment(
    platform, command, monkeypatch, value, environment, words
):
    for name, text in {"AIRFLOW_CONN_AGENTS_DEFAULT": value, **environment}.items():
        monkeypatch.setenv(name, text)
    ended = command("check", "--output", "json")
    assert ended.code == 1
    assert list(results(ended).values()) == ["failed", *["not tried"] * 4]
    assert words in details(ended)["connection"]
    assert "0123456789" not in ended.out + ended.err


def test_a_check_names_the_proxy_that_is_in_use(platform, command, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://user:geheim@127.0.0.1:1")
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection("https://gateway.example"))
    ended = command("check", "--output", "json")
    through = "through the proxy 127.0.0.1:1"
    assert details(ended)["connection"].endswith(f"{through} (the environment variable HTTPS_PROXY)")
    assert f"No connection to gateway.example:443 {through}" in details(ended)["server"]
    assert "geheim" not in ended.out + ended.err


def test_a_check_of_a_server_that_is_not_there_says_so(platform, command, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection("http://127.0.0.1:1"))
    ended = command("check", "--output", "json")
    assert ended.code == 1
    assert list(results(ended).values()) == ["ok", "failed", "not tried", "not tried", "not tried"]
    assert "No connection to 127.0.0.1" in details(ended)["server"]


@pytest.mark.parametrize(
    ("skew", "result", "words"),
    [
        (300, "failed", "the server's is 5m ahead of this machine's"),
        (-3725, "failed", "the server's is 1h 2m 5s behind this machine's"),
        (4, "ok", "give or take"),
        (-4, "ok", "give or take"),
    ],
)
def test_a_clock_that_is_off_is_found(platform, command, skew, result, words):
    platform.advance(0.5)
    change(platform, clock_skew=float(skew))
    ended = command("check", "--output", "json")
    assert ended.code == (0 if result == "ok" else 1)
    assert results(ended)["clock"] == result
    assert words in details(ended)["clock"]
    assert results(ended)["events"] == "ok"


def test_answers_without_a_date_are_found(platform, command):
    change(platform, date_header=False)
    ended = command("check", "--output", "json")
    assert ended.code == 1
    assert "no Date header" in details(ended)["clock"]


@pytest.mark.parametrize("kind", ["html", "wrong_shape", "status"])
def test_events_that_cannot_be_read_are_found(platform, command, kind):
    platform.sim.faults.append(Fault(kind=kind, path="/v1/events"))
    ended = command("check", "--output", "json")
    assert ended.code == 1
    assert list(results(ended).values()) == ["ok", "ok", "ok", "ok", "failed"]


# --- as Airflow runs them -------------------------------------------------------------------------------------------


@needs_airflow("3.2")  # before, `python -m airflow_provider_agents` is the command
def test_airflows_own_command_line_has_the_commands(tmp_path):
    sim = Simulator(lambda: datetime.now(UTC), api_keys=(KEY,))
    sim.add_agent("agent-1", name=STRANGE)
    with running_server(sim) as url:
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "_AIRFLOW"))},
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_AGENTS_DEFAULT": connection(url),
        }
        airflow = Path(sys.executable).with_name("airflow")
        command = [airflow, "agents", "list", "--output", "json"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603 - our own
    assert done.returncode == 0, done.stderr
    assert [agent["name"] for agent in json.loads(done.stdout)] == [STRANGE]


# --- rows that cannot be read ----------------------------------------------------------------------------------------


def test_a_run_whose_row_cannot_be_read_is_listed_with_the_reason(platform, command):
    odd = platform.sim.add_row("agent-1", {"status": None})
    head, *rows = columns(command("runs", "agent-1"))
    row = next(dict(zip(head, row, strict=True)) for row in rows if row[0] == odd)
    assert (row["status"], row["error"]) == ("unreadable", "status: Input should be a valid string")
    assert {"id": odd, "status": None}.items() <= command("runs", "agent-1", "--output", "json").found[0].items()


def test_an_agent_with_odd_fields_is_listed_as_it_was_sent(platform, command):
    platform.sim.add_agent("agent-2", name="name-2")
    platform.sim.intercept(lambda _, answer: replace(reply := answer(), body=reply.body.replace(b'"name-2"', b"7")))
    assert {agent["id"]: agent["name"] for agent in command("list", "--output", "json").found}["agent-2"] == 7
    assert ["agent-2", "-", "ACTIVE", "-"] in columns(command("list"))


def test_check_names_the_rows_that_cannot_be_read(platform, command):
    odd = platform.sim.add_row("agent-1", {"status": None})
    ended = command("check", "--output", "json")
    assert ended.code == 1
    assert ended.found[-1]["result"] == "failed"
    assert f"1 of 4 on the first page cannot be read: event {odd} (status: " in ended.found[-1]["detail"]


# --- forget ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def variables(monkeypatch):
    """The table of Variables, in memory; each test's session is one of it."""
    from airflow.models.variable import Variable

    engine = create_engine("sqlite://", poolclass=StaticPool)
    Variable.__table__.create(engine)
    monkeypatch.setattr("airflow.settings.Session", sessionmaker(engine))

    class Variables:
        def add(self, key, value):
            with sessionmaker(engine)() as session:
                session.add(Variable(key=key, val=value))
                session.commit()

        def keys(self):
            with sessionmaker(engine)() as session:
                return set(session.scalars(select(Variable.key)))

    yield Variables()
    engine.dispose()


def copy_of(task_id, *, written, matters_for):
    """The copy of a record: how long ago it was written, and for how long it still matters."""
    now = datetime.now(UTC)
    return RecordCopy(
        place=TaskPlace(dag_id="dag", run_id="manual__1", task_id=task_id, map_index=3),
        record=RunRecord(
            phase=Phase.ACCEPTED,
            agents_conn_id="agents_default",
            submission=Submission(agent_id="agent-1", request_id="req-1", taken_at=now),
            attempt=Attempt(try_number=1, max_tries=3),
        ),
        written_at=now - written,
        until=now + matters_for,
    )


@pytest.fixture
def left(variables):
    """Copies that have been left: one that no longer matters, one that does, and what only looks like a copy."""
    old = copy_of("old", written=timedelta(days=40), matters_for=-timedelta(days=9))
    new = copy_of("new", written=timedelta(days=2), matters_for=timedelta(days=29))
    for copy in (old, new):
        variables.add(copy.key, copy.to_text())
    variables.add("agent_run/mine", '{"somebody": "else"}')
    variables.add("agent_runs", old.to_text())
    variables.add("agentXrun/mine", old.to_text())
    return SimpleNamespace(old=old, new=new, others={"agent_run/mine", "agent_runs", "agentXrun/mine"})


def test_copies_that_no_longer_matter_are_deleted_and_listed(platform, command, variables, left):
    ended = command("forget")
    assert columns(ended) == [
        ["task", "DAG run", "agent", "requestId", "written (UTC)"],
        ["dag.old[3]", "manual__1", "agent-1", "req-1", f"{left.old.written_at:%Y-%m-%d %H:%M:%S}"],
    ]
    assert "Copies deleted: 1. Copies kept: 1." in ended.err
    assert "since they are no copies that this version can read: 1 Variables agent_run/..." in ended.err
    assert ended.code == 0
    assert variables.keys() == {left.new.key, *left.others}


@pytest.mark.parametrize(("older_than", "deleted"), [("1d", {"old", "new"}), ("3d", {"old"}), ("50d", set())])
def test_copies_of_an_age_are_deleted_although_they_may_still_matter(
    platform, command, variables, left, older_than, deleted
):
    ended = command("forget", "--older-than", older_than, "--output", "json")
    assert {row["place"]["task_id"] for row in ended.found} == deleted
    kept = {copy.key for copy in (left.old, left.new) if copy.place.task_id not in deleted}
    assert variables.keys() == {*kept, *left.others}


@pytest.mark.parametrize("arguments", [(), ("--older-than", "1d")])
def test_a_dry_run_deletes_nothing(platform, command, variables, left, arguments):
    before = variables.keys()
    ended = command("forget", "--dry-run", *arguments)
    assert "dag.old[3]" in ended.out
    assert f"Copies that would be deleted: {1 + bool(arguments)}." in ended.err
    assert variables.keys() == before


def test_for_scripts_the_copies_are_listed_as_they_were_kept(platform, command, variables, left):
    assert command("forget", "--output", "json").found == [{"variable": left.old.key, **json.loads(left.old.to_text())}]


def test_no_copies_is_no_failure(platform, command, variables, monkeypatch):
    ended = command("forget")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.startswith("There are no copies of tasks' records.")
    assert ("Tasks keep them on Airflow 3.4, and on 3.3 with share_starts." in ended.err) is (AIRFLOW < (3, 4))


def test_copies_that_may_all_still_matter_are_kept(platform, command, variables, left):
    command("forget")
    ended = command("forget")
    assert (ended.code, ended.out) == (0, "")
    assert "Copies deleted: 0. Copies kept: 1." in ended.err


def test_a_database_that_cannot_be_used_is_one_line_and_code_1(platform, command, monkeypatch):
    monkeypatch.setattr("airflow.settings.Session", sessionmaker(create_engine("sqlite://", poolclass=NullPool)))
    ended = command("forget")
    assert (ended.code, ended.out) == (1, "")
    assert "metadata database cannot be used, so nothing was deleted (OperationalError)" in ended.err
    assert len(ended.err.splitlines()) == 1


# --- what the platform is like ----------------------------------------------------------------------------------------


def test_a_check_shows_what_the_connection_says_of_the_platform(platform, command, monkeypatch):
    told = connection(platform.url, settle=5, exclusive=True)
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", told)
    ended = command("check")
    assert f"agents_default leads to {platform.url}; settle 5 s; exclusive true" in ended.out


def test_a_run_is_waited_for_as_the_connection_says(platform, command, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection(platform.url, exclusive=True))
    assert command("run", "agent-1", "--wait", "--poll-interval", "2s").code == 0
    assert sum(platform.slept) < 20


def test_a_connection_whose_values_do_not_fit_together_starts_nothing(platform, command, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection(platform.url, settle=600))
    ended = command("run", "agent-1")
    assert "appear_within (300 s) must be at least settle (600 s)" in ended.err
    assert "Nothing was started." in ended.err
    assert platform.executions() == []
