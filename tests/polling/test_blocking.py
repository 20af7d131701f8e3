"""How a worker waits: when it polls, what it logs, and what a failure does to it. Each response is written here."""

from __future__ import annotations

import itertools
import logging
from datetime import UTC, datetime, timedelta

import pytest
from driving import WorkerTime, wait_on_worker
from refusals import REFUSALS

from airflow_provider_agents import clock
from airflow_provider_agents.api.errors import (
    AgentBusyError,
    NotFoundError,
    PaginationError,
    RateLimitedError,
    ServerError,
)
from airflow_provider_agents.api.flow import FlowRun, Response
from airflow_provider_agents.api.models import ExecutionEvent, Page
from airflow_provider_agents.polling import blocking
from airflow_provider_agents.polling.progress import LAST_POLL_SECONDS, SIGN_OF_LIFE_SECONDS, state_of
from airflow_provider_agents.runs.outcome import Outcome, to_error
from airflow_provider_agents.runs.patience import REFUSED_SECONDS
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
DOWN = ServerError("The API answers 503.", status_code=503)


def row(name="e", status="RUNNING", seconds=0.0):
    return ExecutionEvent(id=name, status=status, createdAt=T0 + timedelta(seconds=seconds), startedAt=T0)


class Story:
    """A dialogue's other side: each moment has the next of `answers`, and the last one is for ever."""

    def __init__(self, *answers):
        self.now, self.answers = T0, list(answers)
        self.pauses, self.said, self.polls = [], [], []

    def clock(self):
        return self.now

    def say(self, level, message):
        self.said.append((level, message))

    @property
    def words(self):
        return [message for _, message in self.said]

    def answer(self, call):
        moment = (self.now - T0).total_seconds()
        if self.polls and self.polls[-1] != moment and len(self.answers) > 1:
            del self.answers[0]
        self.polls.append(moment)
        given = self.answers[0]
        if isinstance(given, Exception):
            raise given
        wanted = dict(call.params).get("status")
        rows = [event for event in given if wanted is None or event.status == wanted]
        return Response(Page[ExecutionEvent](data=rows), self.now)

    def sleep(self, seconds):
        self.pauses.append(round(seconds, 3))
        self.now += timedelta(seconds=seconds)

    def run_flow(self, flow):
        """What a client does."""
        run = FlowRun(flow)
        for step in run:
            with run.error_to_flow():
                run.result = self.answer(getattr(step, "call", step))
        return run.value

    def wait(self, tracker=None, *, seconds=3600.0, interval=5.0, **more):
        if tracker is None:
            known = Submission.for_event(row(), "a", T0)
            tracker = RunTracker(known, WaitPolicy(settle=30.0, appear_within=30.0))
        deadline_at = T0 + timedelta(seconds=seconds)
        return wait_on_worker(
            self, tracker, self.clock, self.sleep, interval=interval, deadline_at=deadline_at, say=self.say, **more
        )

    def idle(self, *, seconds=3600.0, interval=5.0):
        with clock.replaced_by(WorkerTime(self.clock, self.sleep)):
            blocking.wait_until_idle(
                self, "a", poll_interval=interval, deadline_at=T0 + timedelta(seconds=seconds), say=self.say
            )


# --- until a run is over ---------------------------------------------------------------------------------------------


def test_a_run_is_looked_at_every_interval_until_it_is_over():
    story = Story([row()], [row()], [row(status="COMPLETED")])
    verdict = story.wait()
    assert (verdict.outcome, verdict.event.status) == (Outcome.COMPLETED, "COMPLETED")
    assert story.pauses == [1.0, 5.0, 5.0]
    assert story.said == [
        (logging.INFO, "The run is RUNNING. agent=a event=e"),
        (logging.INFO, "The run is COMPLETED. agent=a event=e"),
    ]


def test_whose_event_it_is_is_told_once():
    story, known = Story([row()], [row()], [row(status="COMPLETED")]), []
    story.wait(on_known=known.append)
    assert [event.id for event in known] == ["e"]


def test_a_long_wait_gives_a_sign_of_life_every_five_minutes():
    story = Story([row()])
    verdict = story.wait(seconds=910.0, interval=100.0)
    assert verdict.outcome == Outcome.TIMED_OUT
    still = (logging.INFO, "Still waiting. The run is RUNNING. agent=a event=e")
    assert story.said[1:] == [still] * 3


def test_the_last_look_is_at_the_deadline_and_a_run_that_is_over_by_then_is_not_late():
    story = Story([row()], [row()], [row()], [row(status="COMPLETED")])
    assert story.wait(seconds=12.0).outcome == Outcome.COMPLETED
    assert story.pauses == [1.0, 5.0, 5.0, 1.0]
    story = Story([row()])
    assert story.wait(seconds=12.0).outcome == Outcome.TIMED_OUT
    assert max(story.polls) == 12.0


def test_failures_do_not_end_a_wait():
    story = Story([row()], DOWN, DOWN, [row(status="FAILED")])
    assert story.wait().outcome == Outcome.FAILED
    assert [level for level, _ in story.said].count(logging.WARNING) == 1


