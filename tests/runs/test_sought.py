"""What a sensor may name, and which run of an agent is the first one after a moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_provider_agents.api.calls import Answer
from airflow_provider_agents.api.errors import InvalidArgumentError
from airflow_provider_agents.api.models import ExecutionEvent, Page
from airflow_provider_agents.runs.sought import Sought, first_begun
from airflow_provider_agents.runs.submission import Submission

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
SUBMISSION = Submission(agent_id="a", request_id="req", taken_at=T0)


def sought(**given):
    return Sought.of(**{"agent_id": "a", "submission": None, "event_id": None, "started_after": None, **given})


def begun(name, seconds, status="RUNNING"):
    started = None if seconds is None else T0 + timedelta(seconds=seconds)
    return ExecutionEvent(id=name, status=status, createdAt=T0, startedAt=started)


def look(*events, settle=30.0, now, server_time=None):
    """What comes of `first_begun`, and the moments between which it asked; each answer holds what lies between."""
    asked = []
    steps = first_begun("a", T0, settle=settle, now=lambda: now)
    try:
        call = next(steps)
        while True:
            params = dict(call.params)
            after, before = (
                datetime.fromisoformat(params[name]) if name in params else None
                for name in ("startedAfter", "startedBefore")
            )
            asked.append((after, before))
            rows = [
                event
                for event in events
                if event.startedAt is None or (event.startedAt > after and (before is None or event.startedAt < before))
            ]
            call = steps.send(Answer(Page[ExecutionEvent](data=rows), server_time))
    except StopIteration as end:
        return end.value, asked


# --- what may be named -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "none is given"),
        ({"event_id": "e", "started_after": T0}, "given are event_id, started_after"),
        ({"event_id": "e", "submission": SUBMISSION.to_json()}, "given are submission, event_id"),
    ],
)
def test_a_run_is_named_in_exactly_one_way(given, words):
    with pytest.raises(InvalidArgumentError) as refused:
        sought(**given)
    assert str(refused.value) == f"Name the run by exactly one of submission, event_id and started_after; {words}."


def test_a_submission_brings_its_agent():
    for agent_id in ("a", None):
        found = sought(agent_id=agent_id, submission=SUBMISSION.to_json())
        assert (found.agent_id, found.submission) == ("a", SUBMISSION)
        assert found.known(T0 + timedelta(hours=1)) == SUBMISSION
        assert found.name == SUBMISSION.name


def test_a_submission_of_another_agent_is_refused():
    with pytest.raises(InvalidArgumentError) as refused:
        sought(agent_id="b", submission=SUBMISSION.to_json())
    assert str(refused.value) == "The submission is one of agent a, not of b. Leave agent_id out."


def test_an_event_is_taken_as_named_and_known_without_a_look():
    found = sought(event_id=" e ")
    assert (found.agent_id, found.event_id) == ("a", "e")
    assert found.name == "agent a, event e"
    known = found.known(T0)
    assert (known.agent_id, known.taken_at, known.event_id) == ("a", T0, "e")


@pytest.mark.parametrize("event_id", ["", "  ", 7, ["e"]])
def test_what_can_be_no_event_is_refused(event_id):
    with pytest.raises(InvalidArgumentError, match="event_id must be the id of an event, got"):
        sought(event_id=event_id)


@pytest.mark.parametrize("agent_id", [None, "", 5])
def test_an_event_without_its_agent_is_refused(agent_id):
    with pytest.raises(InvalidArgumentError):
        sought(agent_id=agent_id, event_id="e")


@pytest.mark.parametrize("moment", [T0, T0.isoformat(), "2026-01-01T10:00:00+01:00", " 2026-01-01T09:00:00Z "])
def test_a_moment_may_be_a_datetime_or_text(moment):
    found = sought(started_after=moment)
    assert found.started_after == T0
    assert found.name == f"agent a, the first that began from {found.started_after} on"
    assert found.known(T0) is None


@pytest.mark.parametrize("moment", ["yesterday", "2026-01-01T09:00:00", datetime(2026, 1, 1), 17])  # noqa: DTZ001
def test_a_moment_without_a_time_zone_is_refused(moment):
    with pytest.raises(InvalidArgumentError) as refused:
        sought(started_after=moment)
    assert "started_after must be a moment with a time zone" in str(refused.value)
    assert str(moment)[:10] in str(refused.value) or "2026, 1, 1" in str(refused.value)


# --- the first run after a moment ------------------------------------------------------------------------------------


def test_the_first_that_began_at_the_moment_or_later_is_found():
    events = begun("third", 20), begun("first", 0), begun("earlier", -0.5), begun("second", 10), begun("pending", None)
    found, asked = look(*events, now=T0 + timedelta(seconds=60))
    assert found.id == "first"
    assert asked == [(T0 - timedelta(seconds=1), None)]


def test_of_two_that_began_together_it_is_always_the_same_one():
    events = begun("b", 3), begun("a", 3)
    for order in (events, events[::-1]):
        assert look(*order, now=T0 + timedelta(seconds=60))[0].id == "a"


def test_it_is_not_told_before_an_earlier_one_would_have_appeared():
    assert look(begun("e", 10), now=T0 + timedelta(seconds=39.9))[0] is None
    assert look(begun("e", 10), now=T0 + timedelta(seconds=40))[0].id == "e"


def test_the_servers_clock_decides_where_it_is_told():
    late, early = T0 + timedelta(seconds=100), T0 + timedelta(seconds=20)
    assert look(begun("e", 10), now=late, server_time=early)[0] is None
    assert look(begun("e", 10), now=early, server_time=late)[0].id == "e"


def test_none_that_began_is_none():
    assert look(begun("earlier", -0.5), begun("pending", None), now=T0 + timedelta(seconds=60)) == (
        None,
        [(T0 - timedelta(seconds=1), None)],
    )


def test_of_a_moment_long_past_its_day_is_listed_first():
    day = timedelta(days=1)
    found, asked = look(begun("late", 5 * 86400), begun("first", 9), now=T0 + 10 * day)
    assert found.id == "first"
    assert asked == [(T0 - timedelta(seconds=1), T0 + day)]


def test_where_nothing_began_on_that_day_all_that_came_later_is_listed():
    day = timedelta(days=1)
    found, asked = look(begun("late", 5 * 86400), now=T0 + 10 * day)
    assert found.id == "late"
    assert asked == [(T0 - timedelta(seconds=1), T0 + day), (T0 - timedelta(seconds=1), None)]


def test_a_moment_of_less_than_two_days_ago_takes_one_listing():
    day = timedelta(days=1)
    assert len(look(now=T0 + 2 * day)[1]) == 1
    assert len(look(now=T0 + 2 * day + timedelta(seconds=1))[1]) == 2
