"""Which run of an agent is the first one after a moment, or in an interval."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from driving import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from own_time import keep_time

from airflow_provider_agents.api.flow import Response
from airflow_provider_agents.api.models import ExecutionEvent, Page, read_event
from airflow_provider_agents.runs.first_run import CLOCK_ALLOWANCE, FirstRunSearch, StartedRuns, list_started
from airflow_provider_agents.runs.matching import Missing

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)


def begun(name, seconds, status="RUNNING"):
    started = None if seconds is None else T0 + timedelta(seconds=seconds)
    return ExecutionEvent(id=name, status=status, createdAt=T0, startedAt=started)


def listing(*events, after=T0, before=None, now=T0, server_time=None):
    """What a look shows, and the moments between which it asked; each answer holds what lies between."""
    asked = []
    keep_time(lambda: now)
    steps = list_started("a", after, before)
    try:
        call = next(steps)
        while True:
            params = dict(call.params)
            start, end = (
                datetime.fromisoformat(params[name]) if name in params else None
                for name in ("startedAfter", "startedBefore")
            )
            asked.append((start, end))
            rows = [
                event
                for event in events
                if event.startedAt is None or (event.startedAt > start and (end is None or event.startedAt < end))
            ]
            call = steps.send(Response(Page[ExecutionEvent](data=rows), server_time))
    except StopIteration as end:
        return end.value, asked


def ids(seen):
    return [event.id for event in seen.events]


def at(seconds):
    return T0 + timedelta(seconds=seconds)


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_those_that_began_at_the_moment_or_later_are_shown_oldest_first():
    events = begun("third", 20), begun("first", 0), begun("earlier", -0.5), begun("second", 10), begun("pending", None)
    seen, asked = listing(*events, now=at(60))
    assert ids(seen) == ["first", "second", "third"]
    assert asked == [(at(-1), None)]


def test_those_that_began_at_the_end_of_an_interval_or_later_are_another_intervals():
    events = begun("in", 59.9), begun("at the end", 60), begun("late", 60.5)
    seen, asked = listing(*events, before=at(60), now=at(100))
    assert ids(seen) == ["in"]
    # The page does not say whether its bounds are inclusive.
    assert asked == [(at(-1), at(61))]


def test_of_two_that_began_together_it_is_always_the_same_one():
    events = begun("b", 3), begun("a", 3)
    for order in (events, events[::-1]):
        assert ids(listing(*order)[0]) == ["a", "b"]


DAY = timedelta(days=1)


@pytest.mark.parametrize("before", [None, T0 + 30 * DAY])
def test_of_a_moment_long_past_its_day_is_listed_first(before):
    seen, asked = listing(begun("late", 5 * 86400), begun("first", 9), before=before, now=T0 + 40 * DAY)
    assert ids(seen) == ["first"]
    assert asked == [(at(-1), T0 + DAY)]


@pytest.mark.parametrize(("before", "end"), [(None, None), (T0 + 30 * DAY, T0 + 30 * DAY + timedelta(seconds=1))])
def test_where_nothing_began_on_that_day_all_that_came_later_is_listed(before, end):
    seen, asked = listing(begun("late", 5 * 86400), before=before, now=T0 + 40 * DAY)
    assert ids(seen) == ["late"]
    assert asked == [(at(-1), T0 + DAY), (at(-1), end)]


def test_a_time_within_two_days_and_an_interval_within_a_day_take_one_listing():
    assert len(listing(now=T0 + 2 * DAY)[1]) == 1
    assert len(listing(now=T0 + 2 * DAY + timedelta(seconds=1))[1]) == 2
    assert len(listing(before=T0 + DAY, now=T0 + 40 * DAY)[1]) == 1


# --- which run is the first -------------------------------------------------------------------------------------------


class Search:
    """A process that looks now and then, on a clock of its own and with or without a platform that tells its clock.

    Args:
        skew: seconds by which the platform's clock is ahead of the process's.
        date: whether the platform tells its clock.
    """

    def __init__(self, *, before=None, skew=0.0, date=True):
        self.before, self.skew, self.date = before, skew, date
        self.first = FirstRunSearch(before, 30.0)

    def listing(self, *events, seconds):
        """What is known after a look at this second of the platform's clock."""
        seen, _ = listing(
            *events,
            before=self.before,
            now=at(seconds - self.skew),
            server_time=at(seconds) if self.date else None,
        )
        found = self.first.apply_listing(seen)
        return found.id if isinstance(found, ExecutionEvent) else found


def test_by_the_platforms_clock_the_first_run_waits_until_an_earlier_one_would_show():
    # Five seconds more, since the clock of `Date` may be another one than that of `startedAt`.
    for skew in (-600.0, 0.0, 600.0):
        assert Search(skew=skew).listing(begun("e", 10), seconds=44.9) is None
        assert Search(skew=skew).listing(begun("e", 10), seconds=45) == "e"


@pytest.mark.parametrize("skew", [-600.0, -40.0, 0.0, 40.0, 600.0])
def test_without_the_platforms_clock_a_process_waits_settle_after_the_first_run(skew):
    search = Search(skew=skew, date=False)
    assert search.listing(seconds=0) is None
    assert search.listing(begun("e", 10), seconds=12) is None
    assert search.listing(begun("e", 10), seconds=41.9) is None
    # One that began before may have appeared since, and needs no further wait.
    assert search.listing(begun("e", 10), begun("earlier", 5), seconds=42) == "earlier"


