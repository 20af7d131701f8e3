"""Pages of events, validated once: a row that has not changed since the last poll cycle is not validated again. Pure.

The counters of an active run may grow from poll to poll (steps, seconds). They matter once the run has ended. Until
then a row is validated again only when its status, one of its times or one of its ids has changed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.api.models import ExecutionEvent, Page, read_event
from airflow_provider_agents.runs.status import is_terminal

if TYPE_CHECKING:
    from airflow_provider_agents.api.flow import ApiCall


class RowCache:
    """Reads pages of events, and remembers the rows of this cycle and of the one before."""

    def __init__(self) -> None:
        # By the id that was sent: the fields that matter while a run is active, the row as an event, and whether the
        # run has ended.
        self._last: dict[str, tuple[tuple[Any, ...], ExecutionEvent, bool]] = {}
        self._now: dict[str, tuple[tuple[Any, ...], ExecutionEvent, bool]] = {}

    def turn(self) -> None:
        """A cycle has ended: rows that neither it nor the next one shows are forgotten."""
        self._last, self._now = self._now, {}

    def cached(self, call: ApiCall[Page[ExecutionEvent]]) -> ApiCall[Page[ExecutionEvent]]:
        """The same call, which reads only rows that have changed."""
        return replace(call, read=lambda value: Page[ExecutionEvent].of(value, self._event))

    def _event(self, row: Any) -> ExecutionEvent:
        if not isinstance(row, dict) or not isinstance(sent_id := row.get("id"), str):
            return read_event(row)
        gist = (
            row.get("status"),
            row.get("startedAt"),
            row.get("completedAt"),
            row.get("createdAt"),
            row.get("agentId"),
            row.get("requestId"),
        )
        known = self._now.get(sent_id) or self._last.get(sent_id)
        if known is None or known[0] != gist or (known[2] and not known[1].was_sent_as(row)):
            event = read_event(row)
            known = (gist, event, is_terminal(event))
        self._now[sent_id] = known
        return known[1]
