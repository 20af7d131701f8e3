"""Which failures end a wait, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import REFUSALS

from airflow_provider_agents.api.errors import (
    InvalidConnectionError,
    NoAnswerError,
    NotSentError,
    PaginationError,
    RateLimitedError,
    ServerError,
)
from airflow_provider_agents.runs.patience import REFUSED_SECONDS, Patience, is_refusal

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
FAILURES = [
    NotSentError("No connection."),
    NoAnswerError("Lost."),
    RateLimitedError("429.", retry_after_seconds=1.0),
    ServerError("503.", status_code=503),
]
OTHERS = [PaginationError("No end."), InvalidConnectionError("No key.")]


def after(seconds):
    return T0 + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("error", "expected"),
    [*((one, True) for one in REFUSALS), *((one, False) for one in (*FAILURES, *OTHERS))],
    ids=str,
)
def test_a_refusal_is_a_response_that_is_final(error, expected):
    assert is_refusal(error) is expected


@pytest.mark.parametrize("error", REFUSALS, ids=str)
def test_a_refusal_is_believed_after_five_minutes_and_says_how_long_it_lasted(error):
    patience = Patience()
    assert patience.failed(error, T0) is None
    assert patience.failed(error, after(REFUSED_SECONDS - 1)) is None
    final = patience.failed(error, after(REFUSED_SECONDS))
    assert type(final) is type(error)
    assert final.status_code == error.status_code
    assert str(final) == f"{error} Every request since 2026-01-01 09:00:00 UTC was refused, for 300 seconds."


@pytest.mark.parametrize("error", REFUSALS, ids=str)
def test_a_refusal_is_believed_at_once_where_nothing_was_answered_before(error):
    patience = Patience(answered=False)
    assert patience.failed(FAILURES[0], T0) is None
    assert patience.failed(error, T0) is error


def test_the_first_answer_makes_patient():
    patience = Patience(answered=False)
    patience.succeeded()
    assert patience.failed(REFUSALS[0], T0) is None


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_what_is_no_response_is_final_at_once(error):
    assert Patience().failed(error, T0) is error


@given(
    st.lists(
        st.tuples(st.floats(1, 400), st.sampled_from([*REFUSALS, *FAILURES, None])),
        max_size=40,
    )
)
def test_a_wait_ends_only_after_five_minutes_of_nothing_but_refusals(story):
    patience, seconds, refused_since = Patience(), 0.0, None
    for pause, error in story:
        seconds += pause
        if error is None:
            patience.succeeded()
            refused_since = None
            continue
        final = patience.failed(error, after(seconds))
        refused_since = None if error in FAILURES else seconds if refused_since is None else refused_since
        is_long = refused_since is not None and after(seconds) - after(refused_since) >= timedelta(
            seconds=REFUSED_SECONDS
        )
        assert (final is not None) == is_long
        if final is not None:
            assert type(final) is type(error)
            return
