"""One question to the platform for all pages that are open, however many.

Sixty open pages must cost what one costs, and a platform that hangs must cost Airflow's own API nothing: nothing here
blocks the event loop, nothing takes a thread while it waits, and each question ends after `LIMIT_SECONDS`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from airflow_provider_agents.api.errors import AgentsError
from airflow_provider_agents.clock import monotonic, timeout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Seconds until a question is given up. A page that waits longer looks broken.
LIMIT_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Shown(Generic[T]):
    """What is known.

    Attributes:
        value: the last answer; None if there was none yet.
        age_seconds: how old it is.
        error: why the last question was not answered; None if it was.
    """

    value: T | None
    age_seconds: float | None
    error: str | None


class SharedQuestion(Generic[T]):
    """A question that is asked at most every few seconds, for all pages.

    Args:
        ask: asks it.
        fresh_seconds: how long an answer, or a failure, serves everybody.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]], fresh_seconds: float) -> None:
        self._ask, self._fresh_seconds = ask, fresh_seconds
        self._asking: asyncio.Task[None] | None = None
        self._value: T | None = None
        self._answered_at: float | None = None
        self._ended_at: float | None = None
        self._error: str | None = None

    async def answer(self) -> Shown[T]:
        """The answer, at most `fresh_seconds` old, or else the last one and the error. Raises nothing."""
        if self._asking is None and (self._ended_at is None or monotonic() - self._ended_at >= self._fresh_seconds):
            self._asking = asyncio.create_task(self._run())
        if self._asking is not None:
            # A page that is closed must not take the answer from the others.
            await asyncio.shield(self._asking)
        age = monotonic() - self._answered_at if self._answered_at is not None else None
        return Shown(self._value, age, self._error)

    async def _run(self) -> None:
        began_at = monotonic()
        try:
            async with timeout(LIMIT_SECONDS):
                self._value = await self._ask()
            self._answered_at, self._error = began_at, None
        except TimeoutError:
            self._error = f"The platform has not answered within {LIMIT_SECONDS:g} seconds."
        except AgentsError as error:
            self._error = str(error)
        except Exception as error:
            log.exception("A question of the page Browse > Agents has failed.")
            self._error = f"The question failed with {type(error).__name__}. See the log of Airflow's API server."
        finally:
            self._ended_at, self._asking = monotonic(), None