def test_a_deadline_during_an_outage_says_that_the_last_poll_failed():
    story = Story([row()], DOWN)
    verdict = story.wait(seconds=60.0)
    assert (verdict.outcome, verdict.failure) == (Outcome.TIMED_OUT, str(DOWN))
    assert f"The last poll failed: {DOWN}" in str(to_error(verdict, Submission.for_event(row(), "a", T0), what_now=""))


def test_pauses_after_failures_double_up_to_two_minutes_less_half_at_most():
    story = Story(DOWN)
    story.wait()
    plain = [5.0, 10.0, 20.0, 40.0, 80.0, 120.0, 120.0]
    polls = sorted(set(story.polls))
    pauses = [later - earlier for earlier, later in itertools.pairwise(polls)]
    assert all(0.499 * wanted <= pause <= wanted + 0.001 for wanted, pause in zip(plain, pauses, strict=False))
    assert len(pauses) > len(plain)


def test_retry_after_is_kept_where_it_is_the_longer_one():
    story = Story([row()], RateLimitedError("slowly", retry_after_seconds=77.0), [row(status="COMPLETED")])
    story.wait()
    assert sorted(set(story.polls)) == [1.0, 6.0, 83.0]


def test_an_outage_is_told_once_and_then_every_five_minutes():
    story = Story([row()], DOWN)
    story.wait(seconds=SIGN_OF_LIFE_SECONDS * 2.5)
    still = (logging.WARNING, f"No poll of the run has succeeded since 2026-01-01 09:00:06 UTC: {DOWN}")
    assert story.said == [
        (logging.INFO, "The run is RUNNING. agent=a event=e"),
        (logging.WARNING, f"{DOWN} The run is still running; polling again until the API answers."),
        still,
        still,
    ]


def test_an_earlier_failure_is_not_told_of_at_the_deadline():
    story = Story(DOWN, DOWN, [row()])
    verdict = story.wait(seconds=60.0)
    assert (verdict.outcome, verdict.failure) == (Outcome.TIMED_OUT, None)
    assert "The API answers again after 2 failed polls." in story.words


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_refusal_ends_a_wait_after_five_minutes_of_nothing_else(refusal):
    story = Story([row()], refusal)
    with pytest.raises(
        type(refusal), match=r"refused\. Every request since 2026-01-01 09:00:06 UTC was refused"
    ) as end:
        story.wait()
    assert end.value.status_code == refusal.status_code
    assert REFUSED_SECONDS <= (story.now - T0).total_seconds() - 6 <= REFUSED_SECONDS + 150
    assert [level for level, _ in story.said].count(logging.WARNING) in {1, 2}


@pytest.mark.parametrize("other", [DOWN, [row()]], ids=["outage", "answer"])
def test_a_refusal_that_is_not_the_only_answer_ends_no_wait(other):
    refused = [NotFoundError("404: refused.", status_code=404)] * 2
    story = Story([row()], *([*refused, other] * 40), [row(status="COMPLETED")])
    assert story.wait(seconds=10**6).outcome == Outcome.COMPLETED
    assert (story.now - T0).total_seconds() > REFUSED_SECONDS


def test_a_refusal_is_reported_at_once_and_also_in_an_outage():
    story = Story([row()], DOWN, DOWN, NotFoundError("404: refused.", status_code=404), [row(status="COMPLETED")])
    story.wait()
    warnings = [message for level, message in story.said if level == logging.WARNING]
    assert [message.split(":")[0] for message in warnings] == [
        str(DOWN).split(":")[0] + " The run is still running; polling again until the API answers.",
        "404",
    ]


def test_an_error_that_is_no_response_ends_a_wait_at_once():
    story = Story([row()], PaginationError("The listing never ends."))
    with pytest.raises(PaginationError):
        story.wait()
    assert story.pauses == [1.0, 5.0]


# --- a look that takes long ---


class Dripping(Story):
    """Each page takes a while, and there is always another one."""

    def __init__(self, seconds):
        super().__init__([row()])
        self.seconds, self.pages = seconds, 0

    def answer(self, call):
        self.now += timedelta(seconds=self.seconds)
        self.pages += 1
        return Response(Page[ExecutionEvent](data=(), nextToken=f"t{self.pages}"), self.now)


@pytest.mark.parametrize("page_seconds", [1.0, 20.0, 50.0])
def test_a_look_of_many_slow_pages_puts_off_no_deadline(page_seconds):
    story = Dripping(page_seconds)
    assert story.wait(seconds=100.0).outcome == Outcome.TIMED_OUT
    assert 100 <= (story.now - T0).total_seconds() <= 100 + LAST_POLL_SECONDS + 2 * page_seconds


