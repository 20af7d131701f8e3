"""Listings that a failure interrupts: where they resume, when they begin anew, and what they read in the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_agents.api.endpoints import list_events
from airflow_provider_agents.api.errors import (
    AuthenticationError,
    NoAnswerError,
    NotSentError,
    PermissionDeniedError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
)
from airflow_provider_agents.api.flow import PageCursor, Response, paginate
from airflow_provider_agents.api.models import Page
from airflow_provider_agents.polling.interrupted import MOST_FAILURES, MOST_SECONDS, InterruptedListings
from airflow_provider_agents.polling.subscriptions import ClockReading

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
LIMIT = RateLimitedError("429")
BLIPS = [LIMIT, NotSentError("no route"), NoAnswerError("lost"), ServerError("503", status_code=503)]
REFUSED = RequestRejectedError("400", status_code=400)


@dataclass
class Reading:
    """A walk that notes what it has read."""

    at: ClockReading
    rows: list = field(default_factory=list)
    place: PageCursor = field(default_factory=PageCursor)

    @property
    def pages(self):
        return self.place.pages


class Listing:
    """A listing of numbered pages, one row each; what it is asked for, and how far it was read."""

    def __init__(self, pages):
        self.count, self.asked, self.interrupted, self.clock = pages, [], InterruptedListings(), 0.0

    def answer(self, call):
        number = int(dict(call.params).get("nextToken", 0))
        self.asked.append(number)
        more = str(number + 1) if number + 1 < self.count else None
        return Response(Page.model_construct(data=(number,), nextToken=more), T0)

    def go(self, *failures, is_of_use=lambda _: True):
        """Follow a walk. A failure is raised in place of the page at its turn; None stands for an answer."""

        def steps(reading):
            def stop(answer):
                reading.rows += answer.value.data
                return False

            return paginate(list_events(), stop, cursor=reading.place)

        at = ClockReading(self.clock, T0)
        going = self.interrupted.resume("all", at, lambda: Reading(at), steps, is_of_use=is_of_use)
        turns = iter(failures)
        try:
            call = next(going)
            while True:
                failure = next(turns, None)
                call = going.throw(failure) if failure is not None else going.send(self.answer(call))
        except StopIteration as end:
            return end.value


def interrupted(pages=5, at=3, error=LIMIT):
    """A listing over which a walk got as far as some page."""
    listing = Listing(pages)
    with pytest.raises(type(error)):
        listing.go(*[None] * at, error)
    listing.asked.clear()
    return listing


@pytest.mark.parametrize("error", [*BLIPS, AuthenticationError("401", status_code=401)], ids=repr)
def test_a_walk_resumes_at_the_page_where_it_failed(error):
    listing = interrupted(error=error)
    assert listing.interrupted.is_under_way("all")
    assert listing.go().rows == [0, 1, 2, 3, 4]
    assert listing.asked == [3, 4]
    assert not listing.interrupted.is_under_way("all")


@given(
    pages=st.integers(1, 12),
    failures=st.lists(st.lists(st.none() | st.just(LIMIT) | st.just(NotSentError("no route")), max_size=8), max_size=8),
)
def test_however_often_a_walk_is_interrupted_it_reads_each_page_once(pages, failures):
    listing, reading = Listing(pages), None
    for some in failures:
        try:
            reading = listing.go(*some)
        except (RateLimitedError, NotSentError):
            continue
        break
    if reading is None:
        reading = listing.go()
    assert reading.rows == list(range(pages)) == listing.asked


@pytest.mark.parametrize("error", [REFUSED, PermissionDeniedError("403", status_code=403)], ids=repr)
def test_a_token_that_is_refused_later_starts_the_walk_anew(error):
    listing = interrupted()
    assert listing.go(error).rows == [0, 1, 2, 3, 4]


def test_a_listing_that_is_refused_anew_is_refused():
    listing = interrupted()
    with pytest.raises(RequestRejectedError):
        listing.go(REFUSED, REFUSED)
    assert not listing.interrupted.is_under_way("all")


def test_a_refusal_in_the_middle_of_a_walk_is_not_asked_for_again():
    listing = interrupted(pages=8)
    with pytest.raises(RequestRejectedError):
        listing.go(None, REFUSED)
    assert not listing.interrupted.is_under_way("all")


@pytest.mark.parametrize(("error", "resumes"), list(zip(BLIPS, [True, True, False, False], strict=True)))
def test_a_page_at_which_the_server_fails_again_and_again_is_left(error, resumes):
    listing = interrupted(error=error)
    for _ in range(MOST_FAILURES - 1):
        with pytest.raises(type(error)):
            listing.go(error)
    assert listing.go().rows == [0, 1, 2, 3, 4]
    assert (0 in listing.asked) != resumes


def test_progress_forgives_failures():
    listing = interrupted(pages=20, error=BLIPS[3])
    for _ in range(10):
        with pytest.raises(ServerError):
            listing.go(None, BLIPS[3])
    assert listing.go().rows == list(range(20))
    assert 0 not in listing.asked


@pytest.mark.parametrize(("seconds", "resumes"), [(MOST_SECONDS, True), (MOST_SECONDS + 1, False)])
def test_an_old_walk_is_not_resumed(seconds, resumes):
    listing = interrupted()
    listing.clock = seconds
    listing.interrupted.expire(ClockReading(seconds, T0))
    assert listing.interrupted.is_under_way("all") == resumes
    assert listing.go().rows == [0, 1, 2, 3, 4]
    assert (0 in listing.asked) != resumes


def test_a_walk_whose_end_nothing_waits_for_is_not_resumed():
    listing = interrupted()
    assert listing.go(is_of_use=lambda reading: reading.at.monotonic > 0.0).rows == [0, 1, 2, 3, 4]
    assert listing.asked[0] == 0


def test_a_walk_that_has_read_nothing_begins_when_it_is_read():
    listing = Listing(2)
    with pytest.raises(RateLimitedError):
        listing.go(LIMIT)
    listing.clock = 60.0
    assert listing.go().at.monotonic == 60.0
