"""The record taken around a POST: what was there just before, when it was sent, what came back. JSON in, JSON out.

A submission is taken once and carried everywhere, because nothing that is read later shows which run a task
started: the API's answer names a `requestId` that no event carries.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import field_validator

from airflow_provider_agents.api import retry
from airflow_provider_agents.api.endpoints import check_agent_id, execute_agent, list_agent_events
from airflow_provider_agents.api.errors import (
    AgentsError,
    TemporaryError,
    UnreadableAnswerError,
)
from airflow_provider_agents.api.flow import Flow, NoRetry, Response, Sleep
from airflow_provider_agents.api.models import Identifier
from airflow_provider_agents.clock import now
from airflow_provider_agents.runs import matching
from airflow_provider_agents.runs.listing import PAGE_ROWS, pending_then_newest, read_listing
from airflow_provider_agents.versioned_json import Moment, VersionedJson

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_agents.api.models import Accepted, ExecutionEvent, Page

#: POSTs without a response for one wanted run within one try of a task. The run of each is searched before the next.
MAX_POSTS = 3
#: The run of a POST whose response was lost is searched for at least this many seconds, whatever `settle` is: `settle`
#: is chosen for how soon a verdict is wanted, and to give up too early here pays for a second run. The value is the
#: default of `settle`, which a platform that shows its events late is known to need.
UNCONFIRMED_SECONDS = 30.0
#: Seconds between two searches for the run of a POST whose response was lost.
UNCONFIRMED_POLL_SECONDS = 3.0
_ACCEPTED = 202
#: Shared, as thousands may be waited for: an empty set of its own takes 200 bytes.
_NONE: frozenset[str] = frozenset()


class Submission(VersionedJson):
    """What ties a task to the run it started.

    Attributes:
        agent_id: the agent.
        request_id: from the 202; None while the POST is under way, or if its response was lost.
        event_id: the run's event, where that is known for certain.
        known_event_ids: events that were there before the POST and are young enough to be mistaken for its run.
        taken_at: our clock when the snapshot before the POST was begun.
        sent_at: our clock just before the POST; None before it, and once it is known that the POST started nothing.
        server_before: the server's clock (`Date`) in the snapshot: the run's event was created at or after this.
        server_after: the server's clock in the 202.
        newest_known_at: when the youngest event of the snapshot was created; stands in for a missing `Date`.
        in_doubt: the response to the POST was lost. Perhaps no run of ours exists, and a run that fits is another's.
    """

    _called: ClassVar = "The submission of a run"
    _what_to_do: ClassVar = "Pass what ExecuteAgentOperator(wait_for_completion=False) returned, unchanged."

    agent_id: str
    request_id: Identifier | None = None
    event_id: Identifier | None = None
    known_event_ids: tuple[str, ...] = ()
    taken_at: Moment
    sent_at: Moment | None = None
    server_before: Moment | None = None
    server_after: Moment | None = None
    newest_known_at: Moment | None = None
    in_doubt: bool = False

    @field_validator("agent_id")
    @classmethod
    def _is_an_id(cls, agent_id: str) -> str:
        return check_agent_id(agent_id)

    @classmethod
    def for_event(cls, event: ExecutionEvent, agent_id: str, taken_at: datetime) -> Self:
        """The record of a run that this task has not started and waits for.

        Args:
            event: the run's event.
            agent_id: whose run it is.
            taken_at: since when the task waits, on our clock.
        """
        return cls(agent_id=agent_id, event_id=event.id, taken_at=taken_at)

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
    def window(self) -> matching.MatchWindow:
        """What of this record decides which events can be its run."""
        return matching.MatchWindow(
            request_id=self.request_id,
            event_id=self.event_id,
            known_event_ids=frozenset(self.known_event_ids) if self.known_event_ids else _NONE,
            server_before=self.server_before if self.server_before is not None else self.newest_known_at,
            server_after=self.server_after,
        )


def take_snapshot(agent_id: str) -> Flow[Submission]:
    """Look at what is there before a POST. Reads only."""
    taken_at = now()
    not_before: datetime | None = None

    def stop(answer: Response[Page[ExecutionEvent]]) -> bool:
        nonlocal not_before
        if not_before is None:
            created = [event.createdAt for event in answer.value.data if event.createdAt is not None]
            newest = answer.server_time or max(created, default=None)
            not_before = newest - matching.TOLERANCE if newest is not None else None
        return any(matching.is_before(event, not_before) for event in answer.value.data)

    pending, listed = yield from pending_then_newest(
        lambda status: list_agent_events(agent_id, status=status, limit=PAGE_ROWS), stop
    )
    events = [*listed.value, *pending.value]
    return Submission(
        agent_id=agent_id,
        taken_at=taken_at,
        server_before=listed.server_time,
        newest_known_at=max((event.createdAt for event in events if event.createdAt is not None), default=None),
        known_event_ids=tuple(sorted({event.id for event in events if matching.is_young(event, not_before)})),
    )


def submit(
    agent_id: str,
    *,
    settle: float,
    save: Callable[[Submission], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Flow[Submission]:
    """Start one run, and never knowingly a second.

    The POST is repeated where it has certainly started nothing, for `retry.START_PATIENCE_SECONDS`. It is also
    repeated where no event has appeared although it may have acted; of such POSTs there are at most three. Each POST
    has a snapshot of its own.

    Args:
        agent_id: the agent.
        settle: seconds within which an accepted run's event appears.
        save: called with the record before each POST, and with `sent_at` removed as soon as it is known that the POST
            has started nothing. If it raises, nothing more is sent.
        say: called with a sentence when something out of the ordinary happens.

    Raises:
        AgentsError: the last failure. If the last saved record has a `sent_at`, a run may have started all the same;
            `find_unconfirmed` with that record searches for it.
    """
    window = retry.RetryWindow(retry.START_PATIENCE_SECONDS, warn=say)
    unconfirmed_posts = 0
    while True:
        snapshot = yield from take_snapshot(agent_id)
        intent = snapshot.changed(sent_at=now())
        save(intent)
        try:
            answer: Response[Accepted] = yield NoRetry(execute_agent(agent_id))
        except AgentsError as error:
            if retry.started_nothing(error):
                # The record must not claim that a run may have started: another run would be taken for it.
                save(snapshot)
                if not error.is_retryable:
                    raise
                yield Sleep(window.pause_after(error, "Nothing was started."))
                continue
            if not error.is_retryable:
                raise
            found = yield from _recover(_unconfirmed(intent, now()), error, settle=settle, say=say)
            if found is not None:
                return found
            save(snapshot)
            unconfirmed_posts += 1
            if unconfirmed_posts == MAX_POSTS:
                raise
            say("No run has appeared, so none was started; asking again.")
            continue
        return intent.changed(request_id=answer.value.requestId, server_after=answer.server_time)


def _recover(
    unconfirmed: Submission, error: AgentsError, *, settle: float, say: Callable[[str], None]
) -> Flow[Submission | None]:
    """The run of a POST that failed with `error` and may have acted; None if no run has appeared."""
    if isinstance(error, UnreadableAnswerError) and error.status_code == _ACCEPTED:
        say(f"{error} The platform accepted the run all the same, so it is waited for without its requestId.")
        return unconfirmed
    asked = retry.retry_after_of(error) or 0.0
    if asked > retry.START_PATIENCE_SECONDS:
        raise retry.append_sentence(
            error, f"A run may have started. The server asks for a pause of {asked:g} seconds before the next request."
        )
    say(f"{error} A run may have started; looking for it for {search_seconds(settle):g} seconds before anything else.")
    yield Sleep(asked)
    found = yield from find_unconfirmed(unconfirmed, settle=settle)
    if found is not None:
        say(adopted_run_warning(unconfirmed.agent_id))
    return found


def adopted_run_warning(agent_id: str) -> str:
    """The warning for a run that appeared after a POST whose response was lost."""
    return (
        f"A run of agent {agent_id} has appeared since. To start another could pay twice, so it is taken as the one "
        "that was asked for. If something else starts runs of this agent as well, it can be another's; with "
        "on_ambiguous='fail' the task fails then."
    )


def search_seconds(settle: float) -> float:
    """Seconds within which the event of a POST without an answer appears, where an accepted run's takes `settle`."""
    return max(settle, UNCONFIRMED_SECONDS)


