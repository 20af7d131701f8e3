"""Which event is mine: one sentence per test."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from airflow_provider_agents.api.flow import Response
from airflow_provider_agents.api.models import ExecutionEvent, Page, read_event
from airflow_provider_agents.runs import matching
from airflow_provider_agents.runs.listing import read_listing
from airflow_provider_agents.runs.matching import Found, MatchWindow, Missing, NotYet, SearchCriteria, Several

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
SETTLE, APPEAR = 30.0, 300.0


def at(seconds):
    return T0 + timedelta(seconds=seconds)


def event(name, created=1.0, **fields):
    if created is not None:
        fields.setdefault("createdAt", at(created))
    return ExecutionEvent(id=name, status="RUNNING", **fields)


#: Submitted between 0 and 1 s of the server's clock.
BOUNDS = MatchWindow(
    request_id="req-1",
    event_id=None,
    known_event_ids=frozenset({"old"}),
    server_before=at(0),
    server_after=at(1),
)


def match(events, seconds, window=BOUNDS, server=None, **more):
    """What a look says that was begun at a second; this process began to wait at second 1, when the run was accepted.

    Both clocks are the same, unless the server's is given.
    """
    passed = window.passed(timedelta(seconds=seconds - 1), at(server if server is not None else seconds))
    return matching.match(window, events, passed, settle=SETTLE, appear_within=APPEAR, **more)


def test_nothing_is_inferred_before_settle_has_passed():
    assert match([event("a")], 31.9) == NotYet((event("a"),))


def test_a_single_candidate_is_ours_once_settled():
    assert match([event("a")], 33) == Found(event("a"))


def test_an_event_known_before_is_never_ours():
    assert match([event("old")], 33) == NotYet(settled=True)


def test_an_event_that_bears_our_request_id_is_ours_at_once():
    assert match([event("a"), event("b", requestId="req-1")], 2) == Found(event("b", requestId="req-1"))


def test_an_event_whose_id_is_our_request_id_is_ours_at_once():
    assert match([event("a"), event("req-1")], 2) == Found(event("req-1"))


def test_an_event_that_bears_another_request_id_is_not_ours():
    assert match([event("a", requestId="req-2")], 33) == NotYet(settled=True)


def test_an_event_created_before_the_post_is_not_ours():
    assert match([event("a", created=-5.1)], 33) == NotYet(settled=True)


def test_clocks_of_gateway_and_application_may_differ_by_the_tolerance():
    assert match([event("a", created=-5.0)], 33) == Found(event("a", created=-5.0))


def test_an_event_created_after_the_window_is_ours_only_if_there_is_no_other():
    late = event("late", created=36.1)
    assert match([late, event("a")], 40) == Found(event("a"))
    assert match([late], 40) == Found(late, late=True)


def test_several_that_come_late_together_stay_several():
    late = match([event("c", 90), event("b", 60)], 100)
    assert late == Several((event("b", 60), event("c", 90)), late=True)


def test_after_a_poll_without_candidates_an_event_created_in_time_is_late_too():
    in_time, after = event("in-time", 20), event("after", 60)
    assert match([in_time], 70, was_empty=True) == Found(in_time, late=True)
    assert match([in_time, after], 70, was_empty=True) == Several((in_time, after), late=True)


def test_an_id_makes_a_late_event_certain():
    late = event("late", 90, requestId="req-1")
    assert match([late], 100, was_empty=True) == Found(late)


@pytest.mark.parametrize(("created", "found"), [(1 + APPEAR + 5, True), (1 + APPEAR + 5.1, False)])
@pytest.mark.parametrize("was_empty", [True, False])
def test_what_was_created_after_appear_within_is_never_ours(created, found, was_empty):
    # A process that resumes the wait after a day finds runs of all that day.
    late = event("late", created)
    expected = Found(late, late=True) if found else Missing()
    assert match([late], 86400, was_empty=was_empty) == expected


def test_several_candidates_stay_several_oldest_first():
    assert match([event("b", 3), event("a", 2)], 33) == Several((event("a", 2), event("b", 3)))


def test_an_event_that_does_not_say_when_it_was_created_is_a_candidate():
    assert match([event("a", None), event("b", 2)], 33) == Several((event("b", 2), event("a", None)))


def test_a_missing_creation_is_read_from_the_start():
    started = event("a", None, startedAt=at(-60))
    assert match([started], 33) == NotYet(settled=True)


def test_a_run_without_an_event_is_missing_after_appear_within():
    assert match([], 301.9) == NotYet(settled=True)
    assert match([], 302) == Missing()


@pytest.mark.parametrize(
    ("waited", "server", "passed"),
    [
        # A process that began to wait late: the server's clock says how long ago it was. It counts whole seconds.
        (0, 31.9, 29.9),
        (0, None, 0),
        (30, 20, 29),  # a server's clock that lags, or stands still
        (30, None, 30),
        (5, -600, 4),
        (-600, 40, 38),
    ],
)
def test_the_time_since_acceptance_is_the_longest_that_one_clock_alone_has_seen(waited, server, passed):
    seen = BOUNDS.passed(timedelta(seconds=waited), None if server is None else at(server))
    assert seen == timedelta(seconds=passed)


def test_a_process_that_missed_the_acceptance_infers_nothing_from_another_clock():
    unseen = replace(BOUNDS, server_after=None)
    for waited in (0, SETTLE - 0.1):
        passed = unseen.passed(timedelta(seconds=waited), None)
        found = matching.match(unseen, [event("a")], passed, settle=SETTLE, appear_within=APPEAR)
        assert found == NotYet((event("a"),))


def test_without_the_servers_clock_only_what_was_known_before_is_left_out():
    window = replace(BOUNDS, server_before=None, server_after=None)
    assert match([event("a", -9999), event("old")], 33, window) == Found(event("a", -9999))


def test_a_known_event_id_decides_whatever_else_there_is():
    window = replace(BOUNDS, event_id="mine")
    assert match([event("a")], 33, window) == NotYet(settled=True)
    assert match([event("a"), event("mine", -9999)], 2, window) == Found(event("mine", -9999))


def test_a_look_reaches_back_to_the_post_and_decides_once_settled_on_either_clock():
    criteria = BOUNDS.criteria(SETTLE, at(100))
    assert (criteria.not_before, criteria.ids) == (at(-5), ("req-1",))
    # `Date` counts whole seconds: one more until it is sure.
    decidable_at, decidable_at_server = at(100 + SETTLE + 1), at(1 + SETTLE + 1)
    early = timedelta(seconds=0.1)
    assert criteria.is_decidable(decidable_at, None)
    assert criteria.is_decidable(at(100), decidable_at_server)
    assert not criteria.is_decidable(decidable_at - early, None)
    assert not criteria.is_decidable(decidable_at - early, decidable_at_server - early)


def test_without_the_servers_clock_a_look_reaches_back_forever_and_ours_settles():
    criteria = replace(BOUNDS, request_id=None, server_before=None, server_after=None).criteria(SETTLE, at(1))
    assert (criteria.not_before, criteria.ids, criteria.decidable_at) == (None, (), at(1 + SETTLE))
    assert not criteria.is_decidable(at(SETTLE), at(9999))


def test_where_nothing_is_known_of_when_the_wait_began_every_look_may_decide():
    criteria = BOUNDS.criteria(SETTLE, None)
    assert criteria.is_decidable(at(-9999), None)


def test_where_the_event_is_known_nothing_but_it_decides():
    criteria = replace(BOUNDS, event_id="mine").criteria(SETTLE, at(1))
    assert criteria == SearchCriteria(not_before=at(-5), ids=("mine",), decidable_at=None, is_named=True)


@pytest.mark.parametrize(
    ("fields", "before"),
    [
        ({"createdAt": at(-60), "startedAt": at(-50), "updatedAt": at(-40)}, True),
        ({"createdAt": at(-60), "startedAt": at(-50), "updatedAt": at(1)}, False),
        ({"createdAt": at(-60), "startedAt": at(1)}, False),
        # What follows may be as old, and just young enough.
        ({"createdAt": at(-5), "startedAt": at(-5)}, False),
        ({"createdAt": at(-60)}, False),  # without a start it may stand anywhere
        ({"startedAt": at(-60)}, False),  # and so it may without its last change
        ({"startedAt": at(-60), "completedAt": at(-50)}, True),
    ],
)
def test_a_row_ends_a_look_only_if_every_time_it_bears_is_too_old(fields, before):
    row = ExecutionEvent(id="x", status="COMPLETED", **fields)
    assert matching.is_before(row, BOUNDS.not_before) is before


def test_a_window_ends_one_tolerance_after_the_last_moment_of_an_event():
    in_time, late = event("in-time", created=1 + SETTLE + 5), event("late", created=1 + SETTLE + 5.1)
    assert matching.candidates(BOUNDS, [late, in_time], within=SETTLE) == (in_time,)


def test_those_of_whom_no_creation_is_known_come_last_whatever_the_clock():
    ancient = ExecutionEvent(id="ancient", status="RUNNING", createdAt=datetime(2000, 1, 1, tzinfo=UTC))
    window = replace(BOUNDS, server_before=None, server_after=None)
    seen = matching.candidates(window, [event("unknown", None), event("a"), ancient], within=SETTLE)
    assert [one.id for one in seen] == ["ancient", "a", "unknown"]


# --- how much a look asks for ----------------------------------------------------------------------------------------


def old(name):
    return ExecutionEvent(id=name, status="COMPLETED", createdAt=at(-90), startedAt=at(-80), updatedAt=at(-70))


def listing(window, *pages, wanted=(), pending=()):
    """What a look shows, and what it asks for; pages are those of the agent's listing, newest first."""
    asked, tokens = [], {f"page-{number}": number for number in range(1, len(pages))}
    steps = read_listing("agent", window, wanted)
    try:
        call = next(steps)
        while True:
            params = dict(call.params)
            asked.append(params)
            if params.get("status") == "PENDING":
                page, server = Page[ExecutionEvent](data=list(pending)), at(500)
            else:
                number = tokens.get(params.get("nextToken"), 0)
                following = f"page-{number + 1}" if number + 1 < len(pages) else None
                page = Page[ExecutionEvent](data=list(pages[number]), nextToken=following)
                server = at(501)
            call = steps.send(Response(page, server))
    except StopIteration as end:
        return end.value, asked


