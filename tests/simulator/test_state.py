"""The simulator does what the API's page says, and each knob turns one thing."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_agents.simulator import Fault, ManualClock, Simulator, SimulatorConfig

KEY = {"Authorization": "Bearer test-key"}
EVENTS = "/v1/agents/a/events"
SAMPLES = Path(__file__).parents[1] / "fixtures"


class Api:
    def __init__(self, **config):
        self.clock = ManualClock()
        self.sim = Simulator(self.clock, config=SimulatorConfig(**config))
        self.sim.add_agent("a")

    def reply(self, method, path, headers=KEY, **query):
        return self.sim.handle(method, path, {name: str(value) for name, value in query.items()}, headers)

    def get(self, path=EVENTS, **query):
        reply = self.reply("GET", path, **query)
        assert reply.status == 200, reply
        return json.loads(reply.body)

    def rows(self, path=EVENTS, **query):
        return self.get(path, **query)["data"]

    def execute(self, agent="a"):
        reply = self.reply("POST", f"/v1/agents/{agent}/execute")
        assert reply.status == 202, reply
        return json.loads(reply.body)["data"]["requestId"]


def statuses(api, *seconds, **query):
    seen = []
    for pause in seconds:
        api.clock.advance(pause)
        seen.append([row["status"] for row in api.rows(**query)])
    return seen


def test_a_run_goes_from_pending_over_running_to_its_end():
    api = Api(queue_seconds=2.0, run_seconds=3.0)
    api.execute()
    assert statuses(api, 0, 2, 2.9, 0.1) == [["PENDING"], ["RUNNING"], ["RUNNING"], ["COMPLETED"]]
    (row,) = api.rows()
    assert (row["startedAt"], row["completedAt"]) == ("2026-01-01T00:00:02.000Z", "2026-01-01T00:00:05.000Z")


def test_a_run_may_be_started_ahead_of_its_time():
    api = Api(queue_seconds=2.0, run_seconds=3.0)
    later = api.sim.start_scheduled_run("a", after=60)
    now = api.sim.start_scheduled_run("a")
    assert [row["id"] for row in api.rows()] == [now] == [run.event_id for run, _ in api.sim.runs()]
    api.clock.advance(60)
    (row, _) = api.rows()
    assert (row["id"], row["status"], row["createdAt"]) == (later, "PENDING", "2026-01-01T00:01:00.000Z")
    assert [run.event_id for run, _ in api.sim.runs()] == [now, later]
    with pytest.raises(ValueError, match="after must be a number of seconds"):
        api.sim.start_scheduled_run("a", after=-1)


def test_a_failed_run_says_why():
    api = Api(end_status="FAILED")
    api.execute()
    api.clock.advance(60)
    assert api.rows()[0]["error"] == "the agent could not finish its task"


def test_only_an_execute_or_the_schedule_creates_events():
    api = Api()
    api.get()
    api.get("/v1/agents")
    api.get("/v1/events")
    assert api.rows() == []


def test_a_schedule_starts_runs_by_itself():
    api = Api()
    api.sim.add_agent("a", schedule_every=100.0, schedule_offset=10.0)
    api.clock.advance(215)
    assert [row["createdAt"][17:23] for row in api.rows()] == ["30.000", "50.000", "10.000"]
    assert api.sim.executions == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer test-key"}, 200),
        ({"authorization": "bearer test-key"}, 200),
        ({"X-Api-Key": "test-key"}, 200),
        ({"Authorization": "test-key"}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({}, 401),
    ],
)
def test_the_key_comes_in_one_of_two_headers(headers, status):
    assert Api().reply("GET", "/v1/agents", headers).status == status


@pytest.mark.parametrize(
    ("method", "path", "query", "status"),
    [
        ("GET", "/v1/agents/b", {}, 404),
        ("GET", "/v1/nothing", {}, 404),
        ("PUT", "/v1/agents/a", {}, 405),
        ("GET", "/v1/agents/a/execute", {}, 405),
        ("GET", EVENTS, {"limit": 0}, 400),
        ("GET", EVENTS, {"limit": 201}, 400),
        ("GET", EVENTS, {"limit": "x"}, 400),
        ("GET", EVENTS, {"startedAfter": "yesterday"}, 400),
        ("GET", EVENTS, {"limit": "9" * 5000}, 400),
        ("GET", EVENTS, {"status": ""}, 400),
        ("GET", EVENTS, {"status": "RESTING"}, 200),
        ("GET", EVENTS, {"startedBefore": "9999-12-31T23:59:59Z", "startedAfter": "0001-01-01"}, 200),
        ("GET", EVENTS, {"nextToken": "nonsense"}, 400),
        ("GET", EVENTS, {"nextToken": "é"}, 400),
        ("GET", EVENTS, {"nextToken": "W1swXV0="}, 400),
        ("GET", EVENTS, {"nextToken": "WzAsMCwxZTMwLDBd"}, 400),
        ("GET", "/v1/agents", {"nextToken": "nonsense"}, 400),
        ("GET", "/v1/agents/a%2Fevents", {}, 404),
    ],
)
def test_what_the_api_does_not_know_is_refused(method, path, query, status):
    assert Api().reply(method, path, **query).status == status


def test_a_paused_agent_is_refused_unless_the_world_says_otherwise():
    api = Api()
    api.sim.add_agent("a", status="PAUSED")
    assert api.reply("POST", "/v1/agents/a/execute").status == 409
    api.sim.config = SimulatorConfig(paused_executes=True)
    assert api.reply("POST", "/v1/agents/a/execute").status == 202


def test_the_filters_filter():
    api = Api(queue_seconds=0.0, run_seconds=5.0)
    for _ in range(3):
        api.execute()
        api.clock.advance(10)
    assert len(api.rows(status="COMPLETED")) == 3
    assert api.rows(status="FAILED") == []
    after = api.rows(startedAfter="2026-01-01T00:00:00.000Z")
    assert [row["startedAt"][17:19] for row in after] == ["20", "10"]
    before = api.rows(startedBefore="2026-01-01T00:00:20.000Z")
    assert [row["startedAt"][17:19] for row in before] == ["10", "00"]
    assert api.rows("/v1/events", agentId="a") == api.rows()
    assert api.rows("/v1/events", agentId="b") == []


@given(st.integers(1, 30), st.integers(1, 9), st.sampled_from(["createdAt", "startedAt", "updatedAt"]), st.booleans())
def test_walking_a_listing_gives_each_event_once_newest_first_while_new_ones_arrive(count, limit, sort_by, arriving):
    api = Api(sort_by=sort_by, queue_seconds=0.0, run_seconds=0.5)
    wanted = []
    for _ in range(count):
        wanted.append(api.sim.event_of(api.execute()))
        api.clock.advance(1)
    token, seen = None, []
    while True:
        page = api.get(limit=limit, **({"nextToken": token} if token else {}))
        seen += [row["id"] for row in page["data"]]
        token = page["nextToken"]
        if not token:
            break
        if arriving:
            api.execute()
            api.clock.advance(1)
    assert seen == wanted[::-1]


def test_a_late_record_is_not_there_yet():
    api = Api(record_lag=5.0)
    api.execute()
    api.clock.advance(4.9)
    assert api.rows() == []
    api.clock.advance(0.1)
    assert len(api.rows()) == 1


def test_a_lagging_replica_shows_what_was():
    api = Api(replica_lag=3.0, queue_seconds=1.0, run_seconds=1.0)
    api.execute()
    assert statuses(api, 2, 1, 1, 1) == [[], ["PENDING"], ["RUNNING"], ["COMPLETED"]]


@pytest.mark.parametrize(("knob", "second"), [("accepted", "00"), ("appeared", "05")])
def test_created_at_is_acceptance_or_appearance(knob, second):
    api = Api(record_lag=5.0, created_at=knob)
    api.execute()
    api.clock.advance(6)
    assert api.rows()[0]["createdAt"][17:19] == second


def test_a_pending_event_may_have_a_start_and_may_pass_the_filter_without_one():
    api = Api(queue_seconds=10.0)
    api.execute()
    assert api.rows()[0]["startedAt"] is None
    assert api.rows(startedAfter="2025-01-01T00:00:00Z") == []
    api.sim.config = SimulatorConfig(queue_seconds=10.0, started_filter_keeps_pending=True)
    assert len(api.rows(startedAfter="2025-01-01T00:00:00Z")) == 1
    api.sim.config = SimulatorConfig(started_at_while_pending=True)
    pending = api.rows()[0]
    assert pending["startedAt"] == "2026-01-01T00:00:00.000Z"
    api.clock.advance(12)
    assert (api.rows()[0]["status"], api.rows()[0]["startedAt"]) == ("RUNNING", pending["startedAt"])


@pytest.mark.parametrize(("nulls", "order"), [("first", ["PENDING", "COMPLETED"]), ("last", ["COMPLETED", "PENDING"])])
def test_events_without_the_sorted_time_stand_at_one_end(nulls, order):
    api = Api(sort_by="startedAt", nulls=nulls, queue_seconds=0.0, run_seconds=1.0)
    api.execute()
    api.clock.advance(5)
    api.sim.add_agent("a", queue_seconds=100.0)
    api.execute()
    assert [row["status"] for row in api.rows()] == order


def test_an_event_may_bear_the_request_id_as_its_id_or_in_a_field():
    api = Api(request_id="id")
    assert api.execute() == api.rows()[0]["id"]
    api = Api(request_id="field")
    assert api.execute() == api.rows()[0]["requestId"]
    assert "requestId" not in Api().rows()


def test_the_servers_clock_is_its_own():
    api = Api(clock_skew=600.0, gateway_skew=-2.0)
    api.execute()
    reply = api.reply("GET", EVENTS)
    assert json.loads(reply.body)["data"][0]["createdAt"] == "2026-01-01T00:10:00.000Z"
    assert parsedate_to_datetime(reply.headers["Date"]) == datetime(2026, 1, 1, 0, 9, 58, tzinfo=UTC)
    assert "Date" not in Api(date_header=False).reply("GET", EVENTS).headers


def test_an_agent_comes_bare_or_in_an_envelope():
    assert Api().get("/v1/agents/a")["id"] == "a"
    assert Api(agent_envelope=True).get("/v1/agents/a")["data"]["id"] == "a"


def test_pages_may_be_short_empty_or_without_end():
    api = Api(page_rows=2, empty_pages=1)
    api.sim.add_history("a", 3)
    first = api.get(limit=50)
    assert (first["data"], bool(first["nextToken"])) == ([], True)
    assert len(api.rows(limit=50, nextToken=first["nextToken"])) == 2
    assert Api(repeated_token=True).get()["nextToken"] == Api(repeated_token=True).get(nextToken="again")["nextToken"]
    endless = Api(endless_tokens=True)
    assert endless.get()["nextToken"] != endless.get(nextToken=endless.get()["nextToken"])["nextToken"]


@pytest.mark.parametrize(("shape", "body"), [("text", b"no such agent"), ("empty", b"")])
def test_an_error_body_has_the_shape_that_the_world_says(shape, body):
    assert Api(error_body=shape).reply("GET", "/v1/agents/b").body == body
    assert json.loads(Api().reply("GET", "/v1/agents/b").body) == {"error": {"message": "no such agent"}}


def test_a_rate_limit_counts_within_its_window_and_says_when_to_come_back():
    api = Api(rate_limit=(2, 10.0))
    assert [api.reply("GET", EVENTS).status for _ in range(3)] == [200, 200, 429]
    assert api.reply("GET", EVENTS).headers["Retry-After"] == "10"
    api.clock.advance(10)
    assert api.reply("GET", EVENTS).status == 200
    dated = Api(rate_limit=(0, 10.0), retry_after="date").reply("GET", EVENTS).headers
    assert parsedate_to_datetime(dated["Retry-After"]) - parsedate_to_datetime(dated["Date"]) == timedelta(seconds=10)
    assert "Retry-After" not in Api(rate_limit=(0, 10.0), retry_after="absent").reply("GET", EVENTS).headers


@pytest.mark.parametrize(
    ("fault", "broken", "worked"),
    [
        (Fault(kind="reset_before"), "reset", False),
        (Fault(kind="reset_after"), "reset", True),
        (Fault(kind="hang_before"), "hang", False),
        (Fault(kind="hang_after"), "hang", True),
        (Fault(kind="status", status=502), None, False),
        (Fault(kind="status", status=502, worked=True), None, True),
        (Fault(kind="html"), None, True),
        (Fault(kind="truncated"), None, True),
    ],
)
def test_a_fault_strikes_before_or_after_the_work(fault, broken, worked):
    api = Api()
    api.sim.faults.append(fault)
    reply = api.reply("POST", "/v1/agents/a/execute")
    assert reply.broken == broken
    assert len(api.sim.executions) == worked
    assert reply.status == (502 if fault.kind == "status" else 200 if broken else 202)
    assert api.reply("POST", "/v1/agents/a/execute").status == 202


@pytest.mark.parametrize("kind", ["html", "garbage", "truncated", "empty", "wrong_shape", "huge"])
def test_a_spoilt_body_is_no_page(kind):
    api = Api()
    api.sim.faults.append(Fault(kind=kind))
    body = api.reply("GET", EVENTS).body
    try:
        assert not isinstance(json.loads(body)["data"], list) or len(body) > 32 * 1024 * 1024
    except ValueError:
        assert kind in {"html", "garbage", "truncated", "empty"}


def test_a_fault_may_be_aimed_skip_and_last():
    api = Api()
    api.sim.faults.append(Fault(kind="status", method="GET", path="events", skip=1, times=2))
    assert api.reply("GET", "/v1/agents").status == 200
    assert [api.reply("GET", EVENTS).status for _ in range(4)] == [200, 503, 503, 200]
    api.sim.faults.append(Fault(kind="status", times=None))
    assert {api.reply("GET", EVENTS).status for _ in range(5)} == {503}


def test_the_truth_is_told_to_whoever_asks_the_simulator():
    api = Api(end_status="FAILED")
    request_id = api.execute()
    event_id = api.sim.event_of(request_id)
    assert api.sim.final_status(event_id) == "FAILED"
    assert api.sim.truth(event_id).request_id == request_id
    assert [(run.event_id, status) for run, status in api.sim.runs()] == [(event_id, "PENDING")]
    assert api.sim.count("POST", "/v1/agents/a") == 1


def test_agents_that_are_gone_are_not_found_and_not_listed():
    api = Api()
    api.sim.add_agent("b", status="DELETED")
    assert [agent["id"] for agent in api.rows("/v1/agents")] == ["a"]
    api.sim.remove_agent("a")
    assert api.reply("GET", EVENTS).status == 404


def shape(value):
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else type(value).__name__


def test_an_accepted_execute_has_the_keys_and_types_of_the_pages_sample():
    reply = Api().reply("POST", "/v1/agents/a/execute")
    assert shape(json.loads(reply.body)) == shape(json.loads((SAMPLES / "execute_202.json").read_bytes()))
    assert (reply.status, reply.headers["Content-Type"]) == (202, "application/json")


@pytest.mark.parametrize("path", [EVENTS, "/v1/events"])
def test_a_page_of_events_has_the_keys_and_types_of_the_pages_sample(path):
    api = Api()
    api.execute()
    api.clock.advance(60)
    assert shape(api.get(path)) == shape(json.loads((SAMPLES / "events_page.json").read_bytes()))


def test_an_event_is_kept_for_a_while_after_its_end():
    api = Api(queue_seconds=0.0, run_seconds=5.0, retention_seconds=10.0)
    api.execute()
    assert [len(seen) for seen in statuses(api, 0, 14.9, 0.1)] == [1, 1, 0]
    assert api.sim.runs()[0][1] == "COMPLETED"


def test_unknown_fields_and_statuses_may_be_in_an_event():
    api = Api(extra_event_fields={"region": "eu"}, extra_status="QUEUED", queue_seconds=10.0)
    api.execute()
    assert api.rows()[0]["region"] == "eu"
    assert statuses(api, 0, 5, 5) == [["PENDING"], ["QUEUED"], ["RUNNING"]]
    assert api.rows(status="QUEUED") == []


def test_the_length_and_the_end_of_a_run_may_be_drawn_and_follow_from_the_seed():
    def told():
        api = Api(
            queue_seconds=lambda rng: rng.uniform(0, 9),
            run_seconds=lambda rng: rng.uniform(0, 9),
            record_lag=lambda rng: rng.uniform(0, 9),
            end_status=lambda rng: rng.choice(["COMPLETED", "FAILED"]),
        )
        api.sim.add_agent("b", schedule_every=7.0)
        for _ in range(20):
            api.execute()
            api.clock.advance(5)
        api.clock.advance(100)
        return api.rows("/v1/events", limit=200)

    assert told() == told()
    assert {row["status"] for row in told()} == {"COMPLETED", "FAILED"}


def test_an_agents_own_settings_go_before_the_worlds():
    api = Api()
    api.sim.add_agent("a", queue_seconds=0.0, run_seconds=1.0, end_status="FAILED", error="no more coffee")
    api.execute()
    api.clock.advance(1)
    assert [(row["status"], row["error"]) for row in api.rows()] == [("FAILED", "no more coffee")]


def test_an_agent_that_is_replaced_keeps_the_runs_that_its_schedule_has_started():
    api = Api()
    api.sim.add_agent("b", schedule_every=10.0, end_status="FAILED")
    api.clock.advance(25)
    api.sim.add_agent("b")
    api.clock.advance(100)
    assert [row["status"] for row in api.rows("/v1/agents/b/events")] == ["FAILED"] * 3


def test_agents_are_listed_newest_first_in_pages_that_newer_agents_do_not_move():
    api = Api(page_rows=2)
    for name in "bcd":
        api.sim.add_agent(name)
    first = api.get("/v1/agents")
    api.sim.add_agent("e")
    second = api.get("/v1/agents", nextToken=first["nextToken"])
    assert [agent["id"] for agent in first["data"] + second["data"]] == ["d", "c", "b", "a"]
    assert second["nextToken"] is None


def test_an_agent_tells_its_name_status_and_schedule_as_a_string_of_json():
    api = Api()
    api.sim.add_agent("b", name="Prices", status="PAUSED", schedule_every=60.0)
    agent = api.get("/v1/agents/b")
    assert (agent["name"], agent["status"], json.loads(agent["schedule"])["tasksPerDay"]) == ("Prices", "PAUSED", 1440)


def test_an_encoded_agent_id_is_decoded():
    api = Api()
    api.sim.add_agent("a/b c")
    assert api.get("/v1/agents/a%2Fb%20c")["id"] == "a/b c"


def test_keys_may_be_rotated():
    api = Api()
    api.sim.api_keys = ("new",)
    assert api.reply("GET", EVENTS).status == 401
    assert api.reply("GET", EVENTS, {"X-Api-Key": "new"}).status == 200


def test_requests_are_counted_by_method_and_path():
    api = Api()
    api.execute()
    api.get("/v1/events")
    assert (api.sim.count(), api.sim.count("GET"), api.sim.count(path_prefix="/v1/agents")) == (2, 1, 1)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("record_lag", -1.0),
        ("replica_lag", "1"),
        ("run_seconds", float("inf")),
        ("queue_seconds", True),
        ("clock_skew", float("nan")),
        ("created_at", "later"),
        ("date_header", 1),
        ("page_rows", 0),
        ("empty_pages", -1),
        ("extra_event_fields", ["region"]),
        ("end_status", ""),
        ("extra_status", ""),
        ("retention_seconds", -1),
        ("rate_limit", (1,)),
        ("rate_limit", (1, 0)),
        ("rate_limit", ("1", 1.0)),
    ],
)
def test_a_knob_that_cannot_be_turned_so_is_refused_by_name(knob, value):
    with pytest.raises(ValueError, match=f"^{knob} must be"):
        SimulatorConfig(**{knob: value})


def test_time_only_moves_on():
    with pytest.raises(ValueError, match="time does not go back"):
        ManualClock().advance(-1)


# Few values, so that runs overlap, tie and stand on the edges of what is asked for.
PAUSES = st.sampled_from([0.0, 0.0004, 1.0, 3.0])
LENGTHS = st.sampled_from([0.0, 1.0, 4.0, 30.0])
MOMENTS = st.sampled_from([0.0, 0.0002, 1.0, 3.0, 6.0, 11.0, 25.0]).map(
    lambda seconds: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
)
STATUSES = st.sampled_from(["PENDING", "RUNNING", "COMPLETED", "FAILED"])
# Mostly one filter at a time: several at once leave too little to compare.
FILTERS = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"after": MOMENTS}),
    st.fixed_dictionaries({"before": MOMENTS}),
    st.fixed_dictionaries({"status": STATUSES}),
    st.fixed_dictionaries({}, optional={"after": MOMENTS, "before": MOMENTS, "status": STATUSES}),
)


@settings(max_examples=500, deadline=None)
@given(
    runs=st.lists(st.tuples(PAUSES, LENGTHS, LENGTHS, LENGTHS), min_size=3, max_size=9),
    history=st.integers(0, 3),
    rest=st.sampled_from([0.0, 5.0, 40.0]),
    order=st.sampled_from(
        [("createdAt", "first"), ("startedAt", "first"), ("startedAt", "last"), ("updatedAt", "first")],
    ),
    created_at=st.sampled_from(["accepted", "appeared"]),
    pending=st.tuples(st.booleans(), st.booleans()),
    replica_lag=st.sampled_from([0.0, 0.0, 3.0]),
    filters=FILTERS,
    limit=st.integers(1, 3),
    retention=st.sampled_from([None, None, None, 4.0]),
)
def test_any_listing_is_what_filtering_and_sorting_every_run_would_give(
    runs, history, rest, order, created_at, pending, replica_lag, filters, limit, retention
):
    sort_by, nulls = order
    with_start, keeps_pending = pending
    status, after, before = (filters.get(name) for name in ("status", "after", "before"))
    api = Api(
        sort_by=sort_by,
        nulls=nulls,
        created_at=created_at,
        started_at_while_pending=with_start,
        started_filter_keeps_pending=keeps_pending,
        replica_lag=replica_lag,
        retention_seconds=retention,
    )
    for number, (pause, queue, run, lag) in enumerate(runs):
        api.clock.advance(pause)
        api.sim.config = replace(api.sim.config, record_lag=lag)
        end_status = "FAILED" if number % 3 else "COMPLETED"
        api.sim.add_agent("a", queue_seconds=queue, run_seconds=run, end_status=end_status)
        api.execute()
    # Made last, accepted among the others.
    api.sim.add_history("a", history, every=2.0, run_seconds=1.0)
    api.clock.advance(rest)

    now = api.sim.now() - timedelta(seconds=replica_lag)
    expected = []
    for run, _ in api.sim.runs():
        kept = retention is None or now < run.ended_at + timedelta(seconds=retention)
        started = run.accepted_at if with_start else run.started_at if run.started_at <= now else None
        if started is None:
            in_window = (after is None and before is None) or keeps_pending
        else:
            shown = started.replace(microsecond=started.microsecond // 1000 * 1000)
            in_window = (after is None or shown > after) and (before is None or shown < before)
        here = run.status_at(now, api.sim.config)
        if run.visible_at <= now and kept and in_window and status in (None, here):
            created = run.accepted_at if created_at == "accepted" else run.visible_at
            updated = max([created, *(at for at in (run.started_at, run.ended_at) if at <= now)])
            sorted_by = {"createdAt": created, "startedAt": started, "updatedAt": updated}[sort_by]
            rank = 0 if sorted_by else 1 if nulls == "first" else -1
            expected.append(((rank, sorted_by or now, run.number), run.event_id))

    query = {"limit": limit}
    query |= {"status": status} if status else {}
    query |= {name: at.isoformat() for name, at in (("startedAfter", after), ("startedBefore", before)) if at}
    seen, token = [], None
    while True:
        page = api.get(**query, **({"nextToken": token} if token else {}))
        assert 0 < len(page["data"]) <= limit or not page["nextToken"]
        seen += [row["id"] for row in page["data"]]
        token = page["nextToken"]
        if not token:
            break
    assert seen == [event_id for _, event_id in sorted(expected, reverse=True)]


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"status": "PENDING"},
        {"startedAfter": "2025-12-31T22:00:00Z"},
        {"startedAfter": "2025-12-30T22:00:00Z", "startedBefore": "2025-12-30T23:00:00Z"},
    ],
)
@pytest.mark.parametrize("sort_by", ["createdAt", "startedAt", "updatedAt"])
def test_the_work_of_a_page_does_not_grow_with_the_history(query, sort_by):
    def calls(history):
        api = Api(sort_by=sort_by)
        api.sim.add_history("a", history, every=60.0)
        made = 0

        def count(_frame, event, _argument):
            nonlocal made
            made += event == "call"

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            api.get("/v1/events", limit=5, **query)
        finally:
            sys.setprofile(before)
        return made

    assert calls(10_000) < calls(2_000) * 1.2


def test_a_pending_event_may_pass_a_filter_for_a_start_far_in_the_future():
    api = Api(started_filter_keeps_pending=True, queue_seconds=10.0)
    api.execute()
    assert len(api.rows(startedAfter="2027-01-01T00:00:00Z")) == 1


def test_where_events_are_created_as_they_appear_the_last_to_appear_is_the_newest():
    api = Api(created_at="appeared", record_lag=30.0, queue_seconds=0.0, run_seconds=0.0)
    late = api.sim.event_of(api.execute())
    api.sim.config = replace(api.sim.config, record_lag=0.0)
    for _ in range(3):
        api.clock.advance(1)
        api.execute()
    api.clock.advance(30)
    assert [row["id"] for row in api.rows(limit=1)] == [late]


def test_what_is_forgotten_is_as_if_it_had_never_been():
    api = Api(queue_seconds=0.0, run_seconds=10.0)
    old = api.execute()
    api.clock.advance(60)
    young = api.execute()
    api.clock.advance(60)
    api.sim.forget(api.clock.now - timedelta(seconds=60))
    assert [row["id"] for row in api.rows()] == [api.sim.event_of(young)]
    assert [done.request_id for done in api.sim.executions] == [young]
    assert len(api.sim.requests) == 1
    with pytest.raises(KeyError):
        api.sim.event_of(old)
    api.execute()
    assert len({run.number for run, _ in api.sim.runs()}) == 2


# --- what goes wrong ---


def test_a_window_of_time_is_when_a_fault_matches():
    api = Api()
    api.sim.add_fault(Fault(kind="status", status=404, times=None), after=10, seconds=5)
    seen = []
    for pause in (0, 9.9, 0.1, 4.9, 0.1):
        api.clock.advance(pause)
        seen.append(api.reply("GET", EVENTS).status)
    assert seen == [200, 200, 404, 404, 200]
    assert api.sim.faults == []


def test_a_fault_in_a_window_still_strikes_only_as_often_as_it_says():
    api = Api()
    api.sim.add_fault(Fault(kind="status", times=2), seconds=60)
    assert [api.reply("GET", EVENTS).status for _ in range(3)] == [503, 503, 200]


@pytest.mark.parametrize(
    ("fault", "matching"),
    [
        ({"path": "/events"}, ["/v1/agents/a/events", "/v1/events", "/v1/events?status"]),
        ({"path": "^/v1/events$"}, ["/v1/events", "/v1/events?status"]),
        ({"path": "^/v1/agents/[^/]+$"}, ["/v1/agents/a"]),
        ({"query": {"status": "PENDING"}}, ["/v1/events?status"]),
        ({"method": "POST"}, []),
        ({}, ["/v1/agents", "/v1/agents/a", "/v1/agents/a/events", "/v1/events", "/v1/events?status"]),
    ],
)
def test_a_fault_picks_its_requests_by_method_path_and_query(fault, matching):
    api = Api()
    api.sim.faults.append(Fault(kind="status", times=None, **fault))
    asked = ["/v1/agents", "/v1/agents/a", EVENTS, "/v1/events", "/v1/events?status"]
    struck = []
    for name in asked:
        path, _, filtered = name.partition("?")
        query = {"status": "PENDING"} if filtered else {}
        if api.reply("GET", path, **query).status == 503:
            struck.append(name)
    assert struck == matching


def test_a_status_may_have_a_body_and_headers_of_its_own():
    api = Api()
    api.sim.faults.append(Fault(kind="status", status=302, body="<html>", headers={"Location": "https://x.example"}))
    reply = api.reply("GET", EVENTS)
    assert (reply.status, reply.body, reply.headers["Location"]) == (302, b"<html>", "https://x.example")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("path", "("),
        ("path", 7),
        ("query", {"limit": 5}),
        ("body", b"x"),
        ("not_before", "2026-01-01"),
        ("not_after", datetime(2026, 1, 1)),  # noqa: DTZ001 - what is refused
    ],
)
def test_a_fault_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        Fault(kind="status", **{name: value})


@pytest.mark.parametrize("window", [{"after": -1}, {"seconds": "1"}, {"seconds": float("inf")}])
def test_a_window_that_cannot_be_is_refused_and_adds_no_fault(window):
    api = Api()
    with pytest.raises(ValueError, match=f"^{next(iter(window))} must be"):
        api.sim.add_fault(Fault(kind="status"), **window)
    assert api.sim.faults == []


def test_an_interceptor_may_answer_in_the_platforms_place_or_change_its_answer():
    api = Api()

    def refuse(request, answer):
        return answer() if request.query.get("limit") else api.sim.error(403, "not yours")

    def empty(_, answer):
        return replace(answer(), body=b"")

    stop_refusing = api.sim.intercept(refuse)
    assert api.reply("GET", EVENTS).status == 403
    assert api.reply("POST", "/v1/agents/a/execute").status == 403
    assert api.sim.executions == []
    assert api.reply("GET", EVENTS, limit=1).status == 200
    api.sim.intercept(empty)
    reply = api.reply("GET", EVENTS)
    assert (reply.status, reply.body) == (403, b"")
    stop_refusing()
    stop_refusing()
    reply = api.reply("GET", EVENTS)
    assert (reply.status, reply.body) == (200, b"")
    assert [request.status for request in api.sim.requests] == [403, 403, 200, 403, 200]


def finished(api, count=3):
    """The ids of events, the newest first."""
    for _ in range(count):
        api.execute()
        api.clock.advance(60)
    return [row["id"] for row in api.rows()]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"finalModel": {"name": "x"}}, {"finalModel": {"name": "x"}}),
        ({"userId": 7, "more": [None]}, {"userId": 7, "more": [None]}),
        (lambda row: {"id": row["id"].upper()}, None),
        (None, None),
        (7, None),
        ("text", None),
        ([], None),
    ],
)
def test_a_row_may_be_changed_in_every_listing_and_the_truth_stays(row, expected):
    api = Api()
    newest, odd, oldest = finished(api)
    honest = api.rows()[1]
    api.sim.corrupt(odd, row)
    wanted = {**honest, **expected} if expected else row({**honest}) if callable(row) else row
    for path in (EVENTS, "/v1/events"):
        first, second, third = api.rows(path)
        assert (first["id"], second, third["id"]) == (newest, wanted, oldest)
    assert api.rows(status="COMPLETED") == api.rows()
    assert api.sim.final_status(odd) == "COMPLETED"
    api.sim.restore(odd)
    assert api.rows()[1] == honest


def test_the_row_of_an_event_is_what_a_listing_shows_of_it():
    api = Api(queue_seconds=0.0)
    event_id = api.sim.start_scheduled_run("a")
    for change in (lambda: None, lambda: api.clock.advance(60), lambda: api.sim.corrupt(event_id, {"status": 7})):
        change()
        assert [api.sim.row(event_id)] == api.rows()


def test_a_row_may_lack_fields_and_all_rows_may_be_changed_at_once():
    api = Api()
    newest, *_ = finished(api)
    api.sim.corrupt(None, {"finalModel": 1}, without=["id"])
    assert ["id" in row for row in api.rows()] == [False] * 3
    api.sim.corrupt(newest, {"finalModel": 2})
    assert [row["finalModel"] for row in api.rows()] == [2, 1, 1]
    api.sim.restore(None)
    assert [row["finalModel"] for row in api.rows()] == [2, "claude-3-7-sonnet", "claude-3-7-sonnet"]


def test_a_row_without_a_run_is_listed_and_no_run():
    api = Api()
    api.sim.add_agent("b")
    newest, *older = finished(api)
    foreign = api.sim.add_row("a", {"agentId": "b"}, age=90)
    api.sim.add_row("a", "no object", age=400)
    rows = api.rows()
    assert [row if isinstance(row, str) else row["id"] for row in rows] == [newest, foreign, *older, "no object"]
    assert (rows[1]["agentId"], rows[1]["status"]) == ("b", "COMPLETED")
    assert api.rows("/v1/events") == rows
    assert api.rows("/v1/agents/b/events") == []
    assert len(api.sim.runs()) == len(api.sim.executions) == 3


def test_a_hidden_event_is_in_no_listing_until_it_is_restored():
    api = Api()
    newest, hidden, oldest = finished(api)
    api.sim.hide(hidden)
    assert [row["id"] for row in api.rows()] == [row["id"] for row in api.rows("/v1/events")] == [newest, oldest]
    assert hidden in {run.event_id for run, _ in api.sim.runs()}
    api.sim.restore(hidden)
    assert [row["id"] for row in api.rows()] == [newest, hidden, oldest]


@pytest.mark.parametrize("keep_events", [False, True])
def test_a_deleted_agent_is_answered_404_and_its_events_are_listed_or_not(keep_events):
    api = Api()
    api.sim.add_agent("b", schedule_every=100.0)
    api.execute()
    api.execute("b")
    api.clock.advance(10)
    api.sim.remove_agent("b", keep_events=keep_events)
    assert [api.reply("GET", f"/v1/agents/b{path}").status for path in ("", "/events")] == [404, 404]
    assert api.reply("POST", "/v1/agents/b/execute").status == 404
    assert [agent["id"] for agent in api.rows("/v1/agents")] == ["a"]
    listed = {row["agentId"] for row in api.rows("/v1/events")}
    assert listed == ({"a", "b"} if keep_events else {"a"})
    assert len(api.sim.executions) == 2
    runs = len(api.sim.runs())
    api.clock.advance(1000)
    assert len(api.sim.runs()) == runs


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda sim, _: sim.corrupt("nothing", {}), KeyError),
        (lambda sim, _: sim.hide("nothing"), KeyError),
        (lambda sim, _: sim.add_row("nobody", {}), KeyError),
        (lambda sim, _: sim.remove_agent("nobody", keep_events=True), KeyError),
        (lambda sim, event_id: sim.corrupt(event_id, {"id": object()}), TypeError),
        (lambda sim, event_id: sim.corrupt(event_id, {}, without="id"), ValueError),
        (lambda sim, _: sim.add_row("a", {}, without=[1]), ValueError),
        (lambda sim, _: sim.add_row("a", {}, age=-1), ValueError),
    ],
)
def test_a_change_of_rows_that_makes_no_sense_changes_nothing(change, error):
    api = Api()
    event_id, *_ = finished(api)
    before = api.rows()
    with pytest.raises(error):
        change(api.sim, event_id)
    assert api.rows() == before