# --- what is known, in words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (0, "No event of the run has appeared yet. agent=a request_id=r"),
        (1, "The run that fits is RUNNING. agent=a request_id=r event=e0"),
        (2, "2 runs could be this task's: RUNNING, RUNNING. agent=a request_id=r event=e0,e1"),
        (
            7,
            f"7 runs could be this task's: {'RUNNING, ' * 5}.... agent=a request_id=r event=e0,e1,e2,e3,e4",
        ),
    ],
)
def test_what_is_known_of_a_run_is_told_before_it_is_certain(seen, words):
    sent = Submission(agent_id="a", request_id="r", taken_at=T0, sent_at=T0, server_before=T0, server_after=T0)
    tracker = RunTracker(sent, WaitPolicy(settle=30.0, appear_within=300.0))
    story = Story([row(f"e{number}", seconds=1 + number / 100) for number in range(seen)])
    listing = story.run_flow(tracker.read_listing())
    tracker.apply_listing(listing, T0 + timedelta(seconds=2))
    assert state_of(tracker) == words


def test_a_finished_run_that_is_not_certain_yet_logs_until_when_to_wait_and_why():
    sent = Submission(agent_id="a", request_id="r", taken_at=T0, server_before=T0, server_after=T0)
    tracker = RunTracker(sent, WaitPolicy(settle=30.0), T0)
    story = Story([row(status="COMPLETED", seconds=1)])
    assert tracker.apply_listing(story.run_flow(tracker.read_listing()), T0 + timedelta(seconds=2)) is None
    assert state_of(tracker) == (
        f"The run that fits is COMPLETED. The task waits for `settle` (30 s) to pass, until "
        f"{T0 + timedelta(seconds=31):%H:%M:%S} UTC at the latest: until then another run could appear that fits. "
        "agent=a request_id=r event=e"
    )


@pytest.mark.parametrize("over", [True, False])
@pytest.mark.parametrize(("on_ambiguous", "warnings"), [("all", 1), ("fail", 0)])
def test_a_run_that_appears_late_is_warned_of_once(over, on_ambiguous, warnings):
    sent = Submission(agent_id="a", request_id="r", taken_at=T0, server_before=T0, server_after=T0)
    tracker = RunTracker(sent, WaitPolicy(settle=30.0, on_ambiguous=on_ambiguous))
    shown, end = row(seconds=100, status="COMPLETED" if over else "RUNNING"), row(seconds=100, status="COMPLETED")
    story, known = Story(*[[]] * 20, [shown], [shown], [shown], [end]), []
    verdict = story.wait(tracker, on_known=known.append)
    assert (verdict.outcome, verdict.late) == (Outcome.COMPLETED if warnings else Outcome.AMBIGUOUS, True)
    warning = (
        "No event of this run appeared within 30 seconds. What appeared later is taken as the run, but may be another "
        "run's. Raise settle if the platform is slow, or refuse a late run with on_ambiguous='fail'. "
        "agent=a request_id=r event=e"
    )
    assert [message for level, message in story.said if level == logging.WARNING] == [warning] * warnings
    assert known == []


# --- until an agent is idle ------------------------------------------------------------------------------------------


def test_an_idle_agent_is_not_waited_for():
    story = Story([row(status="COMPLETED")])
    assert story.idle() is None
    assert (story.pauses, story.said) == ([1.0], [])


def test_a_busy_agent_is_waited_for_and_each_change_is_told_once():
    first, second = [row("x"), row("b", "PENDING")], [row("x"), row("b", "COMPLETED")]
    story = Story(first, first, first, first, second, second, [row("x", "COMPLETED")])
    assert story.idle() is None
    assert story.said == [
        (logging.INFO, "Agent a is busy with b, x; waiting."),
        (logging.INFO, "Agent a is busy with x; waiting."),
    ]
    assert story.pauses == [1.0, *[5.0] * 6]


def test_of_very_many_active_runs_five_are_named():
    story = Story([row(f"e{number}") for number in range(7)], [row(f"e{number}") for number in range(7)], [])
    story.idle()
    assert story.words == ["Agent a is busy with e0, e1, e2, e3, e4; waiting."]


def test_an_agent_that_stays_busy_gives_signs_of_life_and_fails_at_the_deadline():
    story = Story([row()])
    with pytest.raises(AgentBusyError) as late:
        story.idle(seconds=610.0, interval=100.0)
    assert str(late.value) == (
        "Agent a was not seen idle before the deadline (event e is RUNNING). Nothing was started. Raise timeout, or "
        "clear the task once the agent is idle."
    )
    assert story.said[1:] == [(logging.INFO, "Still waiting. Agent a is busy with e; waiting.")] * 2
    assert max(story.polls) == 610.0


def test_an_agent_that_cannot_be_looked_at_fails_at_the_deadline_and_says_why():
    story = Story(DOWN)
    with pytest.raises(AgentBusyError) as late:
        story.idle(seconds=60.0)
    assert str(DOWN) in str(late.value)


def test_failures_do_not_end_a_wait_for_an_idle_agent():
    story = Story([row()], [row()], DOWN, DOWN, [])
    assert story.idle() is None
    assert story.words[-1] == "The API answers again after 2 failed polls."