def test_a_look_for_a_run_first_asks_for_what_is_pending_and_tells_the_time_of_that():
    seen, asked = listing(BOUNDS, [event("a")], pending=[event("b", None)])
    assert [params.get("status") for params in asked] == ["PENDING", None]
    assert {params["limit"] for params in asked} == {"50"}
    assert {one.id for one in seen.events} == {"a", "b"}
    assert seen.server_time == at(500)


def test_a_look_for_a_run_reads_back_to_the_post_and_no_further():
    seen, asked = listing(BOUNDS, [event("a")], [old("x")], [old("y")])
    assert len(asked) == 3
    assert {one.id for one in seen.events} == {"a", "x"}


def test_a_look_ends_with_the_page_on_which_an_id_decides():
    _, asked = listing(BOUNDS, [event("a")], [event("b", requestId="req-1")], [event("c")])
    assert len(asked) == 3


@pytest.mark.parametrize("way", ["named", "wanted"])
def test_a_read_of_known_events_skips_the_pending_and_ends_with_the_last_of_them(way):
    window = replace(BOUNDS, event_id="mine") if way == "named" else BOUNDS
    wanted = ("mine", "other") if way == "wanted" else ()
    pages = [event("a"), event("other")], [event("mine")], [event("c")]
    seen, asked = listing(window, *pages, wanted=wanted)
    assert [params.get("status") for params in asked] == [None, None]
    assert {one.id for one in seen.events} == {"a", "other", "mine"}
    assert seen.server_time == at(501)


