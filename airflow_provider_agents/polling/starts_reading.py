"""Reading the starts of other processes beside the poll: neither waits for the other."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from airflow_provider_agents.runs.starts import Start

log = logging.getLogger(__name__)

#: Seconds until a reading is given up. A Variable takes some 25 ms in a busy triggerer, so a thousand take this long.
READ_SECONDS = 30.0
#: What to log of a reading that failed.
NOT_READ = (
    "The starts of agent %s in other triggerers and workers could not be read (%s). The runs of this process are "
    "matched without them."
)

#: Reads the starts of an agent, by its id.
ReadStarts: TypeAlias = "Callable[[str], Awaitable[Sequence[Start]]]"


class StartsReading:
    """The readings of a poller.

    Args:
        read: reads the starts of one agent; None if nothing asks for them.
        on_done: called after each reading.
    """

    def __init__(self, read: ReadStarts | None, on_done: Callable[[], None]) -> None:
        self._read, self._on_done = read, on_done
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: list[tuple[str, Sequence[Start]]] = []

    def begin(self, agent_ids: Iterable[str]) -> None:
        """Read the starts of these agents, one agent after the other."""
        wanted = list(agent_ids)
        if wanted:
            # In a context of its own, as the poller's task.
            task = asyncio.create_task(self._read_all(wanted), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def done(self) -> Iterator[tuple[str, Sequence[Start]]]:
        """What was read, once: agent and starts. After a failure, no starts."""
        while self._done:
            yield self._done.pop(0)

    def stop(self) -> None:
        """End all readings. What they have read is of no more use."""
        for task in self._tasks:
            task.cancel()
        self._done.clear()

    async def _read_all(self, agent_ids: Iterable[str]) -> None:
        for agent_id in agent_ids:
            self._done.append((agent_id, await self._read_one(agent_id)))
            self._on_done()

    async def _read_one(self, agent_id: str) -> Sequence[Start]:
        if self._read is None:
            return ()
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await self._read(agent_id)
        except Exception as error:  # noqa: BLE001 - after any error, the runs are matched without
            log.warning(NOT_READ, agent_id, type(error).__name__)
            return ()
