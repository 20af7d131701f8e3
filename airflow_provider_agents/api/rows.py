"""Logs unreadable rows, each only once."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_agents import clock
from airflow_provider_agents.api.models import ExecutionEvent, Page, Row

if TYPE_CHECKING:
    from datetime import datetime

log = logging.getLogger(__name__)

#: The most rows remembered: about 200 KB. Beyond them, nothing is logged until some were not seen for this long.
MOST_ROWS, FORGOTTEN_AFTER = 1000, timedelta(hours=1)
#: Rows of one page that are logged one by one; the rest are only counted.
LOGGED_ONE_BY_ONE = 5


class WarnOnce:
    """Logs each unreadable row once; rows without an id once for each agent and reason."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str | None, str | None, str], datetime] = {}

    def check(self, value: object) -> None:
        """Log the unreadable rows of a response that were not logged before.

        Args:
            value: a page, or a value without rows.
        """
        if not isinstance(value, Page):
            return
        new = [row for row in value.data if row.unreadable is not None and self._is_new(row)]
        for row in new[:LOGGED_ONE_BY_ONE]:
            if isinstance(row, ExecutionEvent):
                log.warning(
                    "A row of a listing cannot be read, so its run counts as still running: %s. agent=%s event=%s",
                    row.unreadable,
                    row.agentId or "unknown",
                    "unknown" if row.lacks_id else row.id,
                )
            else:
                log.warning("A row of the list of agents cannot be read: %s.", row.unreadable)
        if len(new) > LOGGED_ONE_BY_ONE:
            log.warning("The same page has %d other new rows that cannot be read.", len(new) - LOGGED_ONE_BY_ONE)

    def _is_new(self, row: Row) -> bool:
        key = (None if row.lacks_id else row.id, getattr(row, "agentId", None), str(row.unreadable))
        is_new, now = key not in self._seen, clock.now()
        if is_new and len(self._seen) >= MOST_ROWS:
            self._seen = {known: seen_at for known, seen_at in self._seen.items() if now - seen_at < FORGOTTEN_AFTER}
            if len(self._seen) >= MOST_ROWS:
                return False
        self._seen[key] = now
        return is_new
