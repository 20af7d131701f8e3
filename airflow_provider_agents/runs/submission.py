"""The record taken around a POST: what was there just before, when it was sent, what came back. JSON in, JSON out.

A submission is taken once and carried everywhere, because nothing that is looked up later can tell which run a task
started: the API's answer names a `requestId` that no event carries.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from airflow_provider_agents.api import retry
from airflow_provider_agents.api.calls import (
    Answer,
    Once,
    Pause,
    Steps,
    check_agent_id,
    execute_agent,
    list_agent_events,
    walk,
)
from airflow_provider_agents.api.errors import (
    AuthenticationError,
    InvalidArgumentError,
    NoAnswerError,
    NotFoundError,
    NotSentError,
    PermanentError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    TemporaryError,
    UnreadableAnswerError,
    first_fault,
)
from airflow_provider_agents.api.models import Accepted, ExecutionEvent, Page, Status
from airflow_provider_agents.runs import matching

#: POSTs for one wanted run within one try of a task: the first, and two more where the fate of those before is clear.
MAX_POSTS = 3
#: Seconds between two looks for the run of a POST whose answer was lost.
LOST_LOOK_SECONDS = 3.0
#: For so many seconds beyond `settle` the server's clock is waited for before a lost run is given up: a task may be
#: tried again on a machine whose own clock is ahead of the first one's, and to start a second run would cost more.
LOST_PATIENCE_SECONDS = 300.0
#: Events asked for per page while looking near the newest: the API's default. More pages follow where needed.
PAGE_ROWS = 50
_ACCEPTED = 202
#: After these, a POST has started nothing. Any other refusal is none that the API describes, so nobody knows.
_CERTAIN = (NotSentError, RateLimitedError, AuthenticationError, PermissionDeniedError, NotFoundError)
#: Shared, as thousands may be waited for: an empty set of its own takes 200 bytes.
_NONE: frozenset[str] = frozenset()

Clock = Callable[[], datetime]


class Submission(BaseModel):
    """What ties a task to the run it started.

    Attributes:
        agent_id: the agent.
        request_id: what the 202 said; None while the POST is under way, or if its answer was lost.
        event_id: the run's event, where that is known for certain.
        known_event_ids: events that were there before the POST and are young enough to be mistaken for its run.
        taken_at: our clock when the snapshot before the POST was begun.
        sent_at: our clock just before the (last) POST; None before it, and once it is certain that it started nothing.
        accepted_at: our clock when the answer came or was given up.
        server_before: the server's clock (`Date`) in the snapshot: the run's event was created at or after this.
        server_after: the server's clock in the 202.
        newest_known_at: when the youngest event of the snapshot was created; stands in for a missing `Date`.
        unanswered: nobody has seen an answer to the POST, so a run that fits may be another's with none of ours there.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    agent_id: str
    request_id: str | None = None
    event_id: str | None = None
    known_event_ids: tuple[str, ...] = ()
    taken_at: AwareDatetime
    sent_at: AwareDatetime | None = None
    accepted_at: AwareDatetime | None = None
    server_before: AwareDatetime | None = None
    server_after: AwareDatetime | None = None
    newest_known_at: AwareDatetime | None = None
    unanswered: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON types, for XCom, a trigger's arguments or the task state store."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what `to_json` gave.

        Raises:
            InvalidArgumentError: it is no submission, or one of a version this package does not know.
        """
        try:
            submission = cls.model_validate(value)
        except ValidationError as error:
            raise InvalidArgumentError(
                f"This is not the submission of an agent run ({first_fault(error)}). Pass "
                "what ExecuteAgentOperator(wait_for_completion=False) returned, unchanged."
            ) from None
        check_agent_id(submission.agent_id)
        return submission

    def changed(self, **fields: Any) -> Self:
        """A copy with other values."""
        return self.model_copy(update=fields)

    @property
    def name(self) -> str:
        """The run in words, for messages."""
        parts = [f"agent {self.agent_id}"]
        if self.request_id:
            parts.append(f"requestId {self.request_id}")
        if self.event_id:
            parts.append(f"event {self.event_id}")
        return ", ".join(parts)

    @property
    def bounds(self) -> matching.Bounds:
        """What of this record decides which events can be its run."""
        return matching.Bounds(
            request_id=self.request_id,
            event_id=self.event_id,
            known_event_ids=frozenset(self.known_event_ids) if self.known_event_ids else _NONE,
            accepted_at=self.accepted_at or self.sent_at or self.taken_at,
            server_before=self.server_before if self.server_before is not None else self.newest_known_at,
            server_after=self.server_after,
        )


def attached_to(event: ExecutionEvent, agent_id: str, now: datetime) -> Submission:
    """The record of a run that somebody else started and this task takes as its own."""
    return Submission(agent_id=agent_id, event_id=event.id, taken_at=now, accepted_at=now)


def take_snapshot(agent_id: str, *, now: Clock) -> Steps[Submission]:
    """Look at what is there before a POST. Reads only."""
    taken_at = now()
    floor: datetime | None = None

    def enough(answer: Answer[Page[ExecutionEvent]]) -> bool:
        nonlocal floor
        if floor is None:
            created = [event.createdAt for event in answer.value.data if event.createdAt is not None]
            newest = answer.server_time or max(created, default=None)
            floor = newest - matching.TOLERANCE if newest is not None else None
        return any(matching.lies_before(event, floor) for event in answer.value.data)

    # Asked first, for the reason that `matching.look` gives.
    pending = yield from walk(list_agent_events(agent_id, status=Status.PENDING, limit=PAGE_ROWS))
    listed = yield from walk(list_agent_events(agent_id, limit=PAGE_ROWS), enough)
    events = [*listed.value, *pending.value]
    return Submission(
        agent_id=agent_id,
        taken_at=taken_at,
        server_before=listed.server_time,
        newest_known_at=max((event.createdAt for event in events if event.createdAt is not None), default=None),
        known_event_ids=tuple(sorted({event.id for event in events if matching.is_young(event, floor)})),
    )


def submit(
    agent_id: str,
    *,
    settle: float,
    now: Clock,
    save: Callable[[Submission], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Steps[Submission]:
    """Start one run, and never knowingly a second.

    The POST is repeated only where the platform cannot have acted (no connection, 429), or where it may have acted
    but no event has appeared within `settle` seconds. At most three POSTs.

    Args:
        agent_id: the agent.
        settle: seconds within which an accepted run's event appears.
        now: our clock, aware.
        save: called with the record before each POST, and after one that certainly started nothing. If it raises,
            nothing more is sent.
        say: called with a sentence when something out of the ordinary happens.

    Raises:
        AgentsError: the last failure. After a `NoAnswerError`, `ServerError` or `UnreadableAnswerError` a run may
            have started all the same; `find_lost` with the last saved record tells.
    """
    intent = yield from take_snapshot(agent_id, now=now)
    in_doubt = False
    for post in range(1, MAX_POSTS + 1):
        intent = intent.changed(sent_at=now())
        save(intent)
        try:
            answer: Answer[Accepted] = yield Once(execute_agent(agent_id))
        except _CERTAIN as error:
            if not in_doubt:
                # What is left behind must not say that a run may have started: a stranger's would be taken for it.
                save(intent.changed(sent_at=None))
            pause = retry.pause_after(error, post)
            if isinstance(error, PermanentError) or post == MAX_POSTS or pause > retry.MAX_PAUSE_SECONDS:
                raise
            say(f"{error} Nothing was started; trying again in {pause:.1f} seconds.")
            yield Pause(pause)
            if not in_doubt:
                # Nor is what began meanwhile ours.
                intent = yield from take_snapshot(agent_id, now=now)
            continue
        except (NoAnswerError, ServerError, UnreadableAnswerError) as error:
            lost, in_doubt = _lost(intent, now()), True
            if isinstance(error, UnreadableAnswerError) and error.status_code == _ACCEPTED:
                say(f"{error} The platform accepted the run all the same, so it is waited for without its requestId.")
                return lost
            say(f"{error} A run may have started; looking for it for {settle:g} seconds before anything else.")
            found = yield from find_lost(lost, settle=settle, now=now)
            if found is not None:
                say(taken_for_ours(agent_id))
                return found
            if post == MAX_POSTS:
                raise
            say("No run has appeared, so none was started; asking again.")
            continue
        return intent.changed(request_id=answer.value.requestId, accepted_at=now(), server_after=answer.server_time)
    raise AssertionError("unreachable: the last POST returns or raises")


def taken_for_ours(agent_id: str) -> str:
    """What to say where a run has appeared after a POST that nobody has seen an answer of."""
    return (
        f"A run of agent {agent_id} has appeared since. To start another could pay twice, so it is taken as the one "
        "that was asked for. If something else starts runs of this agent as well, it can be another's; with "
        "on_ambiguous='fail' the task fails then."
    )


def _lost(intent: Submission, given_up_at: datetime) -> Submission:
    """The record of a POST whose answer will never come: the server acted, if it did, before `given_up_at`."""
    server_after = intent.server_before + (given_up_at - intent.taken_at) if intent.server_before is not None else None
    return intent.changed(accepted_at=given_up_at, server_after=server_after)


def died_around(intent: Submission, *, request_seconds: float, now: datetime) -> Submission:
    """The record of a POST whose process died, so that `find_lost` can look for its run.

    Args:
        intent: as last saved.
        request_seconds: how long a request of that process can have been under way.
        now: our clock.
    """
    sent_at = intent.sent_at or intent.taken_at
    return _lost(intent, min(now, sent_at + timedelta(seconds=request_seconds)))


def find_lost(lost: Submission, *, settle: float, now: Clock) -> Steps[Submission | None]:
    """Look for the run of a POST whose answer was lost, until one appears or `settle` seconds have passed.

    They must have passed on the server's clock as well, unless that stands still.

    Returns:
        The record, as `unanswered`, if there is a candidate; None if none has appeared in time.

    Raises:
        TemporaryError: the API could not be read after `settle` had passed: nothing is known.
        PermanentError: the API cannot be read.
    """
    while True:
        began_at = now()
        try:
            look = yield from matching.look(lost.agent_id, lost.bounds)
        except TemporaryError:
            if began_at >= lost.bounds.accepted_at + timedelta(seconds=2 * settle):
                raise
        else:
            if matching.candidates(lost.bounds, look.events, settle=settle):
                return lost.changed(unanswered=True)
            moment = matching.Moment(began_at, look.server_time)
            if matching.is_settled(lost.bounds, moment, settle=settle, appear_within=LOST_PATIENCE_SECONDS):
                return None
        yield Pause(LOST_LOOK_SECONDS)