def _unconfirmed(intent: Submission, given_up_at: datetime) -> Submission:
    """The record of a POST whose answer will never come: the server acted, if it did, before `given_up_at`."""
    server_after = intent.server_before + (given_up_at - intent.taken_at) if intent.server_before is not None else None
    return intent.changed(server_after=server_after)


def interrupted(intent: Submission, *, request_seconds: float) -> Submission:
    """The record of a POST whose process died, so that `find_unconfirmed` can search for its run.

    Args:
        intent: as last saved. Its times are all of that process's clock, so ours must not come in.
        request_seconds: how long a request of that process can have been under way.
    """
    sent_at = intent.sent_at or intent.taken_at
    return _unconfirmed(intent, sent_at + timedelta(seconds=request_seconds))


def find_unconfirmed(unconfirmed: Submission, *, settle: float, under_way: float = 0.0) -> Flow[Submission | None]:
    """Look for the run of a POST whose answer was lost, until `search_seconds(settle)` seconds after it was given up.

    Args:
        unconfirmed: its record. On the server's clock, the POST was given up at `server_after`.
        settle: seconds within which an accepted run's event appears.
        under_way: for how many seconds from now the POST can still be under way. Without the server's clock, ours
            counts, from then on. A POST that this process has given up is not under way.

    Returns:
        The record, as `in_doubt`, if there is a candidate; None if none has appeared in time.

    Raises:
        TemporaryError: the API could not be read after that time: nothing is known.
        PermanentError: the API cannot be read.
    """
    within, window = timedelta(seconds=search_seconds(settle)), unconfirmed.window
    since = now() + timedelta(seconds=under_way)
    while True:
        began_at, pause = now(), UNCONFIRMED_POLL_SECONDS
        try:
            listing = yield from read_listing(unconfirmed.agent_id, window)
        except TemporaryError as error:
            pause = max(pause, retry.retry_after_of(error) or 0.0)
            if pause > retry.START_PATIENCE_SECONDS or began_at - since >= 2 * within:
                raise
        else:
            found = matching.candidates(window, listing.events, within=within.total_seconds())
            settled = window.passed(began_at - since, listing.server_time) >= within
            # A row that cannot be read may be the run, or turn out to be old. No second run is started beside it.
            if any(event.unreadable is None for event in found) or (found and settled):
                return unconfirmed.changed(in_doubt=True)
            if settled:
                return None
        yield Sleep(pause)
