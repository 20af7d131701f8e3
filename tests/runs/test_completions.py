"""What a tracker makes of listings that are written here: whose end it reports, and what it keeps over a restart."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from driving import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_agents.api.models import ExecutionEvent, read_event
from airflow_provider_agents.runs.completions import (
    MOST_BYTES_AT_ONCE,
    MOST_RUNS_AT_ONCE,
    Checkpoint,
    CompletionTracker,
)
from airflow_provider_agents.runs.listing import Listing
from airflow_provider_agents.runs.matching import is_young

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
SETTLE = 10.0


def at(seconds):
    return T0 + timedelta(seconds=seconds)


def row(name, status="RUNNING", *, created=1.0, started=2.0, updated=None, ended=None, agent_id="a"):
    times = {"createdAt": created, "startedAt": started, "updatedAt": updated, "completedAt": ended}
    known = {name: at(seconds) for name, seconds in times.items() if seconds is not None}
    return ExecutionEvent(id=name, status=status, agentId=agent_id, **known)


def tracker(**checkpoint):
    return CompletionTracker("a", SETTLE, Checkpoint(watermark=at(0), **checkpoint))


def unreadable(name, **times):
    """An event whose row has no status, and the times that are given."""
    return read_event({"id": name, **{name: at(seconds).isoformat() for name, seconds in times.items()}})


def apply_listing(book, *events, seconds=5.0):
    book.apply_listing(Listing(events, at(seconds)), at(seconds))
    return [event.id for event in book.ended()]


def restarted(book):
    return CompletionTracker("a", SETTLE, Checkpoint.from_json(json.loads(json.dumps(book.checkpoint().to_json()))))


def test_a_reported_run_is_not_reported_again_after_a_restart_though_still_listed():
    book = tracker()
    over = row("e", "COMPLETED", ended=4.0)
    assert apply_listing(book, over) == ["e"]
    again = restarted(book)
    assert again.checkpoint().emitted == ("e",)
    assert apply_listing(again, over, seconds=6.0) == []
    assert apply_listing(again, over, seconds=7.0) == []


def test_what_ended_between_two_looks_is_not_told_again_either():
    book = tracker()
    apply_listing(book, row("e"))
    book.apply_event(row("e", "COMPLETED", ended=6.0, updated=6.0))
    assert [event.id for event in book.ended()] == ["e"]
    for one in (restarted(book), book):
        assert apply_listing(one, row("e", "COMPLETED", ended=6.0, updated=6.0), seconds=7.0) == []


def test_what_is_followed_is_found_again_after_a_restart_by_all_that_was_known_of_it():
    book = tracker()
    apply_listing(book, row("begun", agent_id="b"), row("queued", "PENDING", started=None, created=3.0))
    checkpoint = book.checkpoint().to_json()
    assert checkpoint["open_runs"] == {
        "begun": {"agent_id": "b", "started_at": "2026-01-01T09:00:02Z", "created_at": "2026-01-01T09:00:01Z"},
        "queued": {"agent_id": "a", "created_at": "2026-01-01T09:00:03Z"},
    }
    found = {event.id: event for event in restarted(book).active}
    assert [(event.status, event.agentId) for event in found.values()] == [("RUNNING", "b"), ("PENDING", "a")]
    assert (found["begun"].startedAt, found["begun"].createdAt) == (at(2), at(1))
    assert (found["queued"].startedAt, found["queued"].createdAt) == (None, at(3))


def test_a_followed_run_is_told_however_old_it_is_by_then():
    book = tracker()
    apply_listing(book, row("e"))
    apply_listing(book, seconds=5000.0)
    assert apply_listing(book, row("e", "FAILED", ended=4990.0), seconds=5005.0) == ["e"]


def test_a_run_that_was_over_long_before_is_not_told():
    book = tracker()
    apply_listing(book, seconds=5000.0)
    assert apply_listing(book, row("old", "COMPLETED", ended=3.0), seconds=5005.0) == []


def test_an_answer_that_lags_behind_does_not_take_a_state_back():
    book = tracker()
    newer = row("e", updated=9.0)
    apply_listing(book, newer, seconds=10.0)
    apply_listing(book, row("e", "PENDING", updated=3.0, started=None), seconds=11.0)
    assert list(book.active) == [newer]


def test_only_what_is_followed_is_changed_between_two_looks():
    book = tracker()
    apply_listing(book, row("e"))
    book.apply_event(row("stranger", "COMPLETED", ended=6.0))
    assert book.ended() == []
    book.apply_event(row("e", updated=8.0))
    assert [event.updatedAt for event in book.active] == [at(8)]


def test_a_complete_listing_is_reported_once():
    book = tracker()
    assert not book.was_listed()
    apply_listing(book)
    apply_listing(book, seconds=6.0)
    assert book.was_listed()
    assert not book.was_listed()
    assert not CompletionTracker.from_now("a", SETTLE, at(0)).was_listed()


def test_a_row_that_cannot_be_read_is_followed_until_it_can_be():
    book = tracker()
    old = unreadable("long-over", createdAt=-50.0, startedAt=-49.0)
    assert apply_listing(book, unreadable("e", createdAt=1.0), old) == []
    assert [event.id for event in book.active] == ["e"]
    assert apply_listing(
        book, row("e", "COMPLETED", ended=6.0), row("long-over", "COMPLETED", created=-50.0), seconds=7.0
    ) == ["e"]
    apply_listing(book, unreadable("e", createdAt=1.0), seconds=8.0)
    assert list(book.active) == []


@pytest.mark.parametrize("time", ["startedAt", "completedAt", "updatedAt"])
def test_an_old_row_is_known_by_any_of_its_times(time):
    book = tracker()
    apply_listing(book, unreadable("e", **{time: -1.0}))
    assert list(book.active) == []


def test_a_followed_run_whose_row_becomes_unreadable_is_followed_as_it_was_known():
    book = tracker()
    apply_listing(book, row("e", agent_id="b"))
    apply_listing(restarted(book), unreadable("e"))
    apply_listing(book, unreadable("e"), seconds=30.0)
    known = book.checkpoint().open_runs["e"]
    assert (known.agent_id, known.created_at, known.started_at) == ("b", at(1), at(2))


def test_a_row_without_an_id_is_not_followed():
    book = tracker()
    apply_listing(book, read_event({"id": 7, "status": "RUNNING", "createdAt": at(1).isoformat()}))
    assert list(book.active) == []
    active = [row("e"), read_event({"status": "RUNNING"})]
    assert [event.id for event in CompletionTracker.from_now("a", SETTLE, at(0), active).active] == ["e"]


def test_what_is_told_is_forgotten_once_no_look_can_show_it():
    book = tracker()
    apply_listing(book, row("e", "COMPLETED", ended=4.0))
    apply_listing(book, seconds=18.9)
    assert book.checkpoint().emitted == ("e",)
    apply_listing(book, seconds=19.1)
    assert book.checkpoint().emitted == ()
    assert book.checkpoint().watermark == at(4.1)


def test_the_floor_never_goes_back():
    book = tracker()
    apply_listing(book, seconds=100.0)
    apply_listing(book, seconds=50.0)
    assert book.checkpoint().watermark == at(85) == book.criteria.not_before


def test_ends_are_told_in_their_order():
    rows = [
        row("none", "FAILED", ended=None),
        row("b", "COMPLETED", ended=4.0),
        row("a", "COMPLETED", ended=4.0),
        row("first", "COMPLETED", ended=3.0),
    ]
    assert apply_listing(tracker(), *rows) == ["first", "a", "b", "none"]


def ids(events):
    return [event.id for event in events]


def over(name, number, **fields):
    """A run that was created and has ended some seconds after T0; its row says so in JSON, as the API does."""
    times = {"createdAt": number, "startedAt": number, "completedAt": number + 1}
    known = {key: at(seconds).isoformat() for key, seconds in times.items()}
    return ExecutionEvent.model_validate({"id": name, "status": "COMPLETED", "agentId": "a", **known, **fields})


def test_a_run_that_moves_in_the_listing_before_it_is_read_is_reported():
    # In the order of the last change it went from a page still to be read to one that had been: its creation lies
    # before the watermark by now, and its end does not.
    book = tracker()
    apply_listing(book, seconds=100.0)
    moved = row("moved", "COMPLETED", created=20.0, started=21.0, ended=101.0, updated=101.0)
    assert apply_listing(book, moved, seconds=105.0) == ["moved"]
    assert apply_listing(book, moved, seconds=110.0) == []
    assert apply_listing(restarted(book), moved, seconds=115.0) == []


def test_a_row_that_names_no_time_is_reported_once_as_long_as_it_is_shown():
    book = tracker()
    nameless = ExecutionEvent(id="e", status="FAILED")
    assert apply_listing(book, nameless) == ["e"]
    for seconds in range(10, 200, 5):
        assert apply_listing(book, nameless, seconds=float(seconds)) == []
    assert apply_listing(restarted(book), nameless, seconds=205.0) == []


@pytest.mark.parametrize("later", [0.0, 1000.0])
def test_a_watch_from_now_reports_what_ends_from_then_on_however_late_the_first_poll(later):
    book = CompletionTracker.from_now("a", SETTLE, at(100), [row("on")])
    book = restarted(book)
    rows = [
        row("before", "COMPLETED", created=95.0, started=95.0, ended=99.0),
        row("after", "COMPLETED", created=99.0, started=99.0, ended=100.5),
        row("on", "COMPLETED", ended=101.0),
        row("timeless", "FAILED", created=None, started=None),
    ]
    assert apply_listing(book, *rows, seconds=102.0 + later) == ["after", "on"]
    assert apply_listing(restarted(book), *rows, seconds=103.0 + later) == []


def test_only_the_wanted_ends_are_reported():
    book = CompletionTracker("a", SETTLE, Checkpoint(watermark=at(0)), statuses=["FAILED"])
    rows = [row("good", "COMPLETED", ended=3.0), row("bad", "FAILED", ended=4.0)]
    assert apply_listing(book, *rows) == ["bad"]
    assert set(book.checkpoint().emitted) == {"good", "bad"}


def test_what_ended_is_returned_in_bounded_parts_the_oldest_first():
    book = tracker()
    many = [over(f"{number:05}", number / 10) for number in range(2 * MOST_RUNS_AT_ONCE + 1)]
    book.apply_listing(Listing(tuple(reversed(many)), at(110)), at(110))
    parts = []
    while book.has_ended:
        parts.append(ids(book.ended()))
    assert [len(part) for part in parts] == [MOST_RUNS_AT_ONCE, MOST_RUNS_AT_ONCE, 1]
    assert [name for part in parts for name in part] == ids(many)


@pytest.mark.parametrize("letters", [1, 1000, MOST_BYTES_AT_ONCE // 3, MOST_BYTES_AT_ONCE, 3 * MOST_BYTES_AT_ONCE])
def test_a_part_is_bounded_in_bytes_and_holds_one_run_at_least(letters):
    book = tracker()
    many = [over(f"{number:05}", number / 10, error="x" * letters) for number in range(6 if letters > 1000 else 600)]
    book.apply_listing(Listing(tuple(many), at(70)), at(70))
    found = []
    while book.has_ended:
        part = book.ended()
        size = len(json.dumps([event.to_json() for event in part]))
        assert part
        # A tenth for how timestamps and commas are written.
        assert len(part) == 1 or size <= 1.1 * MOST_BYTES_AT_ONCE
        found += ids(part)
    assert found == ids(many)


@settings(max_examples=examples(200), deadline=None)
@given(data=st.data())
def test_a_cursor_names_nothing_as_reported_that_was_not_returned(data):
    """Whatever was returned by then: who resumes at the cursor is given the rest, and nothing twice."""
    running = [row(f"long-{n}", created=1.0 + n, started=1.0 + n) for n in range(data.draw(st.integers(0, 3)))]
    book = tracker()
    assert apply_listing(book, *running, seconds=50.0) == []
    ends = [
        row(event.id, "COMPLETED", created=event.createdAt.second, started=event.startedAt.second, ended=400.0)
        for event in running
    ]
    count = data.draw(st.integers(0, 1300))
    many = [over(f"{number:05}", 50 + number / 4) for number in range(count)]
    for event in ends:
        book.apply_event(event)
    book.apply_listing(Listing((*many, *ends), at(500)), at(500))
    returned = []
    for _ in range(data.draw(st.integers(0, 4))):
        returned += ids(book.ended())
    again = restarted(book)
    for event in ends:
        again.apply_event(event)
    again.apply_listing(
        Listing(tuple(event for event in (*many, *ends) if is_young(event, again.criteria.not_before)), at(505)),
        at(505),
    )
    rest = []
    while again.has_ended:
        rest += ids(again.ended())
    assert sorted(returned + rest) == sorted(ids([*many, *ends]))
    # However many were returned, the cursor does not grow with them.
    assert len(book.checkpoint().emitted) <= 300


def test_a_cursor_of_nothing_is_small():
    assert tracker().checkpoint().to_json() == {"watermark": "2026-01-01T09:00:00Z"}


def test_a_tracker_from_now_follows_active_runs_and_reaches_back_for_late_records():
    book = CompletionTracker.from_now("a", SETTLE, at(100), [row("on"), row("over", "COMPLETED", ended=50.0)])
    assert [event.id for event in book.active] == ["on"]
    assert book.criteria.not_before == at(100 - SETTLE - 5)


# --- a platform that does not tell its clock --------------------------------------------------------------------------


def untimed_look(book, *events, local):
    book.apply_listing(Listing(events, None), at(local))
    return [event.id for event in book.ended()]


@pytest.mark.parametrize(
    ("created", "local", "not_before"),
    [
        (100, 110, 85),
        (100, 700, 85),  # our clock is ahead: runs may still be created at what it says
        (100, -500, 0),  # our clock is behind: the watermark may lag
        (100, 50, 35),
        (86400, 110, 95),  # a stamp that cannot be true
        (None, 700, 0),  # no event says how late it is
    ],
)
def test_without_the_servers_clock_the_floor_is_not_ahead_of_events_and_our_clock(created, local, not_before):
    book = tracker()
    untimed_look(book, *([] if created is None else [row("e", created=created, started=None)]), local=local)
    assert book.checkpoint().watermark == at(not_before) == book.criteria.not_before


@pytest.mark.parametrize("skew", [-600.0, 0.0, 600.0])
def test_without_the_servers_clock_each_run_is_reported_once_whatever_ours_says(skew):
    book, reported = tracker(), []
    for number in range(100):
        seconds = 10.0 * number
        # Each run ends within ten seconds, and a look shows those of the last minute.
        recent = [
            row(f"e{began}", "COMPLETED", created=10.0 * began, started=10.0 * began, ended=10.0 * began + 5)
            for began in range(max(0, number - 6), number)
        ]
        reported += untimed_look(book, *recent, local=seconds + skew)
    assert sorted(reported) == sorted(f"e{began}" for began in range(99))


@pytest.mark.parametrize("local", [-600.0, 110.0, 700.0])
def test_without_the_servers_clock_a_tracker_from_now_loses_and_repeats_nothing(local):
    over = row("over", "COMPLETED", created=90.0, ended=99.0)
    book = CompletionTracker.from_now("a", SETTLE, None, [row("on", created=80.0), over], local_now=at(local))
    soon = row("soon", "COMPLETED", created=101.0, started=101.0, ended=103.0)
    assert untimed_look(book, over, soon, row("on", "FAILED", created=80.0, ended=104.0), local=local + 5) == [
        "soon",
        "on",
    ]


def test_a_tracker_from_now_without_any_clock_or_event_reports_the_very_first_run():
    book = CompletionTracker.from_now("a", SETTLE, None, [], local_now=at(3600))
    first = row("first", "COMPLETED", created=5.0, started=5.0, ended=6.0)
    assert untimed_look(book, first, local=3605) == ["first"]


def test_a_tracker_needs_one_clock_to_begin_with():
    with pytest.raises(ValueError, match="server_now and local_now"):
        CompletionTracker.from_now("a", SETTLE, None)
