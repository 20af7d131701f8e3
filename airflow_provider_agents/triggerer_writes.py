"""What triggers write to Airflow's database while, or after, they wait. Nothing here delays or fails a wait."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from airflow_provider_agents.hooks import run_url_of
from airflow_provider_agents.links import RUN_URL_KEY
from airflow_provider_agents.shared_starts import end_copy
from airflow_provider_agents.version_compat import TRIGGERS_END_TASKS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Coroutine

    from airflow.triggers.base import BaseTrigger

    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.polling.poller import SharedPoller


def link_to(poller: SharedPoller, agent_id: str, event_id: str | None) -> str | None:
    """Where a person can look at a run, as far as the poller's connection says."""
    template = poller.settings.run_url if poller.settings is not None else None
    return run_url_of(template, agent_id=agent_id, event_id=event_id)


#: Writes to Airflow's database that the triggers of an event loop make at once. Each goes through the one process that
#: also hands triggers their work, so a thousand runs that are identified in one cycle must not come down on it at once.
_WRITES_AT_ONCE = 4
#: Seconds until a write is given up, and until the wait for a turn to push an XCom is: a write takes some 25 ms, so a
#: thousand have had their turns after ten seconds.
_WRITE_SECONDS, _TURN_SECONDS = 30.0, 120.0
#: Seconds until the wait for a turn to end a record's copy is given up. A late change would hit the copy of the run
#: after a clear; a copy that is left does no harm.
_END_TURN_SECONDS = 15.0
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
#: What is under way: a loop holds its tasks weakly.
_writes: set[asyncio.Task[None]] = set()


def write_soon(writing: Coroutine[Any, Any, None]) -> None:
    """Write to Airflow's database in a while. The wait for a run neither waits for it nor fails with it."""
    task = asyncio.create_task(writing)
    _writes.add(task)
    task.add_done_callback(_writes.discard)


@contextlib.asynccontextmanager
async def _turn(seconds: float) -> AsyncIterator[None]:
    """A turn to write to Airflow's database.

    Raises:
        TimeoutError: there was no turn within `seconds`.
    """
    turns = _turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(_WRITES_AT_ONCE))
    async with asyncio.timeout(seconds):
        await turns.acquire()
    try:
        yield
    finally:
        turns.release()


async def end_copy_soon(key: str, event_id: str, log: Any) -> None:
    """Write into the copy of a task's record that the run has ended: the trigger ends the task."""
    try:
        async with _turn(_END_TURN_SECONDS), asyncio.timeout(_WRITE_SECONDS):
            # In a thread: Airflow 3.3 has no other way that does not block the event loop.
            await asyncio.to_thread(end_copy, key, event_id)
    except Exception as error:  # noqa: BLE001 - whatever it is, the task has ended
        log.warning(
            "The copy of this task's record may not have been changed (%s). A try that finds the copy sees that the "
            "run has ended. `airflow agents forget` deletes the copy later. variable=%s",
            type(error).__name__,
            key,
        )


class EarlyXComs:
    """Pushes XComs of a deferred task as soon as the event of its run is known, for people who look at the task.

    A comfort: it never delays or fails the wait, and nothing is tried again, since the worker pushes the same at the
    end. Airflow 3.3 and later, and never in `dag.test()`, where a trigger does not know its task.

    Args:
        trigger: whose task.
        keys: what to push, of `event_id` and `run_url`.
    """

    __slots__ = ("_keys", "_log", "_stopped", "_task")

    def __init__(self, trigger: BaseTrigger, keys: Collection[str]) -> None:
        self._keys, self._log = keys, trigger.log
        self._task: Any = getattr(trigger, "task_instance", None) if TRIGGERS_END_TASKS else None
        self._stopped = False

    def publish(self, poller: SharedPoller, agent_id: str, event: ExecutionEvent) -> None:
        """Say where to look at the run, and push what is wanted, in a while.

        Only where there is a link: nobody but a person looks at a task that is deferred, and each push is a write to
        Airflow's database.
        """
        url = link_to(poller, agent_id, event.id)
        if url is None:
            return
        self._log.info("See the run: %s", url)
        values = {"event_id": event.id, RUN_URL_KEY: url}
        xcoms = {key: value for key, value in values.items() if key in self._keys}
        if xcoms and self._task is not None:
            write_soon(self._push(xcoms))

    def stop(self) -> None:
        """Push no more: the worker does from here on, or another try of the task."""
        # Not by cancelling: the answer to what was sent would come to nobody, which Airflow logs as a fault.
        self._stopped = True

    async def _push(self, xcoms: dict[str, str]) -> None:
        from airflow.providers.common.compat.sdk import XCom
        from airflow.sdk.bases.xcom import BaseXCom

        try:
            async with _turn(_TURN_SECONDS):
                for key, value in xcoms.items():
                    # A backend of the deployment's own may block, which nothing in a triggerer may. A link is read
                    # without it.
                    if self._stopped or (key != RUN_URL_KEY and XCom is not BaseXCom):
                        continue
                    async with asyncio.timeout(_WRITE_SECONDS):
                        await BaseXCom.aset(
                            key,
                            value,
                            dag_id=self._task.dag_id,
                            task_id=self._task.task_id,
                            run_id=self._task.run_id,
                            map_index=self._task.map_index,
                        )
        except Exception as error:  # noqa: BLE001 - whatever it is, the wait goes on
            words = ", ".join(xcoms)
            self._log.warning(
                "Not pushed while the task is deferred: the XComs %s (%s). They come at the end.",
                words,
                type(error).__name__,
            )
