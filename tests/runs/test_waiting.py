"""How a worker waits: when it looks, what it says, and what a failure does to it. Each answer is written here."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest

from airflow_provider_agents.api.errors import (
    AuthenticationError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
)
from airflow_provider_agents.api.flow import Response, Sleep
from airflow_provider_agents.api.models import ExecutionEvent, Page
from airflow_provider_agents.runs.patience import REFUSED_SECONDS
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.runs.waiting import (
    LAST_LOOK_SECONDS,
    SIGN_OF_LIFE_SECONDS,
    Pace,
    StillBusyError,
    bounded,
    state_of,
    wait_until_idle,
)

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
DOWN = ServerError("The API answers 503.", status_code=503)
REFUSALS = [
    kind(f"{status}: refused.", status_code=status)
    for kind, status in (
        (RequestRejectedError, 302),
        (RequestRejectedError, 400),
        (AuthenticationError, 401),
        (PermissionDeniedError, 403),
        (NotFoundError, 404),
    )
]


def row(name="e", status="RUNNING", seconds=0.0):
    return ExecutionEvent(id=name, status=status, createdAt=T0 + timedelta(seconds=seconds), startedAt=T0)


class Story:
    """A dialogue's other side: each moment has the next of `answers`, and the last one is for ever."""

    def __init__(self, *answers):
        self.now, self.answers = T0, list(answers)
        self.pauses, self.said, self.listings = [], [], []

    def clock(self):
        return self.now

    def say(self, level, message):
        self.said.append((level, message))

    @property
    def words(self):
        return [message for _, message in self.said]

    def answer(self, call):
        moment = (self.now - T0).total_seconds()
        if self.listings and self.listings[-1] != moment and len(self.answers) > 1:
            del self.answers[0]
        self.listings.append(moment)
        given = self.answers[0]
        if isinstance(given, Exception):
            return given
        wanted = dict(call.params).get("status")
        rows = [event for event in given if wanted is None or event.status == wanted]
        return Response(Page[ExecutionEvent](data=rows), self.now)

    def tell(self, steps, most=10_000):
        """Follow to the end; its result, or raise its error."""
        answer = None
        for _ in range(most):
            try:
                step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
            except StopIteration as end:
                return end.value
            if isinstance(step, Sleep):
                self.pauses.append(step.seconds)
                self.now += timedelta(seconds=step.seconds)
                answer = None
            else:
                answer = self.answer(getattr(step, "call", step))
        raise AssertionError("it goes on for ever")

    def pace(self, *, poll_interval=5.0, seconds=10_000.0):
        return Pace(poll_interval, T0 + timedelta(seconds=seconds), self.clock, self.say)

    def idle(self, *, seconds=3600.0, poll_interval=5.0):
        return wait_until_idle("a", self.pace(poll_interval=poll_interval, seconds=seconds))


# --- the pace --------------------------------------------------------------------------------------------------------


def test_pauses_after_failures_double_up_to_two_minutes_give_or_take_a_quarter():
    pace = Story(None).pace()
    plain = [5.0, 10.0, 20.0, 40.0, 80.0, 120.0, 120.0]
    pauses = [pace.failed(DOWN).seconds for _ in plain]
    assert all(0.75 * plain <= pause <= 1.25 * plain for plain, pause in zip(plain, pauses, strict=True))
    assert len({pause / plain for plain, pause in zip(plain, pauses, strict=True)}) > 1


def test_an_interval_beyond_two_minutes_is_not_made_shorter_by_failures():
    pace = Story(None).pace(poll_interval=600.0)
    assert all(450.0 <= pace.failed(DOWN).seconds <= 750.0 for _ in range(20))


def test_after_very_many_failures_a_pause_can_still_be_told():
    pace = Story(None).pace(seconds=10**8)
    pauses = [pace.failed(DOWN).seconds for _ in range(3000)]
    assert 90.0 <= pauses[-1] <= 150.0


def test_retry_after_is_kept_where_it_is_the_longer_one():
    pace = Story(None).pace()
    assert pace.failed(RateLimitedError("slowly", retry_after_seconds=77.0)).seconds == 77.0
    assert pace.failed(RateLimitedError("slowly", retry_after_seconds=1.0)).seconds >= 7.5


def test_the_first_answer_ends_the_growth_and_says_how_long_there_was_none():
    story = Story(None)
    pace = story.pace()
    for _ in range(3):
        pace.failed(DOWN)
    assert pace.looked() == Sleep(5.0)
    assert pace.last_error is None
    assert story.said[-1] == (logging.INFO, "The API answers again after 3 failed looks.")
    assert pace.looked() == Sleep(5.0)
    assert len(story.said) == 2
    assert pace.failed(DOWN).seconds <= 6.25
    assert story.words[-1].startswith(str(DOWN))


def test_an_outage_is_told_once_and_then_every_five_minutes():
    story = Story(None)
    pace = story.pace()
    pace.failed(DOWN)
    assert story.said == [(logging.WARNING, f"{DOWN} The run goes on; looking again until it can be seen.")]
    story.now += timedelta(seconds=SIGN_OF_LIFE_SECONDS - 1)
    pace.failed(DOWN)
    assert len(story.said) == 1
    story.now += timedelta(seconds=1)
    pace.failed(DOWN)
    pace.failed(DOWN)
    still = f"Still no look at the run since 2026-01-01 09:00:00 UTC: {DOWN}"
    assert story.said[1:] == [(logging.WARNING, still)]