def test_without_the_platforms_clock_what_its_rows_say_of_the_time_counts():
    over = begun("e", 10, "COMPLETED").model_copy(update={"completedAt": at(50)})
    assert Search(date=False, skew=-600.0).listing(over, seconds=60) == "e"
    soon = begun("e", 10, "COMPLETED").model_copy(update={"completedAt": at(39)})
    assert Search(date=False, skew=-600.0).listing(soon, seconds=60) is None


@pytest.mark.parametrize("skew", [-600.0, 0.0, 600.0])
def test_an_interval_without_a_run_is_over_once_none_can_appear_in_it(skew):
    search = Search(before=at(60), skew=skew)
    assert search.listing(begun("next", 60), seconds=94.9) is None
    assert search.listing(begun("next", 60), seconds=95) == Missing()
    assert Search(before=at(60), skew=skew).listing(seconds=10 * 86400) == Missing()


def test_without_the_platforms_clock_an_interval_ends_by_ours_with_some_room():
    allowance = CLOCK_ALLOWANCE.total_seconds()
    search = Search(before=at(60), date=False)
    assert search.listing(seconds=60 + 30 + allowance - 1) is None
    assert search.listing(seconds=60 + 30 + allowance) == Missing()


def test_a_run_at_the_end_of_its_interval_is_found_after_that():
    search = Search(before=at(60))
    assert search.listing(seconds=70) is None
    assert search.listing(begun("e", 59), seconds=80) is None
    assert search.listing(begun("e", 59), seconds=95) == "e"


def test_an_interval_with_a_run_is_not_empty_because_a_replica_lags():
    search = Search(before=at(60), date=False)
    assert search.listing(begun("e", 59), seconds=62) is None
    assert search.listing(seconds=86400) is None


def test_an_interval_without_an_end_is_never_over():
    assert Search().listing(begun("pending", None), seconds=10**8) is None


def test_a_row_that_hides_when_its_run_began_keeps_an_interval_from_being_empty():
    odd = read_event({"id": "odd", "status": "RUNNING", "startedAt": "at nine"})
    assert Search(before=at(60)).listing(odd, seconds=1000) is None


@settings(max_examples=examples(200), deadline=None)
@given(data=st.data(), skew=st.sampled_from([-600.0, -60.0, 0.0, 60.0, 600.0]), date=st.booleans())
def test_the_first_run_of_an_interval_is_found_and_only_an_empty_one_has_none(data, skew, date):
    # Each run begins at a second and is shown some seconds later, by every look from then on.
    runs = data.draw(st.lists(st.tuples(st.integers(-30, 200), st.floats(0, 29.9)), max_size=6))
    search, seconds = Search(before=at(100), skew=skew, date=date), 0.0
    inside = sorted((began, f"{number}") for number, (began, _) in enumerate(runs) if 0 <= began < 100)
    found = None
    while found is None:
        seconds += data.draw(st.sampled_from([1.0, 5.0, 40.0, 300.0]))
        shown = [begun(f"{number}", began) for number, (began, lag) in enumerate(runs) if began + lag <= seconds]
        found = search.listing(*shown, seconds=seconds)
        # Known at the latest one look after `settle`; of none, when the clock that is farthest off says so.
        assert seconds <= 100 + 2 * CLOCK_ALLOWANCE.total_seconds() + 600
    assert found == (inside[0][1] if inside else Missing())


# --- where nothing else starts the agent ---


def started(*events, seconds):
    return StartedRuns(events, True, at(seconds), at(seconds), at(seconds), at(seconds - 5))


def test_the_first_run_of_an_interval_is_told_when_it_has_ended():
    search = FirstRunSearch(None, 30.0, exclusive=True)
    assert search.apply_listing(started(begun("e", 1, "RUNNING"), seconds=5)) is None
    done = begun("e", 1, "COMPLETED")
    assert search.apply_listing(started(done, seconds=10)) == done


def test_a_second_run_within_settle_ends_what_exclusive_allows_for_the_first():
    search = FirstRunSearch(None, 30.0, exclusive=True)
    done, second = begun("e", 1, "COMPLETED"), begun("f", 4, "RUNNING")
    assert search.apply_listing(started(done, second, seconds=6)) is None
    assert search.broke_exclusive
    assert search.apply_listing(started(done, seconds=10)) is None
    assert search.apply_listing(started(done, second, seconds=37)) == done


# --- rows that cannot be read ----------------------------------------------------------------------------------------


def unreadable(**row):
    return read_event({"status": None, "createdAt": T0.isoformat()} | row)


def test_a_row_that_cannot_be_read_counts_if_its_begin_can_be():
    odd = unreadable(id="odd", startedAt=at(1).isoformat())
    assert Search().listing(begun("a", 2), odd, seconds=60) == "odd"


@pytest.mark.parametrize("started_at", [None, 7, at(-0.5).isoformat()])
@pytest.mark.parametrize("event_id", ["odd", None])
def test_a_row_whose_begin_is_not_known_or_before_the_moment_hides_no_first_run(started_at, event_id):
    assert Search().listing(begun("a", 2), unreadable(id=event_id, startedAt=started_at), seconds=60) == "a"


def test_a_first_run_without_an_id_is_waited_for():
    odd = unreadable(id=None, startedAt=at(1).isoformat())
    assert Search().listing(begun("a", 2), odd, seconds=60) is None
