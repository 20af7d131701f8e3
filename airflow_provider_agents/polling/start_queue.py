"""Which task may start a run of an agent next. Pure.

Tasks that start the same agent together get runs that cannot be told apart. So of the tasks that wait until an agent is
idle, one is released at a time, in the order of their arrival. Only the first polls for the agent.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_agents.runs.matching import TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from airflow_provider_agents.api.errors import AgentsError


class StartQueue:
    """The tasks of one triggerer that wait to start one agent.

    After a release the agent counts as taken for the time that the release says: the released task has not started its
    run yet, or the run's event has not appeared yet. A task that dies holds up the others no longer than that. As soon
    as an active run is seen, the agent counts as taken for `settle` more seconds instead: a run that starts earlier
    could be mistaken for it.
    """

    def __init__(self) -> None:
        self._waiting: dict[object, Callable[[], None]] = {}
        self._taken_until: datetime | None = None
        self._is_run_awaited = False
        self._refusals: dict[object, AgentsError] = {}

    def join(self, task: object, wake: Callable[[], None]) -> None:
        """Add a task at the end.

        Args:
            task: any object that stands for it.
            wake: called when the task becomes the first.
        """
        self._waiting[task] = wake

    def leave(self, task: object) -> None:
        """Remove a task. May be repeated."""
        was_first = self.is_first(task)
        self._waiting.pop(task, None)
        self._refusals.pop(task, None)
        if was_first and self._waiting:
            next(iter(self._waiting.values()))()

    def refuse(self, error: AgentsError) -> None:
        """The API refuses to answer: that ends the waits of all tasks, and not only of the first."""
        self._refusals = dict.fromkeys(self._waiting, error)
        for wake in self._waiting.values():
            wake()

    def check(self, task: object) -> None:
        """Raise if the wait of a task was refused.

        Raises:
            AgentsError: it was.
        """
        error = self._refusals.get(task)
        if error is not None:
            # Each task raises it with a traceback of its own.
            raise error.with_traceback(None)

    def ahead_of(self, task: object) -> int:
        """How many tasks come before this one."""
        return list(self._waiting).index(task)

    def is_first(self, task: object) -> bool:
        """Whether it is this task's turn."""
        return next(iter(self._waiting), None) == task

    def release(self, hold_seconds: float, now: datetime) -> None:
        """Let the first task start its run: the agent counts as taken for `hold_seconds`."""
        self._taken_until = now + timedelta(seconds=hold_seconds)
        self._is_run_awaited = True

    def see_active_run(self, settle: float, now: datetime) -> None:
        """A run is active. If a task was released before, it is taken for the run of that task.

        Args:
            settle: seconds within which the event of a run appears.
            now: our clock.
        """
        if self._is_run_awaited:
            self._is_run_awaited = False
            self._taken_until = now + timedelta(seconds=settle) + TOLERANCE

    def is_taken(self, now: datetime) -> bool:
        """Whether a task that was released may be about to start a run."""
        return self._taken_until is not None and now < self._taken_until

    def is_of_use(self, now: datetime) -> bool:
        """Whether there is anything to remember."""
        return bool(self._waiting) or self.is_taken(now)
