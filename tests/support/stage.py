"""Several actors on one virtual time, one of which acts at a time: when it pauses, the next one is chosen."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import selectors
from asyncio import _get_running_loop, _set_running_loop
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

from airflow_provider_agents import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

START = datetime(2026, 1, 1, 9, tzinfo=UTC)


class StageEnds(BaseException):
    """The play is over: every actor ends."""


class Actor:
    """One of the actors.

    Attributes:
        wake_at: when its pause ends, in seconds.
        asked: what it has asked the platform.
    """

    def __init__(self, name: str, act: greenlet, wake_at: float) -> None:
        self.name, self.act, self.wake_at = name, act, wake_at
        self.forget()

    def forget(self) -> None:
        """From here on, what it does depends only on what it sees next."""
        self.asked: set[str] = set()
        self._digest = hashlib.blake2b(digest_size=16)

    def saw(self, text: str) -> None:
        """It has seen something that what it does may depend on."""
        self._digest.update(text.encode())
        self._digest.update(b"\n")

    @property
    def seen(self) -> str:
        """All that it has seen, in short."""
        return self._digest.hexdigest()


class Stage:
    """The time in seconds, the actors, and whose turn it is.

    Args:
        choose: from a label and options to one of them.
    """

    def __init__(self, choose: Callable[[str, Sequence[str]], str]) -> None:
        self._choose, self._director = choose, getcurrent()
        self.now, self.is_ending = 0.0, False
        self.actors: list[Actor] = []
        self.current: Actor | None = None

    @property
    def acting(self) -> Actor:
        """The actor whose turn it is."""
        assert self.current is not None, "no actor's turn"
        return self.current

    def clock(self) -> datetime:
        """The time of day."""
        return START + timedelta(seconds=self.now)

    def add(self, name: str, act: Callable[[], object], *, after: float = 0.0) -> Actor:
        """Let another actor begin."""
        actor = Actor(name, greenlet(act, parent=self._director), self.now + after)
        self.actors.append(actor)
        return actor

    def play(self, until: Callable[[], bool]) -> None:
        """Let them act until a condition holds, or none has anything left to do.

        Raises:
            BaseException: what one of them has raised.
        """
        try:
            while not until() and self._next():
                self.acting.act.switch()
                self.actors = [actor for actor in self.actors if not actor.act.dead]
        finally:
            self.is_ending = True
            for actor in self.actors:
                self.current = actor
                if actor.act:
                    with contextlib.suppress(StageEnds):
                        actor.act.throw(StageEnds)

    def _next(self) -> bool:
        soonest = min((actor.wake_at for actor in self.actors), default=math.inf)
        if soonest == math.inf:
            return False
        self.now = max(self.now, soonest)
        self.current = None
        ready = {actor.name: actor for actor in self.actors if actor.wake_at <= self.now}
        self.current = ready[self._choose("turn", list(ready))]
        return True

    def pause(self, seconds: float) -> None:
        """Let time pass for the actor whose turn it is; others act meanwhile. `wake` may end it early."""
        me = self.acting
        me.wake_at = self.now + seconds
        # An event loop that pauses is not the one that the next actor runs on.
        loop = _get_running_loop()
        _set_running_loop(None)
        try:
            self._director.switch()
        finally:
            _set_running_loop(loop)
        me.wake_at = self.now

    def wake(self, actor: Actor) -> None:
        """End an actor's pause."""
        actor.wake_at = min(actor.wake_at, self.now)


class StageTime(clock.SystemClock):
    """The provider's time on a stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def now(self) -> datetime:
        return self._stage.clock()

    def sleep(self, seconds: float) -> None:
        # A pause that is shorter than the clock's resolution would never end.
        self._stage.pause(max(seconds, 1e-6))

    def monotonic(self) -> float:
        return self._stage.now


class _Selector(selectors.DefaultSelector):
    loop: StageLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout != 0 and not self.loop.stage.is_ending:
            self.loop.stage.pause(math.inf if timeout is None else max(timeout, 1e-6))
        return ready


class StageLoop(asyncio.SelectorEventLoop):
    """An event loop whose actor pauses while everything on the loop waits. It has no threads."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.stage.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]  # the same for any
        """The call at once, as if a thread had been quick."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - as a thread does
            future.set_exception(error)
        return future
