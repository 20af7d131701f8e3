"""Which failures are repeated, when, and for how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from own_time import keep_time

from airflow_provider_agents.api.errors import (
    AuthenticationError,
    InvalidArgumentError,
    InvalidConnectionError,
    MissingConnectionError,
    NoAnswerError,
    NotSentError,
    PaginationError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
    UnreadableAnswerError,
)
from airflow_provider_agents.api.retry import RetryWindow, back_off, started_nothing

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)


class Scene:
    """A caller that tries again and again, on a clock of its own."""

    def __init__(self, seconds=120.0):
        self.time, self.said = T0, []
        keep_time(lambda: self.time)
        self.window = RetryWindow(seconds, warn=self.said.append)

    def fail(self, error=None):
        pause = self.window.pause_after(error or NoAnswerError("No answer."))
        self.time += timedelta(seconds=pause)
        return pause

    def fail_until_the_end(self):
        while True:
            self.fail()

    def passed(self):
        return (self.time - T0).total_seconds()


@pytest.mark.parametrize(
    ("error", "nothing"),
    [
        (NotSentError("x"), True),
        (RateLimitedError("x"), True),
        (InvalidArgumentError("x"), True),
        (InvalidConnectionError("x"), True),
        (MissingConnectionError("x"), True),
        (AuthenticationError("x", status_code=401), True),
        (RequestRejectedError("x", status_code=307), True),
        (RequestRejectedError("x", status_code=409), True),
        (UnreadableAnswerError("x", status_code=422), True),
        (ServerError("x", status_code=408), False),
        (ServerError("x", status_code=425), False),
        (ServerError("x", status_code=500), False),
        (RequestRejectedError("x", status_code=501), False),
        (RequestRejectedError("x", status_code=505), False),
        (UnreadableAnswerError("x", status_code=200), False),
        (UnreadableAnswerError("x", status_code=408), False),
        (NoAnswerError("x"), False),
        (PaginationError("x"), False),
    ],
)
def test_only_a_request_that_was_refused_or_never_sent_has_certainly_started_nothing(error, nothing):
    assert started_nothing(error) == nothing


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1), (2, 2), (5, 16), (6, 20), (2000, 20)])
def test_a_pause_doubles_up_to_a_bound_and_is_drawn_from_its_upper_half(failures, seconds):
    pauses = [back_off(failures) for _ in range(200)]
    assert seconds / 2 <= min(pauses) < max(pauses) <= seconds


def test_a_pause_whose_first_is_longer_than_the_bound_does_not_grow():
    assert back_off(1, first=300.0, longest=120.0, jitter=lambda: 1.0) == 300.0
    assert back_off(9, first=300.0, longest=120.0, jitter=lambda: 1.0) == 300.0


@pytest.mark.parametrize("seconds", [0.5, 20.0, 120.0])
def test_a_row_of_failures_ends_with_a_last_try_at_the_end_of_the_window(seconds):
    scene = Scene(seconds)
    with pytest.raises(NoAnswerError, match=f"No answer. Every try of the last {seconds:g} seconds has failed."):
        scene.fail_until_the_end()
    assert scene.passed() == pytest.approx(seconds)


def test_a_success_ends_the_row():
    scene = Scene()
    for _ in range(200):
        scene.fail()
        scene.window.succeeded()
    assert scene.passed() > 120.0


def test_a_pause_is_as_long_as_the_server_asks_for():
    assert Scene().fail(RateLimitedError("x", retry_after_seconds=77.0)) == 77.0


def test_a_pause_that_does_not_fit_ends_the_tries_and_keeps_the_type():
    scene = Scene()
    scene.fail(RateLimitedError("x", retry_after_seconds=50.0))
    with pytest.raises(ServerError, match="pause of 71 seconds, and this task tries for 70 more") as caught:
        scene.fail(ServerError("x", status_code=503, retry_after_seconds=71.0))
    assert (caught.value.status_code, caught.value.retry_after_seconds) == (503, 71.0)


def test_a_text_that_ends_in_the_words_of_a_server_is_ended_before_more_is_said():
    scene = Scene(1.0)
    scene.fail(NoAnswerError("The server says: busy"))
    assert scene.said == ["The server says: busy. Trying again until 09:00:01 UTC."]


def test_the_first_failure_is_logged_and_then_one_a_minute():
    scene = Scene(300.0)
    with pytest.raises(NoAnswerError):
        scene.fail_until_the_end()
    assert scene.said[0] == "No answer. Trying again until 09:05:00 UTC."
    assert 4 <= len(scene.said) <= 5
