"""The record taken around a POST: what it holds, and what becomes of a POST whose answer was lost."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from own_time import keep_time

from airflow_provider_agents.api.client import Client
from airflow_provider_agents.api.errors import (
    NoAnswerError,
    PermanentError,
    RateLimitedError,
    ServerError,
    TemporaryError,
)
from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.runs import matching
from airflow_provider_agents.runs.listing import read_listing
from airflow_provider_agents.runs.submission import (
    MAX_POSTS,
    Submission,
    find_unconfirmed,
    interrupted,
    submit,
    take_snapshot,
)
from airflow_provider_agents.simulator import Fault, ManualClock, Simulator, SimulatorConfig, mock_transport

SETTLE = 30.0
T0 = datetime(2026, 1, 1, tzinfo=UTC)


class Scene:
    def __init__(self, **config):
        self.clock = ManualClock(T0)
        keep_time(self.clock, self.sleep)
        self.sim = Simulator(self.clock, config=SimulatorConfig(**config))
        self.sim.add_agent("a")
        self.saved, self.said, self.slept = [], [], []
        self.meanwhile = lambda: None
        self.client = Client(
            Settings(api_key="test-key", base_url="http://127.0.0.1"),
            transport=mock_transport(self.sim),
            attempts=1,
        )

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.clock.advance(seconds / 2)
        self.meanwhile()
        self.clock.advance(seconds / 2)

    def fault(self, kind, **more):
        self.sim.faults.append(Fault(kind=kind, method="POST", **more))

    def submit(self):
        return self.client.run_flow(submit("a", settle=SETTLE, save=self.saved.append, say=self.said.append))

    def find(self, unconfirmed):
        return self.client.run_flow(find_unconfirmed(unconfirmed, settle=SETTLE))

    def unconfirmed(self, **fields):
        """The record of a POST that was sent and answered by nobody, now."""
        snapshot = self.client.run_flow(take_snapshot("a"))
        return snapshot.changed(sent_at=self.clock.now, server_after=self.clock.now, **fields)


def test_a_submission_holds_what_was_there_before_and_what_the_answer_said():
    scene = Scene(clock_skew=60.0)
    scene.sim.add_history("a", 1, every=3600.0)
    scene.sim.add_history("a", 1, every=2.0, run_seconds=1.0)
    young = scene.sim.runs()[-1][0]
    submission = scene.submit()
    assert submission == Submission(
        agent_id="a",
        request_id=scene.sim.executions[0].request_id,
        known_event_ids=(young.event_id,),
        taken_at=T0,
        sent_at=T0,
        server_before=T0 + timedelta(seconds=60),
        server_after=T0 + timedelta(seconds=60),
        newest_known_at=young.accepted_at,
    )
    assert scene.saved == [submission.changed(request_id=None, server_after=None)]
    assert scene.said == []


def test_without_the_servers_clock_the_youngest_known_event_stands_in_for_it():
    scene = Scene(date_header=False)
    scene.sim.add_history("a", 3, every=60.0)
    submission = scene.submit()
    assert (submission.server_before, submission.server_after) == (None, None)
    assert submission.window.not_before == T0 - timedelta(seconds=65)
    assert submission.known_event_ids == (scene.sim.runs()[2][0].event_id,)


def test_an_agent_without_events_on_a_server_without_a_clock_can_be_started():
    scene = Scene(date_header=False)
    submission = scene.submit()
    assert (submission.server_before, submission.newest_known_at, submission.known_event_ids) == (None, None, ())
    assert [submission.request_id] == [run.request_id for run in scene.sim.executions]


def test_what_is_not_young_enough_to_be_mistaken_is_not_read():
    scene = Scene(page_rows=1)
    scene.sim.add_history("a", 50, every=60.0, run_seconds=1.0)
    scene.submit()
    # What is PENDING, one row that is too old, and the POST.
    assert len(scene.sim.requests) == 3


def test_a_submission_survives_as_json():
    submission = Scene().submit()
    assert Submission.from_json(json.loads(json.dumps(submission.to_json()))) == submission


def test_a_runs_name_says_what_is_known_of_it():
    submission = Submission(agent_id="a", taken_at=T0)
    assert submission.name == "agent a"
    assert submission.changed(request_id="r", event_id="e").name == "agent a, requestId r, event e"


def test_a_run_that_somebody_else_started_is_known_by_its_event():
    submission = Submission.for_event(ExecutionEvent(id="e", status="RUNNING"), "a", T0)
    assert submission == Submission(agent_id="a", event_id="e", taken_at=T0)


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 429, "headers": {"Retry-After": "7"}}])
def test_a_post_that_was_refused_for_now_is_repeated_after_the_pause(fault):
    scene = Scene()
    scene.fault(**fault)
    scene.submit()
    assert len(scene.sim.executions) == 1
    assert 7.0 <= sum(scene.slept) < 12.0
    # While it pauses, the record says that no POST is under way.
    assert [saved.sent_at for saved in scene.saved] == [T0, None, scene.clock.now]
    assert "Nothing was started" in scene.said[0]


def test_a_post_that_is_always_refused_for_now_is_given_up_after_two_minutes():
    scene = Scene()
    scene.fault("status", status=429, times=None)
    with pytest.raises(RateLimitedError, match="Every try of the last 120 seconds has failed|asks for a pause"):
        scene.submit()
    # Less than a second can be left, and then the second that the server asks for is too long.
    assert 119.0 <= sum(scene.slept) <= 120.001
    assert scene.saved[-1].sent_at is None
    # One warning a minute, each with the end of the tries.
    assert len(scene.said) == 2
    assert all("Nothing was started. Trying again until 00:02:00 UTC." in said for said in scene.said)


def test_a_pause_too_long_for_a_worker_ends_the_submission():
    scene = Scene()
    scene.fault("status", status=429, headers={"Retry-After": "3000"})
    with pytest.raises(RateLimitedError, match="asks for a pause of 3000 seconds, and this task tries for 120 more"):
        scene.submit()
    assert scene.slept == []
    assert scene.saved[-1].sent_at is None


def test_what_began_while_a_refused_post_was_paused_is_not_mistaken_for_its_run():
    scene = Scene()
    scene.fault("status", status=429, headers={"Retry-After": "40"})
    other_starts = []
    scene.meanwhile = lambda: other_starts.append(scene.sim.start_scheduled_run("a"))
    submission = scene.submit()
    assert len(other_starts) == 1
    listing = scene.client.run_flow(read_listing("a", submission.window))
    (mine,) = scene.sim.executions
    assert [event.id for event in matching.candidates(submission.window, listing.events, within=SETTLE)] == [
        mine.event_id
    ]


@pytest.mark.parametrize("status", [*set(range(300, 500)) - {408, 425, 429}, 501, 505])
def test_a_refused_post_leaves_a_doubt_in_the_record_only_where_a_server_failed(status):
    scene = Scene()
    scene.fault("status", status=status)
    with pytest.raises(PermanentError):
        scene.submit()
    assert (scene.saved[-1].sent_at is not None) == (status >= 500)
    assert scene.sim.count("POST") == 1


@pytest.mark.parametrize("fault", [{"kind": "status", "status": status} for status in (408, 425, 500, 503)])
def test_a_post_that_may_have_acted_is_in_doubt_until_it_was_looked_for(fault):
    scene = Scene()
    scene.fault(**fault)
    scene.submit()
    first, settled, second = (saved.sent_at for saved in scene.saved)
    assert (first, settled) == (T0, None)
    assert second >= T0 + timedelta(seconds=SETTLE)


def test_what_began_after_a_doubt_was_settled_is_not_mistaken_for_the_run():
    scene = Scene()
    scene.fault("reset_before")
    others = []

    def save(record):
        if record.sent_at is None:
            others.append(scene.sim.start_scheduled_run("a"))

    submission = scene.client.run_flow(submit("a", settle=SETTLE, save=save))
    assert len(others) == 1
    listing = scene.client.run_flow(read_listing("a", submission.window))
    (mine,) = scene.sim.executions
    assert [event.id for event in matching.candidates(submission.window, listing.events, within=SETTLE)] == [
        mine.event_id
    ]


@pytest.mark.parametrize("settle", [0.001, 1.0, 29.0, 30.0, 45.0])
@pytest.mark.parametrize("lag", [0.0, 4.5, 25.0])
def test_a_small_settle_does_not_shorten_the_search_for_a_lost_post(settle, lag):
    scene = Scene(record_lag=lag)
    scene.fault("reset_after")
    submission = scene.client.run_flow(submit("a", settle=settle))
    assert (len(scene.sim.executions), submission.in_doubt) == (1, True)


@pytest.mark.parametrize(("settle", "seconds"), [(1.0, 30.0), (45.0, 45.0)])
def test_a_lost_post_without_a_run_is_given_up_after_settle_and_at_least_30_seconds(settle, seconds):
    scene = Scene()
    assert scene.client.run_flow(find_unconfirmed(scene.unconfirmed(), settle=settle)) is None
    assert seconds <= sum(scene.slept) <= seconds + 4.0


@pytest.mark.parametrize("status", [429, 503])
def test_no_request_is_sent_before_the_pause_that_the_answer_to_a_post_asked_for(status):
    scene = Scene()
    scene.fault("status", status=status, headers={"Retry-After": "90"})
    scene.submit()
    asked_at = [request.at for request in scene.sim.requests]
    posted = next(n for n, request in enumerate(scene.sim.requests) if request.method == "POST")
    assert asked_at[posted + 1] - asked_at[posted] >= timedelta(seconds=90)


def test_a_pause_too_long_for_a_worker_ends_a_submission_in_doubt_after_a_lost_post():
    scene = Scene()
    scene.fault("status", status=503, headers={"Retry-After": "3000"})
    with pytest.raises(ServerError, match="A run may have started. The server asks for a pause of 3000 seconds"):
        scene.submit()
    assert scene.slept == []
    assert scene.saved[-1].sent_at == T0


@pytest.mark.parametrize("seconds", [20, 60, 100])
def test_a_platform_that_refuses_posts_for_a_while_fails_nothing(seconds):
    scene = Scene()
    scene.fault("status", status=429, times=None)

    def end_the_deploy():
        if scene.clock.now >= T0 + timedelta(seconds=seconds):
            scene.sim.faults.clear()

    scene.meanwhile = end_the_deploy
    assert scene.submit().request_id == scene.sim.executions[0].request_id


def test_nothing_is_sent_if_the_record_cannot_be_saved():
    scene = Scene()

    def save(submission):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        scene.client.run_flow(submit("a", settle=SETTLE, save=save))
    assert scene.sim.count("POST") == 0


@pytest.mark.parametrize("kind", ["reset_after", "hang_after"])
def test_a_run_whose_answer_was_lost_is_found_and_not_started_again(kind):
    scene = Scene(record_lag=10.0)
    scene.fault(kind)
    submission = scene.submit()
    assert len(scene.sim.executions) == 1
    assert submission.request_id is None
    assert submission.server_after == T0
    assert submission.in_doubt
    assert "may have started" in scene.said[0]
    assert "has appeared" in scene.said[1]


def test_a_post_of_which_nothing_came_is_repeated_once_settled():
    scene = Scene()
    scene.fault("reset_before")
    submission = scene.submit()
    assert len(scene.sim.executions) == 1
    assert submission.request_id == scene.sim.executions[0].request_id
    assert SETTLE <= (submission.sent_at - T0).total_seconds() <= SETTLE + 6.0
    assert "none was started" in scene.said[1]


@pytest.mark.parametrize(("kind", "error"), [("reset_before", NoAnswerError), ("status", ServerError)])
def test_after_three_posts_of_which_nothing_came_the_last_failure_is_told(kind, error):
    scene = Scene()
    scene.fault(kind, times=None)
    with pytest.raises(error):
        scene.submit()
    assert scene.sim.count("POST") == MAX_POSTS == 3
    # Each was looked for, so nothing is under way.
    assert scene.saved[-1].sent_at is None


def test_a_202_that_cannot_be_read_is_a_run_that_is_not_looked_for():
    scene = Scene(record_lag=20.0)
    scene.fault("garbage")
    submission = scene.submit()
    assert submission.request_id is None
    assert not submission.in_doubt
    assert scene.slept == []
    assert len(scene.sim.executions) == 1
    assert "waited for without its requestId" in scene.said[0]


# --- a process that died around its POST ---


def test_a_request_that_died_was_under_way_no_longer_than_it_could_be():
    intent = Submission(agent_id="a", taken_at=T0, sent_at=T0 + timedelta(seconds=5), server_before=T0)
    late = interrupted(intent, request_seconds=60.0)
    # On the server's clock as long after the snapshot as on that of the process that died.
    assert late.server_after == T0 + timedelta(seconds=65)
    unsent = interrupted(intent.changed(sent_at=None, server_before=None), request_seconds=60.0)
    assert unsent.server_after is None


@pytest.mark.parametrize("has_clock", [True, False])
@pytest.mark.parametrize(("acts_after", "record_lag"), [(0.0, 25.0), (10.0, 25.0), (55.0, 29.0)])
def test_the_post_of_a_process_that_has_just_died_may_still_start_a_run(has_clock, acts_after, record_lag):
    scene = Scene(record_lag=record_lag, date_header=has_clock)
    intent = scene.client.run_flow(take_snapshot("a")).changed(sent_at=scene.clock.now)
    acts_at = scene.clock.now + timedelta(seconds=acts_after)

    def act():
        if scene.clock.now >= acts_at and not scene.sim.executions:
            scene.sim.handle("POST", "/v1/agents/a/execute", {}, {"authorization": "Bearer test-key"})

    scene.meanwhile = act
    found = scene.client.run_flow(
        find_unconfirmed(interrupted(intent, request_seconds=60.0), settle=SETTLE, under_way=60.0)
    )
    assert found is not None
    assert found.in_doubt


def test_the_post_of_a_process_that_died_long_ago_is_not_waited_for_on_the_servers_clock():
    scene = Scene()
    intent = scene.client.run_flow(take_snapshot("a")).changed(sent_at=scene.clock.now)
    scene.clock.advance(3600.0)
    unconfirmed = interrupted(intent, request_seconds=60.0)
    assert scene.client.run_flow(find_unconfirmed(unconfirmed, settle=SETTLE, under_way=60.0)) is None
    assert sum(scene.slept) <= 4.0


def test_a_lost_run_is_looked_for_until_settle_has_passed():
    scene = Scene()
    assert scene.find(scene.unconfirmed()) is None
    assert SETTLE <= sum(scene.slept) <= SETTLE + 4.0
    assert set(scene.slept) == {3.0}


def test_a_lost_run_that_appears_late_is_found():
    scene = Scene(record_lag=25.0)
    unconfirmed = scene.unconfirmed()
    scene.sim.start_scheduled_run("a")
    assert scene.find(unconfirmed) == unconfirmed.changed(in_doubt=True)
    assert 25.0 <= sum(scene.slept) < 28.0


@pytest.mark.parametrize("date_header", [True, False])
@pytest.mark.parametrize("seconds", [-600, -8, 8, 60, 600, 3600])
def test_a_machine_with_another_clock_neither_gives_up_a_lost_run_nor_overlooks_it(seconds, date_header):
    scene = Scene(record_lag=25.0, date_header=date_header)
    intent = scene.client.run_flow(take_snapshot("a")).changed(sent_at=scene.clock.now)
    scene.sim.start_scheduled_run("a")

    unconfirmed = interrupted(intent, request_seconds=10.0)
    keep_time(lambda: scene.clock.now + timedelta(seconds=seconds), scene.sleep)
    found = scene.find(unconfirmed)
    assert found == unconfirmed.changed(in_doubt=True)


@pytest.mark.parametrize("date_header", [True, False])
@pytest.mark.parametrize("seconds", [-600, 0, 600])
def test_a_machine_with_another_clock_looks_no_longer_than_settle_for_a_missing_run(seconds, date_header):
    scene = Scene(date_header=date_header)
    intent = scene.client.run_flow(take_snapshot("a")).changed(sent_at=scene.clock.now)
    unconfirmed = interrupted(intent, request_seconds=10.0)
    keep_time(lambda: scene.clock.now + timedelta(seconds=seconds), scene.sleep)
    assert scene.find(unconfirmed) is None
    assert SETTLE <= sum(scene.slept) <= SETTLE + 4.0


def test_a_run_created_long_after_a_lost_post_is_not_taken_for_its():
    scene = Scene()
    unconfirmed = scene.unconfirmed()
    scene.clock.advance(SETTLE + 10.0)
    scene.sim.start_scheduled_run("a")
    assert scene.find(unconfirmed) is None


def test_a_look_that_fails_for_a_while_ends_nothing():
    scene = Scene()
    unconfirmed = scene.unconfirmed()
    scene.sim.start_scheduled_run("a")
    scene.sim.faults.append(Fault(kind="reset_before", times=15))
    assert scene.find(unconfirmed) == unconfirmed.changed(in_doubt=True)


def test_a_lost_run_that_cannot_be_looked_for_is_not_taken_for_none():
    scene = Scene()
    unconfirmed = scene.unconfirmed()
    scene.sim.faults.append(Fault(kind="reset_before", times=None))
    with pytest.raises(TemporaryError):
        scene.find(unconfirmed)
    assert 2 * SETTLE <= sum(scene.slept) < 2 * SETTLE + 4.0


def test_a_server_whose_clock_is_ahead_does_not_shorten_the_look_for_a_lost_run():
    scene = Scene(clock_skew=600.0)
    unconfirmed = scene.unconfirmed().changed(server_after=scene.sim.now())
    began_at = scene.clock.now
    assert scene.find(unconfirmed) is None
    assert scene.clock.now - began_at >= timedelta(seconds=SETTLE)


# --- rows that cannot be read ----------------------------------------------------------------------------------------

ODD = [
    {"status": None},
    {"createdAt": 7, "startedAt": 7, "completedAt": 7},
    {"id": 7},
    {"id": None, "createdAt": None},
    7,
]


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("age", [1.0, 3600.0])
def test_a_row_that_was_there_before_and_cannot_be_read_is_no_candidate(odd, age):
    scene = Scene()
    scene.sim.add_row("a", odd, age=age)
    submission = scene.submit()
    scene.clock.advance(SETTLE)
    listing = scene.client.run_flow(read_listing("a", submission.window))
    (ours,) = matching.candidates(submission.window, listing.events, within=SETTLE)
    assert ours.id == scene.sim.executions[0].event_id


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_no_second_run_is_started_beside_a_row_that_cannot_be_read(odd):
    scene = Scene()
    scene.fault("reset_after")
    scene.sim.corrupt(None, odd)
    assert scene.submit().in_doubt
    assert len(scene.sim.executions) == 1
    assert scene.clock.now - T0 >= timedelta(seconds=SETTLE)


def test_a_row_that_turns_out_to_be_old_is_no_run_of_a_lost_post():
    scene = Scene()
    scene.fault("reset_before", times=1)
    old = scene.sim.add_row("a", {}, age=3600.0)

    def corrupt_for_a_while():
        scene.sim.corrupt(old, 7)
        if len(scene.slept) > 3:
            scene.sim.restore(old)

    scene.meanwhile = corrupt_for_a_while
    submission = scene.submit()
    assert not submission.in_doubt
    assert len(scene.sim.executions) == 1


@pytest.mark.parametrize(
    "body", [{"data": {"requestId": odd, "agentId": odd, "message": odd}} for odd in (7, [], {})] + [{}, 7]
)
def test_an_accepted_run_is_not_lost_over_the_body_of_the_answer(body):
    scene = Scene()
    scene.sim.add_fault(Fault(kind="status", status=202, body=json.dumps(body), worked=True, method="POST"))
    submission = scene.submit()
    assert (submission.request_id, submission.in_doubt) == (None, False)
    assert len(scene.sim.executions) == 1