def test_a_look_for_an_event_that_is_gone_ends_where_everything_is_too_old():
    _, asked = listing(replace(BOUNDS, event_id="gone"), [event("a")], [old("x")], [old("y")])
    assert len(asked) == 2


# --- rows that cannot be read ----------------------------------------------------------------------------------------


def unreadable(name="odd", **fields):
    """An event whose row has no status."""
    times = {key: value.isoformat() if isinstance(value, datetime) else value for key, value in fields.items()}
    return read_event({"id": name, **times})


@pytest.mark.parametrize("fields", [{}, {"createdAt": at(1)}, {"createdAt": 7, "startedAt": at(90)}, {"requestId": 7}])
@pytest.mark.parametrize("others", [[], [event("a")]])
def test_a_candidate_that_cannot_be_read_holds_the_verdict(fields, others):
    assert isinstance(match([*others, unreadable(**fields)], 10_000), NotYet)


def test_a_late_event_that_cannot_be_read_holds_the_verdict_too():
    late = unreadable(createdAt=at(200))
    assert match([late], 10_000) == NotYet((late,))


@pytest.mark.parametrize(
    "fields",
    [
        {"createdAt": at(-60)},
        {"createdAt": at(200)},
        {"startedAt": at(-60)},
        {"completedAt": at(-60)},
        {"updatedAt": at(-60)},
        {"requestId": "req-2"},
    ],
)
def test_what_can_be_read_of_a_row_rules_its_event_out(fields):
    assert match([event("a"), unreadable(**fields)], 33) == Found(event("a"))


