"""`airflow agents probe` over real HTTP: it finds each way in which the platform can behave."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from conftest import KEY, change
from ctrl_c import interrupt_in_pause

from airflow_provider_agents.api.models import read_event
from airflow_provider_agents.cli.extras import extras_of
from airflow_provider_agents.cli.findings import findings_of, warnings_of
from airflow_provider_agents.cli.observations import Observations, Poll, ProbedRun, SeenListing
from airflow_provider_agents.simulator import Fault


@pytest.fixture
def probe(command):
    """The report of a probe, for scripts."""

    def probe(*arguments):
        ended = command("probe", "agent-1", "--yes", "--output", "json", *arguments)
        (ended.report,) = ended.found
        ended.findings = {finding["name"]: finding for finding in ended.report["findings"]}
        return ended

    return probe


def value(ended, name):
    return ended.findings[name]["value"]


# --- what is found --------------------------------------------------------------------------------------------------


def test_a_platform_as_documented_holds_all_that_is_assumed(platform, probe):
    ended = probe()
    assert ended.code == 0
    assert platform.sim.count("POST") == 3
    assert ended.report["complete"] is True
    assert [run["requestId"] for run in ended.report["runs"]] == [done.request_id for done in platform.sim.executions]
    assert [run["eventIds"] for run in ended.report["runs"]] == [[event_id] for event_id in platform.executions()]
    assert {run["status"] for run in ended.report["runs"]} == {"COMPLETED"}
    assert (ended.report["stoppedBy"], ended.report["lookWith"], ended.report["warnings"]) == (None, None, [])
    assert ended.report["extras"] == {"settle": 10, "appear_within": 300}
    assert {name: finding["value"] for name, finding in ended.findings.items()} == {
        "appearance": {"shortest": 0.0, "longest": 0.0},
        "own_event": True,
        "exclusive": True,
        "clock": "ok",
        "created_at": {"kind": "either", "offset_min": 0.0, "offset_max": 0.0, "clocks_differ_by": 0.0},
        "request_name": "absent",
        "started_at_while_pending": "null",
        "pending_place": "top",
        "start_filter_and_pending": "left out",
        "order": ["createdAt", "startedAt", "updatedAt"],
        "stale": {"vanished": 0, "older_by": 0.0, "behind_by": 0.0},
        "bounds": {"startedAfter": False, "startedBefore": False},
        "undocumented_statuses": [],
        "fields": {"undocumented": [], "missing": []},
        "unreadable_rows": {},
        "short_pages": False,
        "rate_limit": {"limited": 0, "headers": {}},
    }


def test_the_runs_are_started_one_after_the_other(platform, probe):
    probe()
    accepted = [done.accepted_at for done in platform.sim.executions]
    assert all((later - earlier).total_seconds() > 6 for earlier, later in pairwise(accepted))


@pytest.mark.parametrize(
    ("knobs", "name", "found"),
    [
        ({"clock_skew": 300.0}, "clock", "failed"),
        ({"clock_skew": -300.0}, "clock", "failed"),
        ({"date_header": False}, "clock", "failed"),
        ({"request_id": "id"}, "request_name", "id"),
        ({"request_id": "field"}, "request_name", "field"),
        ({"started_at_while_pending": True}, "started_at_while_pending", "set"),
        ({"queue_seconds": 0.0}, "started_at_while_pending", None),
        ({"sort_by": "startedAt", "nulls": "last"}, "pending_place", "bottom"),
        ({"sort_by": "startedAt", "nulls": "first"}, "pending_place", "top"),
        ({"started_at_while_pending": True}, "pending_place", None),
        ({"started_filter_keeps_pending": True}, "start_filter_and_pending", "kept"),
        ({"started_at_while_pending": True}, "start_filter_and_pending", None),
        ({"sort_by": "startedAt", "nulls": "last"}, "order", ["startedAt"]),
        ({"extra_status": "QUEUED", "queue_seconds": 4.0}, "undocumented_statuses", ["QUEUED"]),
        ({"extra_event_fields": {"cost": 1}}, "fields", {"undocumented": ["cost"], "missing": []}),
        ({"empty_pages": 1}, "short_pages", True),
        ({"page_rows": 2}, "short_pages", True),
    ],
)
def test_what_the_documentation_leaves_open_is_found(platform, probe, knobs, name, found):
    change(platform, **knobs)
    assert value(probe("--runs", "1"), name) == found


@pytest.mark.parametrize(("lag", "settle"), [(3.0, 10), (8.0, 16), (20.2, 41)])
def test_settle_is_twice_the_longest_delay_and_at_least_ten(platform, probe, lag, settle):
    lags = iter([0.0, lag, 1.0])
    change(platform, record_lag=lambda _: next(lags))
    ended = probe()
    assert ended.report["extras"] == {"settle": settle, "appear_within": 300}
    assert lag <= value(ended, "appearance")["longest"] <= lag + 0.5
    assert ended.code == 0


def test_an_event_later_than_the_default_of_settle_is_a_warning(platform, probe):
    change(platform, record_lag=40.0)
    ended = probe("--runs", "1")
    assert ended.code == 1
    assert ended.report["extras"] == {"settle": 80, "appear_within": 400}
    (warning,) = ended.report["warnings"]
    assert "Longer than the default of `settle`, 30 s" in warning


def test_an_event_that_does_not_appear_ends_the_probe(platform, probe):
    change(platform, record_lag=1e6)
    ended = probe()
    assert ended.code == 4
    assert platform.sim.count("POST") == 1
    assert ended.report["extras"] is None
    assert "no event appeared within 600 s" in ended.findings["appearance"]["text"]
    assert "cannot be followed" in ended.report["warnings"][0]
    assert "runs agent-1 --since 2026-01-01T08:59:00Z" in ended.report["lookWith"]


def test_a_run_that_does_not_end_ends_the_probe(platform, probe):
    platform.sim.add_agent("agent-1", run_seconds=1e6)
    ended = probe()
    assert ended.code == 4
    assert platform.sim.count("POST") == 1
    assert ended.report["runs"][0]["status"] == "RUNNING"
    assert ended.report["extras"] == {"settle": 10, "appear_within": 300}


@pytest.mark.parametrize(("created_at", "kind"), [("accepted", "accepted"), ("appeared", "appeared")])
def test_it_is_found_which_moment_created_at_is(platform, probe, created_at, kind):
    change(platform, record_lag=5.0, created_at=created_at)
    assert value(probe(), "created_at")["kind"] == kind


@pytest.mark.parametrize(
    ("skew", "kind", "holds"), [(60.0, "behind", False), (-60.0, "ahead", False), (3.0, "behind", True)]
)
def test_two_clocks_of_the_platform_that_differ_are_found(platform, probe, skew, kind, holds):
    change(platform, gateway_skew=skew)
    ended = probe("--runs", "1")
    found = ended.findings["created_at"]
    assert (found["value"]["kind"], found["holds"]) == (kind, holds)
    assert found["value"]["clocks_differ_by"] == pytest.approx(abs(skew), abs=2)


def test_an_event_behind_the_first_page_is_found(platform, probe):
    platform.sim.add_history("agent-1", 60)
    change(platform, sort_by="startedAt", nulls="last", queue_seconds=3.0)
    assert value(probe("--runs", "1"), "pending_place") == "absent"


@pytest.mark.parametrize("sort_by", ["createdAt", "startedAt", "updatedAt"])
def test_overlapping_runs_of_other_agents_show_the_order(platform, probe, sort_by):
    change(platform, sort_by=sort_by)
    # Created, begun and ended in three different orders.
    for agent_id, queue, run in (("slow-to-end", 10, 300), ("slow-to-begin", 100, 10), ("quick", 10, 10)):
        platform.sim.add_agent(agent_id, queue_seconds=queue, run_seconds=run)
        platform.sim.start_scheduled_run(agent_id)
        platform.advance(1)
    platform.advance(900)
    assert value(probe("--runs", "1"), "order") == [sort_by]


def test_a_listing_in_no_order_is_a_warning(platform, probe):
    oldest, *_ = (run for run, _ in platform.sim.runs())
    late = "2026-01-01T08:59:59.000Z"
    platform.sim.corrupt(oldest.event_id, dict.fromkeys(("createdAt", "startedAt", "completedAt", "updatedAt"), late))
    ended = probe("--runs", "1")
    assert (value(ended, "order"), ended.code) == ([], 1)
    assert "newest first" in ended.report["warnings"][0]


def test_listings_that_lag_behind_are_found(platform, probe):
    change(platform, replica_lag=4.0)
    assert value(probe(), "stale")["behind_by"] >= 3
    assert value(probe(), "appearance")["longest"] == pytest.approx(4.0, abs=0.5)


def test_an_older_listing_after_a_newer_one_is_found(platform, probe):
    change(platform, replica_lag=lambda rng: rng.choice([0.0, 4.0]))
    ended = probe()
    found = value(ended, "stale")
    assert found["vanished"] > 0
    assert found["older_by"] > 0
    assert 2 < value(ended, "appearance")["longest"] <= 4.5
    assert ended.findings["stale"]["holds"] is True


def test_an_event_that_vanishes_for_good_is_a_warning(platform, probe):
    change(platform, retention_seconds=2.0)
    ended = probe("--runs", "1")
    assert ended.code == 1
    assert ended.findings["stale"]["holds"] is False
    assert "did not return" in ended.findings["stale"]["text"]


def test_inclusive_bounds_are_found(platform, probe):
    def inclusive(request, respond):
        shifted = dict(request.query)
        for name, milliseconds in (("startedAfter", -1), ("startedBefore", 1)):
            if name in shifted and "shifted" not in shifted:
                at = datetime.fromisoformat(shifted[name]) + timedelta(milliseconds=milliseconds)
                shifted[name] = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if shifted == request.query or "shifted" in shifted:
            return respond()
        return platform.sim.handle(request.method, request.path, shifted | {"shifted": "yes"}, request.headers)

    platform.sim.intercept(inclusive)
    ended = probe("--runs", "1")
    assert value(ended, "bounds") == {"startedAfter": True, "startedBefore": True}
    assert ended.code == 0


def test_a_filter_that_does_not_work_is_a_warning(platform, probe):
    def ignores_bounds(request, respond):
        rest = {name: text for name, text in request.query.items() if not name.startswith("started")}
        if rest == request.query:
            return respond()
        return platform.sim.handle(request.method, request.path, rest, request.headers)

    platform.sim.intercept(ignores_bounds)
    ended = probe("--runs", "1")
    assert ended.code == 1
    assert "the filters do not work" in ended.report["warnings"][0]


def test_a_run_that_ends_with_another_status_is_a_warning(platform, probe):
    platform.sim.add_agent("agent-1", end_status="CANCELLED")
    ended = probe("--runs", "1")
    assert value(ended, "undocumented_statuses") == ["CANCELLED"]
    assert "CANCELLED" in ended.report["warnings"][0]
    assert ended.report["complete"] is True


def test_a_failed_run_shows_as_much_as_a_completed_one(platform, probe):
    platform.sim.add_agent("agent-1", end_status="FAILED")
    ended = probe()
    assert ended.code == 0
    assert {run["status"] for run in ended.report["runs"]} == {"FAILED"}


@pytest.mark.parametrize("field", ["createdAt", "browserStepCount"])
def test_a_documented_field_that_is_missing_is_found(platform, probe, field):
    platform.sim.corrupt(None, {}, without=[field])
    ended = probe("--runs", "1")
    assert value(ended, "fields")["missing"] == [field]
    assert ended.code == (1 if field == "createdAt" else 0)


def test_a_row_that_cannot_be_read_is_a_warning(platform, probe):
    odd = platform.sim.add_row("agent-1", {"status": 7}, age=60)
    ended = probe("--runs", "1")
    assert list(value(ended, "unreadable_rows")) == [odd]
    assert ended.code == 1


def test_another_run_of_the_agent_is_found_and_left_out(platform, probe):
    change(platform, sort_by="createdAt")
    started = []

    def start_another(request, respond):
        reply = respond()
        if request.method == "POST" and not started:
            started.append(platform.sim.start_scheduled_run("agent-1"))
        return reply

    platform.sim.intercept(start_another)
    ended = probe()
    assert ended.code == 1
    assert ended.findings["own_event"]["value"] is False
    assert set(ended.report["runs"][0]["eventIds"]) == {platform.executions()[0], *started}
    assert "1 of 3" in ended.findings["own_event"]["text"]
    assert "runs: 2 of 3" in ended.findings["appearance"]["text"]


def test_another_run_does_not_matter_where_events_name_their_request(platform, probe):
    change(platform, request_id="field")
    platform.sim.add_agent("agent-1", schedule_every=3.0)
    ended = probe()
    assert [run["eventIds"] for run in ended.report["runs"]] == [[event_id] for event_id in platform.executions()]
    assert ended.findings["own_event"]["holds"] is True


def test_another_run_between_two_of_the_probe_speaks_against_exclusive(platform, probe):
    started = []

    def start_another(request, respond):
        runs = platform.executions()
        is_over = len(runs) == 1 and platform.sim.truth(runs[0]).ended_at <= datetime.now(UTC)
        if is_over and request.query.get("status") == "PENDING" and not started:
            started.append(platform.sim.start_scheduled_run("agent-1"))
        return respond()

    platform.sim.intercept(start_another)
    ended = probe("--runs", "2")
    assert len(started) == 1
    assert ended.findings["exclusive"]["value"] is False
    assert ended.findings["own_event"]["value"] is True


def test_another_run_beside_one_of_the_probe_speaks_against_exclusive(platform, probe):
    change(platform, request_id="field")
    platform.sim.add_agent("agent-1", schedule_every=3.0)
    ended = probe("--runs", "1")
    assert ended.findings["exclusive"]["value"] is False
    assert "Leave `exclusive` out" in ended.findings["exclusive"]["meaning"]


def test_an_agent_that_nothing_else_starts_may_be_exclusive(platform, probe):
    found = probe("--runs", "1").findings["exclusive"]
    assert (found["value"], found["holds"]) == (True, True)
    assert "no two tasks at once" in found["meaning"]


def row(name, *, status="PENDING", age=0.0):
    at = datetime(2026, 1, 1, 9, tzinfo=UTC) - timedelta(seconds=age)
    begun = None if status == "PENDING" else at
    return read_event(
        {"id": name, "agentId": "agent-1", "status": status, "createdAt": at.isoformat(), "updatedAt": at.isoformat(),
         "startedAt": begun and begun.isoformat(), "completedAt": begun and begun.isoformat()}
    )  # fmt: skip


def seen_in(*listings, has_more=False):
    """What a probe has seen whose run is `own` and waits, in listings of all runs."""
    at = datetime(2026, 1, 1, 9, tzinfo=UTC)
    run = ProbedRun(server_before=at, sent_at=at, answered_at=at, request_id="request")
    pending = SeenListing.of([row("own")], (), has_more=False)
    known = {f"old-{number}" for number in range(5)}
    for names in listings:
        rows = [row(name, status="PENDING" if name == "own" else "COMPLETED", age=60) for name in names]
        run.record(Poll(at, at, at, pending, SeenListing.of(rows, known, has_more=has_more)))
    return Observations(agent_id="agent-1", wanted=1, runs=[run])


@pytest.mark.parametrize(
    ("listings", "has_more", "place"),
    [
        ([["own", "old-0"]], False, "top"),
        ([["old-0", "own"]], False, "bottom"),
        ([["old-0", "own"]], True, "middle"),
        ([["old-0", "own", "old-1"]], False, "middle"),
        ([["own", "old-0"], ["old-0", "own"]], False, "bottom, top"),
        ([["own"]], False, None),
        ([["old-0"]], False, None),
        ([["old-0"], ["old-0"]], False, "absent"),
        ([["old-0"], ["old-0"], ["own", "old-0"]], False, "top"),
        ([["old-0"], ["old-0"], ["own"]], False, None),
    ],
)
def test_a_run_that_waits_stands_where_the_listings_show_it(listings, has_more, place):
    (finding,) = [one for one in findings_of(seen_in(*listings, has_more=has_more)) if one.name == "pending_place"]
    assert finding.value == place


def test_the_run_before_is_never_taken_for_the_next_even_if_a_snapshot_lacks_it(platform, probe):
    hidden = []

    def hide_in_the_second_snapshot(request, respond):
        reply = respond()
        runs = platform.executions()
        if request.method == "POST":
            hidden.clear()
        elif len(runs) == 1 and request.query.get("status") == "PENDING" and looked[-1:] == ["COMPLETED"]:
            hidden.append(runs[0])
        if request.method == "GET" and len(runs) == 1 and "status" not in request.query:
            rows = json.loads(reply.body)["data"]
            looked.extend(row["status"] for row in rows if row["id"] == runs[0])
        if hidden and request.method == "GET":
            body = json.loads(reply.body)
            body["data"] = [row for row in body["data"] if row["id"] not in hidden]
            return replace(reply, body=json.dumps(body).encode())
        return reply

    looked = []
    platform.sim.intercept(hide_in_the_second_snapshot)
    ended = probe("--runs", "2")
    assert looked[-1] == "COMPLETED"
    assert [run["eventIds"] for run in ended.report["runs"]] == [[event_id] for event_id in platform.executions()]


# --- rate limits ----------------------------------------------------------------------------------------------------


def test_a_rate_limit_is_found_and_kept(platform, probe):
    change(platform, rate_limit=(8, 5.0))
    ended = probe()
    assert ended.code == 0
    assert value(ended, "rate_limit")["limited"] > 0
    assert value(ended, "rate_limit")["headers"]["retry-after"] == "5"
    assert len(platform.executions()) == 3


def test_rate_limit_headers_are_reported_without_the_key(platform, probe):
    def with_headers(request, respond):
        reply = respond()
        return replace(reply, headers={**reply.headers, "X-RateLimit-Limit": "60", "RateLimit-Policy": f"q;k={KEY}"})

    platform.sim.intercept(with_headers)
    ended = probe("--runs", "1")
    assert value(ended, "rate_limit")["headers"] == {"ratelimit-policy": "q;k=***", "x-ratelimit-limit": "60"}


# --- before the first run -------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("answer", "code", "runs"), [("y\n", 0, 2), ("Yes\n", 0, 2), ("\n", 1, 0), ("", 1, 0)])
def test_it_names_the_cost_and_asks(platform, command, monkeypatch, answer, code, runs):
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    ended = command("probe", "agent-1", "--runs", "2")
    assert ended.code == code
    assert len(platform.executions()) == runs
    assert ended.err.startswith("This starts 2 runs, one after the other, of agent agent-1. Each run costs money and")
    assert "Start? [y/N]" in ended.err
    assert bool(ended.out) is bool(runs)


def test_without_a_terminal_and_without_yes_it_starts_nothing(platform, command, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    ended = command("probe", "agent-1")
    assert (ended.code, ended.out) == (2, "")
    assert "There is no terminal to confirm on. Add --yes" in ended.err
    assert ended.err.endswith("Nothing was started.\n")
    assert platform.sim.count() == 0


@pytest.mark.parametrize("arguments", [("--runs", "0"), ("--runs", "x"), ("--output", "yaml")])
def test_wrong_arguments_start_nothing(platform, command, arguments):
    ended = command("probe", "agent-1", "--yes", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert platform.sim.count() == 0


@pytest.mark.parametrize(
    ("agent_id", "fault", "words"),
    [
        ("agent-9", None, "404: The agent does not exist"),
        ("..", None, "the id of an agent and not a path"),
        ("agent-1", Fault(kind="status", status=401, times=None), "401: The API key of the connection"),
        ("agent-1", Fault(kind="status", status=409, method="POST"), "409: The server refuses the request."),
        ("agent-1", Fault(kind="status", status=429, times=None), "429: Too many requests for now."),
    ],
)
def test_an_api_that_refuses_starts_nothing(platform, command, agent_id, fault, words):
    if fault is not None:
        platform.sim.faults.append(fault)
    ended = command("probe", agent_id, "--yes")
    assert (ended.code, ended.out) == (1, "")
    assert words in ended.err
    assert platform.executions() == []


# --- an end in the middle -------------------------------------------------------------------------------------------


def test_a_refusal_in_the_middle_leaves_what_is_known(platform, probe):
    platform.sim.faults.append(Fault(kind="status", status=403, method="POST", skip=1))
    ended = probe()
    assert ended.code == 4
    assert ended.report["complete"] is False
    assert ended.report["stoppedBy"].startswith("403: ")
    assert len(ended.report["runs"]) == 1
    assert ended.report["extras"] == {"settle": 10, "appear_within": 300}
    assert value(ended, "appearance") == {"shortest": 0.0, "longest": 0.0}


def test_a_key_that_is_revoked_while_a_run_goes_on_leaves_what_is_known(platform, probe):
    platform.sim.faults.append(Fault(kind="status", status=401, method="GET", skip=6, times=None))
    ended = probe()
    (started,) = platform.sim.executions
    assert ended.code == 4
    assert ended.report["runs"][0]["requestId"] == started.request_id
    assert ended.report["runs"][0]["eventIds"] == [started.event_id]
    assert "runs agent-1 --since" in ended.report["lookWith"]


def test_a_lost_answer_is_never_followed_by_a_second_request(platform, probe):
    platform.sim.faults.append(Fault(kind="reset_after", method="POST", skip=1))
    ended = probe()
    assert ended.code == 6
    assert platform.sim.count("POST") == 2
    assert [run["accepted"] for run in ended.report["runs"]] == [True, False]
    assert ended.report["lookWith"] is not None


@pytest.mark.parametrize("lag", [0.0, 20.0])
def test_the_run_of_a_lost_answer_is_looked_for_and_named(platform, probe, lag):
    change(platform, record_lag=lag)
    platform.sim.faults.append(Fault(kind="reset_after", method="POST", skip=1))
    ended = probe()
    assert [run["eventIds"] for run in ended.report["runs"]] == [[event_id] for event_id in platform.executions()]
    assert "A run has appeared since. It is most likely the one that was asked for." in ended.err
    assert f"event={platform.executions()[1]}" in ended.err


def test_after_a_lost_answer_without_a_run_the_probe_says_what_to_do(platform, probe):
    platform.sim.faults.append(Fault(kind="reset_before", method="POST", skip=1))
    ended = probe()
    assert len(platform.executions()) == 1
    assert ended.report["runs"][1]["eventIds"] == []
    assert "Looking for it for 30 seconds." in ended.err
    assert "most likely none was started. Start the probe again." in ended.err


def test_a_run_that_cannot_be_looked_for_leaves_what_is_known(platform, probe):
    platform.sim.faults.append(Fault(kind="reset_after", method="POST", skip=1))

    def refuse_after_the_loss(request, respond):
        if platform.sim.count("POST") == 2 and request.method == "GET":
            return platform.sim.error(401, "revoked")
        return respond()

    platform.sim.intercept(refuse_after_the_loss)
    ended = probe()
    assert ended.code == 6
    assert "The run could not be looked for. 401" in ended.err


def test_a_202_that_cannot_be_read_is_an_accepted_run(platform, probe):
    platform.sim.faults.append(Fault(kind="garbage", method="POST"))
    ended = probe("--runs", "1")
    assert platform.sim.count("POST") == 1
    assert ended.report["runs"][0]["eventIds"] == platform.executions()
    assert ended.report["runs"][0]["requestId"] is None


def test_a_request_that_was_refused_for_now_is_repeated(platform, probe):
    platform.sim.faults.append(Fault(kind="status", status=429, method="POST", times=2))
    ended = probe("--runs", "1")
    assert ended.code == 0
    assert len(ended.report["runs"]) == len(platform.executions()) == 1


def test_a_blip_loses_nothing(platform, probe):
    platform.sim.faults.append(Fault(kind="status", status=503, method="GET", skip=8, times=5))
    ended = probe()
    assert ended.report["complete"] is True
    assert "5 of" in ended.findings["rate_limit"]["text"]


@pytest.mark.parametrize("output", ["json", "text"])
def test_ctrl_c_prints_what_is_known_and_what_was_started(platform, command, monkeypatch, output):
    platform.sim.add_agent("agent-1", run_seconds=600)
    interrupt_in_pause(platform, monkeypatch)
    ended = command("probe", "agent-1", "--yes", "--output", output)
    (started,) = platform.sim.executions
    assert ended.code == 130
    assert "Interrupted." in ended.err
    for words in (started.request_id, started.event_id, "runs agent-1 --since 2026-01-01T08:59:00Z"):
        assert words in ended.out


# --- the report -----------------------------------------------------------------------------------------------------


def test_the_text_has_each_finding_its_meaning_and_the_extras(platform, command):
    change(platform, extra_event_fields={"cost": 1}, date_header=False)
    ended = command("probe", "agent-1", "--yes", "--runs", "1")
    assert ended.code == 1
    text = " ".join(ended.out.split())
    assert "Runs started: 1 of 1." in text
    assert "Do events have other fields than documented? undocumented: cost" in text
    assert "WARNING: " in text
    assert 'Extras for the connection: {"settle": 10, "appear_within": 300}' in text
    assert "settle: 2 times the longest delay seen" in text
    assert text.endswith("Warnings: 1.")
    assert max(map(len, ended.out.splitlines())) <= 120


def test_text_of_the_server_cannot_break_the_terminal(platform, command):
    change(platform, extra_event_fields={"\x1b[31m\n": 1})
    platform.sim.add_agent("agent-1", end_status="\u202eDONE")
    ended = command("probe", "agent-1", "--yes", "--runs", "1")
    assert ended.out.replace("\n", "").isprintable()


def test_nothing_seen_is_nothing_found():
    seen = Observations(agent_id="agent-1", wanted=3)
    findings = findings_of(seen)
    assert {finding.holds for finding in findings} == {None}
    assert warnings_of(findings) == []
    assert extras_of(seen) is None
