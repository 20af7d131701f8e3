"""Who waits on a poller, and for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from airflow_provider_agents.runs.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime

    from airflow_provider_agents.api.errors import AgentsError
    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.runs.matching import Look, Seek

#: In the place of an agent's id: the whole account. A subscriber that seeks there gets looks at all agents at once.
ACCOUNT = ""

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class ClockReading:
    """A moment: monotonic seconds, for pauses, and our clock's time, for what people and servers said."""

    monotonic: float
    wall: datetime


class Subscriber(Protocol[R_co]):
    """Something that is waited for. `runs.verdict.Wait` is one."""

    @property
    def agent_id(self) -> str:
        """Whose runs matter: an agent's id, or `ACCOUNT`."""

    @property
    def seek(self) -> Seek | None:
        """What is sought; None once the events are known. Another object when it has changed."""

    @property
    def going_on(self) -> Collection[ExecutionEvent]:
        """The known events whose end matters. They are followed, beside what is sought."""

    def take(self, look: Look, began_at: datetime) -> R_co | None:
        """A complete look, or one that shows an event with a sought id. A result ends the wait."""

    def update(self, event: ExecutionEvent) -> R_co | None:
        """A followed event has changed. A result ends the wait."""

    def expire(self) -> R_co:
        """The deadline has passed, and the last look brought no result."""


@dataclass(frozen=True, slots=True)
class Outage:
    """Looks that failed, one after the other."""

    since: datetime
    looks: int
    error: AgentsError


class Subscription(Generic[R]):
    """One subscriber's place in a plan. It ends once: with a result, or with an error.

    Attributes:
        subscriber: what is waited for.
        interval: seconds between two looks, at most.
        deadline_at: when to give up, on our clock, after one last look.
        wake: called when there is news: the subscriber has changed, the outage has, or it is over.
        over: whether there is a result or an error.
        result: what the subscriber said.
        error: why nothing can be said.
        outage: the failures so far, if there was more than one in a row, or one that is a refusal.
        patience: which failure ends the wait.
    """

    __slots__ = (
        "deadline_at",
        "error",
        "failed_looks",
        "failing_since",
        "following",
        "interval",
        "outage",
        "over",
        "patience",
        "result",
        "seek",
        "seeking_since",
        "subscriber",
        "wake",
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
        self.over = False
        self.result: R | None = None
        self.error: Exception | None = None
        self.outage: Outage | None = None
        self.patience = Patience(answered=answered)
        self.failed_looks = 0
        self.failing_since: datetime | None = None
        self.seek: Seek | None = None
        # The number of the plan's last cycle when it began to seek.
        self.seeking_since = 0
        self.following: tuple[str, ...] = ()
