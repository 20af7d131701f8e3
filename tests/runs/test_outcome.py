"""How a wait has ended: the error of each end, and the words about the run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_provider_agents.api.errors import (
    AgentRunFailedError,
    AgentRunNotFoundError,
    AgentRunTimeoutError,
    AmbiguousAgentRunError,
)
from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.runs.outcome import Outcome, Verdict, describe_completed, to_error
from airflow_provider_agents.runs.submission import Submission

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
SUBMISSION = Submission(agent_id="a", request_id="req", taken_at=T0, sent_at=T0, server_before=T0, server_after=T0)


def event(name="e", status="RUNNING", **fields):
    return ExecutionEvent(id=name, status=status, **{"createdAt": T0 + timedelta(seconds=1), **fields})


@pytest.mark.parametrize(
    ("verdict", "error", "words"),
    [
        (
            Verdict(Outcome.FAILED, (event(status="FAILED", error="no luck"),)),
            AgentRunFailedError,
            "The run FAILED: no luck.",
        ),
        (Verdict(Outcome.AMBIGUOUS, (event("e", "FAILED"),)), AmbiguousAgentRunError, "(FAILED)"),
        (Verdict(Outcome.NOT_FOUND), AgentRunNotFoundError, "may have started all the same"),
        (Verdict(Outcome.TIMED_OUT), AgentRunTimeoutError, "no event of it had appeared"),
        (Verdict(Outcome.TIMED_OUT, (event(),)), AgentRunTimeoutError, "(RUNNING)"),
    ],
)
def test_each_end_but_success_is_an_error_of_its_own_that_names_the_run(verdict, error, words):
    found = to_error(verdict, SUBMISSION, what_now="A retry starts a new run.")
    assert type(found) is error
    assert words.replace("\\", "") in str(found)
    ids = ",".join(each.id for each in verdict.events)
    assert str(found).endswith("agent=a request_id=req" + (f" event={ids}" if ids else ""))
    assert "None" not in str(found)
    assert ("A retry starts a new run." in str(found)) == (error is not AmbiguousAgentRunError)
    assert (found.agent_id, found.request_id) == ("a", "req")
    assert list(found.event_ids) == [each.id for each in verdict.events]


def test_a_run_that_completed_is_no_error():
    assert to_error(Verdict(Outcome.COMPLETED, (event(status="COMPLETED"),)), SUBMISSION, what_now="") is None


@pytest.mark.parametrize(
    ("events", "words"),
    [
        (
            (event(status="FAILED", error="no"),),
            (
                "The run FAILED: no. It is the only run that fits this task's request. Retry. "
                "agent=a request_id=req event=e"
            ),
        ),
        (
            (event("x", "FAILED"), event("y", "CANCELLED")),
            (
                "All 2 runs that could be this task's have failed (FAILED; CANCELLED). Retry. "
                "agent=a request_id=req event=x,y"
            ),
        ),
    ],
)
def test_a_failed_run_is_told_with_what_happened_first(events, words):
    error = to_error(Verdict(Outcome.FAILED, events), SUBMISSION, what_now="Retry.")
    assert str(error) == words


def test_a_run_that_is_late_says_what_was_seen_of_it():
    seen = to_error(Verdict(Outcome.TIMED_OUT, (event(),)), SUBMISSION, what_now="")
    unseen = to_error(Verdict(Outcome.TIMED_OUT), SUBMISSION, what_now="")
    over = to_error(Verdict(Outcome.TIMED_OUT, (event(status="COMPLETED"),)), SUBMISSION, what_now="")
    assert "not finished at the deadline (RUNNING). It cannot be cancelled and is still running." in str(seen)
    assert "not finished at the deadline: no event of it had appeared. It cannot be cancelled and may" in str(unseen)
    assert "before it was certain which run is this task's (COMPLETED)" in str(over)
    assert "still running" not in str(over)


def test_a_run_that_an_id_names_is_not_said_to_be_inferred():
    named = event("req", "FAILED", error="quota.")
    error = to_error(Verdict(Outcome.FAILED, (named,)), SUBMISSION, what_now="Retry.")
    assert str(error) == "The run FAILED: quota. Retry. agent=a request_id=req event=req"


@pytest.mark.parametrize(
    ("events", "late", "words"),
    [
        ((event("req", "COMPLETED"),), False, "The run COMPLETED."),
        ((event("e", "COMPLETED"),), False, "A run COMPLETED, the only one that fits this task's request."),
        ((event("e", "COMPLETED"),), True, "A run COMPLETED that is taken as this task's. It may be another run."),
        ((event("x", "COMPLETED"), event("y", "COMPLETED")), False, "the returned event may be another run's."),
    ],
)
def test_what_is_inferred_of_a_run_that_completed_is_not_said_to_be_known(events, late, words):
    said = describe_completed(Verdict(Outcome.COMPLETED, events, late), SUBMISSION)
    assert words in said
    assert said.endswith(f"agent=a request_id=req event={','.join(each.id for each in events)}")


def test_several_that_ended_differently_say_how_to_avoid_it():
    error = to_error(Verdict(Outcome.AMBIGUOUS, (event("x"), event("y"))), SUBMISSION, what_now="")
    assert "let one run of the agent start at a time: use a pool with one slot, or if_running='wait'." in str(error)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ((event(status="FAILED"),), "The run FAILED. It appeared late, and may be another run. Never. agent=a"),
        (
            (event("a", "FAILED"), event("b", "FAILED")),
            "All 2 runs that could be this task's have failed (FAILED; FAILED). Never. agent=a",
        ),
    ],
)
def test_of_a_late_run_that_failed_no_more_is_said_than_is_known(events, words):
    assert words in str(to_error(Verdict(Outcome.FAILED, events, late=True), SUBMISSION, what_now="Never."))


def test_of_several_events_none_is_known():
    assert Verdict(Outcome.COMPLETED, (event("a"), event("b"))).known_event is None
    assert Verdict(Outcome.NOT_FOUND).known_event is None
