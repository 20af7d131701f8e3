"""Who waits on a poller, and for what. Pure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeAlias, TypeVar

from airflow_provider_agents.runs.patience import Patience, is_refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from datetime import datetime

    from airflow_provider_agents.api.errors import AgentsError
    from airflow_provider_agents.api.flow import Flow
    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.runs.listing import Listing
    from airflow_provider_agents.runs.matching import SearchCriteria

#: In the place of an agent's id: the whole account. A subscriber that seeks there gets the events of all agents.
ACCOUNT: Final = None
#: An agent's id, or `ACCOUNT`.
Scope: TypeAlias = str | None

#: This many failed polls in a row are reported to a subscriber, as one is a blip. A refusal is reported at once.
OUTAGE_POLLS = 2

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class ClockReading:
    """A moment: `monotonic` seconds for pauses, and our clock's `wall` time for deadlines and server times."""

    monotonic: float
    wall: datetime


class Subscriber(Protocol[R_co]):
    """What a subscription is for. `runs.tracker.RunTracker` is one.

    Attributes:
        has_changed: whether what is sought or followed may have changed. The subscriber sets it; the registry
            clears it.
    """

    has_changed: bool

    @property
    def agent_id(self) -> Scope:
        """Whose runs matter: an agent's id, or `ACCOUNT`."""

    @property
    def criteria(self) -> SearchCriteria | None:
        """What is sought; None once the events are known."""

    @property
    def active(self) -> Collection[ExecutionEvent]:
        """The known events whose end matters. They are followed, in addition to the search."""

    def apply_listing(self, listing: Listing, began_at: datetime) -> R_co | None:
        """A complete listing, or a row with a sought id. A result ends the wait."""

    def apply_event(self, event: ExecutionEvent) -> R_co | None:
        """A followed event has changed. A result ends the wait."""

    def expire(self) -> R_co:
        """The deadline has passed, and the last poll brought no result."""


class AskingSubscriber(ABC, Generic[R]):
    """A subscriber with requests of its own, beside the listings that all subscribers share.

    Args:
        agent_id: whose runs matter.
    """

    criteria = None

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        self.has_changed = False

    @property
    @abstractmethod
    def key(self) -> object:
        """Equal for subscribers whose requests are the same. They share the responses."""

    @abstractmethod
    def request_flow(self) -> Flow[Any]:
        """The requests. The flow returns a response, which is not None."""

    @abstractmethod
    def apply_response(self, response: Any, began_at: datetime) -> R | None:
        """The flow of a poll has returned this response. A result ends the wait."""

    @abstractmethod
    def expire(self) -> R:
        """The deadline has passed, and the last poll brought no result."""

    def wants_request(self, now: datetime) -> bool:  # noqa: ARG002 - for those that follow events in between
        """Whether to send the requests now."""
        return True

    @property
    def active(self) -> Collection[ExecutionEvent]:
        """The events that are followed between two responses."""
        return ()

    def apply_listing(self, listing: Listing, began_at: datetime) -> R | None:  # noqa: ARG002 - it needs none
        """Nothing: no complete listing is needed."""
        return None

    def apply_event(self, event: ExecutionEvent) -> R | None:  # noqa: ARG002 - it follows none
        """A followed event has changed."""
        return None


@dataclass(frozen=True, slots=True)
class Outage:
    """Polls that failed, one after the other."""

    since: datetime
    polls: int
    error: AgentsError


class Subscription(Generic[R]):
    """One subscriber's place in a poller. It ends once: with a result, or with an error.

    Attributes:
        subscriber: what waits.
        interval: seconds between two polls, at most.
        deadline_at: when to give up, on our clock, after one last poll.
        wake: called when the subscriber has changed, an outage has begun or ended, or the subscription has ended.
        has_ended: whether there is a result or an error.
        result: what the subscriber returned.
        error: why there is no result.
        outage: the failures so far, if there was more than one in a row, or one that is a refusal.
        patience: which failure ends the wait.
        was_missed: a complete listing of its agent did not show its run.
    """

    __slots__ = (
        "asked_at",
        "criteria",
        "deadline_at",
        "error",
        "failed_polls",
        "failing_since",
        "following",
        "has_ended",
        "interval",
        "outage",
        "patience",
        "result",
        "searching_since",
        "subscriber",
        "wake",
        "was_missed",
    )

    def __init__(
        self,
        subscriber: Subscriber[R],
        interval: float,
        deadline_at: datetime,
        wake: Callable[[], None],
        *,
        answered: bool = True,
    ) -> None:
        self.subscriber = subscriber
        self.interval = interval
        self.deadline_at = deadline_at
        self.wake = wake
        self.has_ended = False
        self.result: R | None = None
        self.error: Exception | None = None
        self.outage: Outage | None = None
        self.patience = Patience(answered=answered)
        self.failed_polls = 0
        self.failing_since: datetime | None = None
        self.criteria: SearchCriteria | None = None
        # The number of the latest poll cycle when it began to seek.
        self.searching_since = 0
        # Ids of the events that it follows. Those that have ended since may be among them.
        self.following: tuple[str, ...] = ()
        # The monotonic second of the subscriber's own last requests.
        self.asked_at = -math.inf
        self.was_missed = False

    @property
    def is_looked_up(self) -> bool:
        """Whether the row of one event is all that it still needs, and any listing may show that row."""
        return self.criteria is not None and self.criteria.is_named and not self.was_missed

    def failed(self, error: AgentsError, now: datetime) -> bool:
        """Count a failed poll. Whether the outage that this makes is new to the subscriber."""
        self.failed_polls += 1
        self.failing_since = self.failing_since or now
        if self.failed_polls < OUTAGE_POLLS and not is_refusal(error):
            return False
        before, self.outage = self.outage, Outage(self.failing_since, self.failed_polls, error)
        return before is None or is_refusal(before.error) != is_refusal(error)

    def recovered(self) -> bool:
        """Forget the failures, since a poll was answered. Whether that ends an outage."""
        self.patience.succeeded()
        was_out = self.outage is not None
        self.failed_polls, self.failing_since, self.outage = 0, None, None
        return was_out


@dataclass(slots=True, eq=False)
class FollowedEvent:
    """An event that is followed, in its latest state.

    Attributes:
        agent_id: whose event it is; `ACCOUNT` if no row has said.
        event: the latest state.
        subscriptions: who follows it.
        misses: how many cycles in a row ought to have shown it and did not.
    """

    agent_id: Scope
    event: ExecutionEvent
    subscriptions: dict[Subscription[Any], None] = field(default_factory=dict)
    misses: int = 0


def oldest_not_before(subscriptions: Iterable[Subscription[Any]]) -> datetime | None:
    """The oldest moment that these seek back to; None if one of them seeks all events, or none of them seeks."""
    moments = [subscription.criteria.not_before for subscription in subscriptions if subscription.criteria is not None]
    known = [not_before for not_before in moments if not_before is not None]
    return min(known) if known and len(known) == len(moments) else None
