"""The event loop on which the triggers of deferred tasks wait: killed and started again, as an Airflow does."""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import aclosing
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from stage import StageLoop

from airflow_provider_agents import triggers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from life_world import World
    from lives import Life

#: Seconds until another triggerer runs the triggers of one that was killed, and until a cleared task's trigger ends.
FAILOVER_SECONDS, CANCEL_SECONDS = 30.0, 1.0


@dataclass
class Waiting:
    """A deferred task, and its trigger: the arguments as Airflow stores them, and what runs it."""

    life: Life
    arguments: str
    task: asyncio.Task[None] | None = None


class Triggerer:
    """The event loop that the triggers of deferred tasks share."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.loop = StageLoop(world.stage)
        self.waiting: dict[str, Waiting] = {}
        self.actor = world.stage.add("triggerer", self.loop.run_forever, after=math.inf)

    def close(self) -> None:
        """End all that is left, after the play."""
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.set_exception_handler(lambda *_: None)
        self.loop.run_until_complete(_ended(tasks))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def add(self, life: Life) -> Waiting:
        """Let a deferred task's trigger run. Returns what `drop` takes."""
        if not self.waiting:
            self.actor.forget()
            self.actor.saw(f"begins at {self.world.stage.now:g}")
        assert life.deferred is not None
        _, arguments = life.deferred.trigger.serialize()
        waiting = Waiting(life, json.dumps(arguments))
        self._call(self._start, waiting)
        return waiting

    def drop(self, waiting: Waiting) -> None:
        """Airflow cancels a trigger that its task does not wait for any more, a moment later."""
        self._call(self.loop.call_later, CANCEL_SECONDS, self._end, waiting)

    def kill(self) -> None:
        """Kill this triggerer, and let the next one run its triggers; on its loop."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        for waiting in self.waiting.values():
            self.loop.call_later(FAILOVER_SECONDS, self._start, waiting)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        self.loop.call_soon_threadsafe(function, *arguments)
        self.world.stage.wake(self.actor)

    def _start(self, waiting: Waiting) -> None:
        if waiting.life.state == "deferred" and waiting.life.event is None:
            self.waiting[waiting.life.name] = waiting
            waiting.task = self.loop.create_task(self._wait(waiting))

    def _end(self, waiting: Waiting) -> None:
        assert waiting.task is not None
        waiting.task.cancel()

    async def _wait(self, waiting: Waiting) -> None:
        trigger, life = triggers.AgentRunTrigger(**json.loads(waiting.arguments)), waiting.life
        # Airflow tells a trigger its task.
        trigger.task_instance = SimpleNamespace(  # type: ignore[assignment]  # as much of one as it needs
            try_number=life.task.try_number, dag_id="dag", task_id="run", run_id="manual", map_index=-1
        )
        async with aclosing(trigger.run()) as events:  # type: ignore[type-var]  # a generator
            event = await anext(events)
        if self.waiting.get(life.name) is waiting and life.cleared is None:
            del self.waiting[life.name]
            life.event = event
            self.world.stage.wake(life.actor)


async def _ended(tasks: Collection[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
