"""Pages of events, read once: a row that says what it said in the sweep before is not read again. Pure.

Of a run that goes on, counters may grow from look to look (steps, seconds). They matter once it is over; until then a
row is read again only when its status, one of its times or its name has changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from airflow_provider_agents.api.bodies import rows_of
from airflow_provider_agents.api.errors import first_fault
from airflow_provider_agents.api.models import ExecutionEvent, Page, Status
from airflow_provider_agents.runs.verdict import is_terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_agents.api.calls import Call


#: So many damaged rows are remembered as told, each until it was not seen for so many sweeps: a listing that is asked
#: for now and then must not bring the same line each time.
MOST_FAULTS, FORGOTTEN_AFTER_SWEEPS = 1000, 100


@dataclass(frozen=True, slots=True)
class Damage:
    """A row that is no event.

    Attributes:
        fault: where and why.
        agent_id: whose row it is, if it says so.
        event: what it stands for, as a run that goes on, if it has an id: how it ended cannot be told from it.
    """

    fault: str
    agent_id: str | None
    event: ExecutionEvent | None

    @classmethod
    def of(cls, row: Any, fault: str) -> Damage:
        """What a row says of itself."""
        event: ExecutionEvent | None = None
        known: dict[str, Any] = {"status": Status.PENDING}
        for name in ("id", "agentId", "createdAt", "startedAt"):
            try:
                event = ExecutionEvent.model_validate({**known, name: row[name]})
            except (ValidationError, KeyError, TypeError):
                continue
            known[name] = row[name]
        if event is not None and event.startedAt is not None:
            event = event.model_copy(update={"status": Status.RUNNING})
        return cls(fault, event.agentId if event is not None else _owner(row), event)

    @property
    def name(self) -> str:
        """The row in words."""
        event = f"event {self.event.id}" if self.event is not None else "a row without a readable id"
        return f"{event} of {f'agent {self.agent_id}' if self.agent_id is not None else 'an unknown agent'}"


def _owner(row: Any) -> str | None:
    """Whose row it is, if it has no readable id."""
    owner = row.get("agentId") if isinstance(row, dict) else None
    return owner if isinstance(owner, str) and owner and owner.isprintable() else None


class Faults:
    """Which damaged rows were told of."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str | None, str | None, str], int] = {}
        self._sweep = 0

    def is_new(self, damage: Damage) -> bool:
        """Whether to tell of it: each row once, and those without an id once for each agent and fault."""
        key = (damage.event.id if damage.event is not None else None, damage.agent_id, damage.fault)
        is_new = key not in self._seen
        if is_new and len(self._seen) >= MOST_FAULTS:
            return False
        self._seen[key] = self._sweep
        return is_new

    def turn(self) -> None:
        """A sweep has ended."""
        self._sweep += 1
        for key in [key for key, seen_in in self._seen.items() if self._sweep - seen_in > FORGOTTEN_AFTER_SWEEPS]:
            del self._seen[key]


class Reader:
    """Reads pages of events, and remembers those of this sweep and of the one before."""

    def __init__(self) -> None:
        # What of a row matters while its run goes on, the row as an event, and whether the run is over.
        self._last: dict[str, tuple[tuple[Any, ...], ExecutionEvent, bool]] = {}
        self._now: dict[str, tuple[tuple[Any, ...], ExecutionEvent, bool]] = {}

    def turn(self) -> None:
        """A sweep has ended: what neither it nor the next one shows is forgotten."""
        self._last, self._now = self._now, {}

    def strict(self, call: Call[Page[ExecutionEvent]]) -> Call[Page[ExecutionEvent]]:
        """The same call, for a listing in which every row matters: one that is no event fails it."""
        return replace(call, read=self._page)

    def lenient(
        self, call: Call[Page[ExecutionEvent]], damaged: Callable[[Damage], None]
    ) -> Call[Page[ExecutionEvent]]:
        """The same call, for a listing of many agents: a row that is no event must not blind all the others.

        Args:
            call: what to ask.
            damaged: called for each such row.
        """
        return replace(call, read=lambda value: self._page(value, damaged))

    def _page(self, value: Any, damaged: Callable[[Damage], None] | None = None) -> Page[ExecutionEvent]:
        rows = rows_of(value)
        frame = Page[Any].model_validate({**value, "data": ()})
        events = []
        for row in rows:
            try:
                events.append(self._event(row))
            except ValidationError as error:
                if damaged is None:
                    raise
                damaged(Damage.of(row, first_fault(error)))
        return Page[ExecutionEvent].model_construct(data=tuple(events), nextToken=frame.nextToken)

    def _event(self, row: Any) -> ExecutionEvent:
        if isinstance(row, dict) and isinstance(event_id := row.get("id"), str):
            gist = (
                row.get("status"),
                row.get("startedAt"),
                row.get("completedAt"),
                row.get("createdAt"),
                row.get("agentId"),
                row.get("requestId"),
            )
            known = self._now.get(event_id) or self._last.get(event_id)
            if known is not None and known[0] == gist and (not known[2] or known[1].was_sent_as(row)):
                self._now[event_id] = known
                return known[1]
            event = ExecutionEvent.model_validate(row)
            self._now[event.id] = (gist, event, is_terminal(event))
            return event
        return ExecutionEvent.model_validate(row)