def test_no_pause_goes_beyond_the_deadline_or_below_nothing():
    story = Story(None)
    pace = story.pace(seconds=3.0)
    assert pace.looked() == Sleep(3.0)
    assert not pace.is_over()
    story.now += timedelta(seconds=3)
    assert pace.is_over()
    assert pace.looked() == Sleep(0.0)
    story.now += timedelta(seconds=9)
    assert pace.failed(DOWN) == Sleep(0.0)


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
    with pytest.raises(StillBusyError, match="has not answered in full"):
        story.tell(story.idle(seconds=100.0))
    assert (story.now - T0).total_seconds() <= 100 + LAST_LOOK_SECONDS + 2 * page_seconds


def test_a_bounded_look_hands_on_answers_and_failures():
    def listing():
        try:
            yield "first"
        except ServerError:
            return (yield "second")

    steps = bounded(listing(), T0 + timedelta(hours=1), now=lambda: T0)
    assert next(steps) == "first"
    assert steps.throw(DOWN) == "second"
    with pytest.raises(StopIteration) as end:
        steps.send("answer")
    assert end.value.value == "answer"


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
    wait = RunTracker(sent, WaitPolicy(settle=30.0, appear_within=300.0))
    story = Story([row(f"e{number}", seconds=1 + number / 100) for number in range(seen)])
    listing = story.tell(wait.read_listing())
    wait.apply_listing(listing, T0 + timedelta(seconds=2))
    assert state_of(wait) == words


def test_a_finished_run_that_is_not_certain_yet_logs_until_when_to_wait_and_why():
    sent = Submission(agent_id="a", request_id="r", taken_at=T0, server_before=T0, server_after=T0)
    wait = RunTracker(sent, WaitPolicy(settle=30.0), T0)
    story = Story([row(status="COMPLETED", seconds=1)])
    assert wait.apply_listing(story.tell(wait.read_listing()), T0 + timedelta(seconds=2)) is None
    assert state_of(wait) == (
        f"The run that fits is COMPLETED. The task waits for `settle` (30 s) to pass, until "
        f"{T0 + timedelta(seconds=31):%H:%M:%S} UTC at the latest: until then another run could appear that fits. "
        "agent=a request_id=r event=e"
    )


# --- until an agent is idle ------------------------------------------------------------------------------------------


def test_an_idle_agent_is_not_waited_for():
    story = Story([row(status="COMPLETED")])
    assert story.tell(story.idle()) is None
    assert (story.pauses, story.said) == ([], [])


def test_a_busy_agent_is_waited_for_and_each_change_is_told_once():
    first, second = [row("x"), row("b", "PENDING")], [row("x")]
    story = Story(first, first, first, first, second, second, [])
    assert story.tell(story.idle()) is None
    assert story.said == [
        (logging.INFO, "Agent a is busy with b, x; waiting."),
        (logging.INFO, "Agent a is busy with x; waiting."),
    ]
    assert set(story.pauses) == {5.0}


def test_of_very_many_active_runs_five_are_named():
    story = Story([row(f"e{number}") for number in range(7)], [row(f"e{number}") for number in range(7)], [])
    story.tell(story.idle())
    assert story.words == ["Agent a is busy with e0, e1, e2, e3, e4; waiting."]


def test_an_agent_that_stays_busy_gives_signs_of_life_and_fails_at_the_deadline():
    story = Story([row()])
    with pytest.raises(StillBusyError) as late:
        story.tell(story.idle(seconds=610.0, poll_interval=100.0))
    assert str(late.value) == (
        "Agent a was not seen idle before the deadline (event e is RUNNING). Nothing was started. Raise timeout, or "
        "clear the task once the agent is idle."
    )
    assert story.said[1:] == [(logging.INFO, "Still waiting for agent a to become idle.")] * 2
    assert max(story.listings) == 610.0


def test_an_agent_that_cannot_be_looked_at_fails_at_the_deadline_and_says_why():
    story = Story(DOWN)
    with pytest.raises(StillBusyError) as late:
        story.tell(story.idle(seconds=60.0))
    assert str(DOWN) in str(late.value)


def test_failures_do_not_end_a_wait_for_an_idle_agent():
    story = Story([row()], [row()], DOWN, DOWN, [])
    assert story.tell(story.idle()) is None
    assert story.words[-1] == "The API answers again after 2 failed looks."


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_refusal_ends_a_wait_after_five_minutes_of_nothing_else(refusal):
    story = Story([row()], refusal)
    with pytest.raises(
        type(refusal), match=r"refused\. Every request since 2026-01-01 09:00:05 UTC was refused"
    ) as end:
        story.tell(story.idle())
    assert end.value.status_code == refusal.status_code
    assert REFUSED_SECONDS <= (story.now - T0).total_seconds() - 5 <= REFUSED_SECONDS + 150
    assert [level for level, _ in story.said].count(logging.WARNING) in {1, 2}
