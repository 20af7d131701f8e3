"""How a task that waits on a worker ends when Airflow kills it.

Airflow calls `on_kill` in a signal handler: between any two steps of the code that runs, perhaps while that code holds
a lock, writes a log line or sends an execute. So `on_kill` only sets a flag, and raises only in blocks that may be
ended anywhere: pauses, and requests that may be repeated. Everything else is finished first.
"""

from __future__ import annotations

import os
import stat
import subprocess
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

#: What a shell reports of a process that SIGTERM has ended: 128 + 15.
EXIT_CODE = 143

_current: ContextVar[Interruption | None] = ContextVar("agents_interruption", default=None)


class Interruption:
    """Ends one task's code. It takes no locks and does no I/O.

    Attributes:
        is_requested: the task was killed.
        may_raise: the block that runs may be ended anywhere.
    """

    def __init__(self) -> None:
        self._is_running = self.is_requested = self.may_raise = False

    @contextmanager
    def running(self, when_killed: Callable[[], None]) -> Iterator[None]:
        """The task's code.

        Args:
            when_killed: called after the block if the task was killed in it, and outside the signal handler.
        """
        self._is_running, self.is_requested, self.may_raise = True, False, False
        token = _current.set(self)
        try:
            yield
        finally:
            self._is_running = False
            _current.reset(token)
            if self.is_requested:
                when_killed()
                _hold_output_open()

    def request(self) -> bool:
        """End the task's code at the next point where that does no harm; for a signal handler.

        Returns:
            Whether the task's code runs.

        Raises:
            SystemExit: this is such a point. Airflow fails the try then, or retries it, whatever `soft_fail` says.
        """
        if not self._is_running:
            return False
        self.is_requested = True
        self.end_if_killed()
        return True

    def end_if_killed(self) -> None:
        """Raise if the task was killed and may be ended here."""
        if self.is_requested and self.may_raise:
            raise SystemExit(EXIT_CODE)


def _hold_output_open() -> None:
    """Let the standard output of a task's process stay open for a second longer than the process.

    Airflow's supervisor can see the process's sockets close before it can see the process's end. Then nothing wakes the
    supervisor until it would send SIGKILL, and the task's slot stays taken: 5 s, and 60 s on Airflow 3.4. A socket that
    closes later wakes it.
    """
    with suppress(OSError):  # there is no standard output, or no `sleep`
        if stat.S_ISSOCK(os.fstat(1).st_mode):
            subprocess.Popen(["sleep", "1"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S607 - POSIX


def interruptible() -> AbstractContextManager[None]:
    """A block that may be ended anywhere, if a task's code runs in this thread.

    Raises:
        SystemExit: the task was killed, before the block or in it.
    """
    return _region(may_raise=True)


def uninterruptible() -> AbstractContextManager[None]:
    """A block that must not be ended in the middle, within an interruptible one.

    Raises:
        SystemExit: at the end of the block. The task was killed in it.
    """
    return _region(may_raise=False)


@contextmanager
def _region(*, may_raise: bool) -> Iterator[None]:
    task = _current.get()
    if task is None:
        yield
        return
    before, task.may_raise = task.may_raise, may_raise
    try:
        # Here a signal raises by itself. Before, it was only noted.
        task.end_if_killed()
        yield
    finally:
        task.may_raise = before
    task.end_if_killed()