def test_a_row_that_was_there_before_and_cannot_be_read_is_never_ours():
    assert match([event("a"), unreadable("old")], 33) == Found(event("a"))


def test_an_event_with_our_id_is_ours_though_its_row_cannot_be_read():
    ours = unreadable(requestId="req-1")
    assert match([event("a"), ours], 2) == Found(ours)


def test_an_event_without_an_id_is_a_candidate_whatever_request_it_names():
    nameless = read_event({"status": "RUNNING", "requestId": "req-1"})
    assert match([event("a"), nameless], 10_000) == NotYet((event("a"), nameless))


def test_an_event_without_a_creation_time_may_be_ours_however_late_it_began():
    assert match([event("a"), event("b", None, startedAt=at(5000))], 6000) == Several(
        (event("a"), event("b", None, startedAt=at(5000)))
    )


@pytest.mark.parametrize("odd", [{"startedAt": 7}, {"updatedAt": 7, "completedAt": None}, {"startedAt": []}])
def test_a_row_whose_times_cannot_be_read_never_ends_a_look(odd):
    old = {name: at(-60).isoformat() for name in ("createdAt", "startedAt", "completedAt", "updatedAt")}
    assert matching.is_before(read_event({"id": "x", "status": "RUNNING", **old}), BOUNDS.not_before)
    assert not matching.is_before(read_event({"id": "x", "status": "RUNNING", **old, **odd}), BOUNDS.not_before)


def look_at(pending, listed):
    """What a look makes of the two listings."""
    steps = read_listing("a", replace(BOUNDS, request_id=None))
    next(steps)
    date = at(60)
    steps.send(Response(Page[ExecutionEvent].of({"data": pending}, read_event), date))
    try:
        steps.send(Response(Page[ExecutionEvent].of({"data": listed}, read_event), date))
    except StopIteration as end:
        return {event.id: event for event in end.value.events}
    raise AssertionError("the look goes on")


def test_an_unreadable_row_that_has_not_begun_is_not_old_for_being_behind_old_ones():
    times = dict.fromkeys(("createdAt", "startedAt", "updatedAt"), at(-60).isoformat())
    rows = [{"id": "a", "status": "COMPLETED", **times}, {"id": "odd", "status": None}]
    assert look_at([], rows)["odd"].created_by == at(-60)
    assert look_at(rows[1:], rows)["odd"].created_by is None
    over = {"id": "odd", "status": "COMPLETED", **times}
    assert look_at(rows[1:], [rows[0], over])["odd"].unreadable is None
