"""For the tests of those who use this package: the platform on this machine, where a wait takes no time.

The pytest fixture `agents_simulator` (see `pytest_plugin`) is the usual way in.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import importlib.util
import itertools
import json
import math
import os
import threading
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_agents import clock
from airflow_provider_agents.simulator import Execution, Fault, Simulator, World, running_server

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterator, Sequence

    import pytest
    from airflow.providers.common.compat.sdk import BaseOperator

ENDS = ("COMPLETED", "FAILED")
_API_KEY = "key-of-the-simulator"


# --- time -----------------------------------------------------------------------------------------------------------

#: So many rounds of the event loop in which nobody begins to wait or to work mean that nobody is about to. What hands
#: on news without waiting for anything real takes a round for each pair of hands, of which there are never so many.
_QUIET_ROUNDS = 20


class SkippedTime:
    """The system's time, and what the provider has waited for on top: each of its waits is over at once.

    On an event loop a wait is over as soon as nothing of the provider is under way there and no other wait ends
    earlier. So whatever waits does so in the same order as in real time, however slow the machine.
    """

    def __init__(self) -> None:
        self._skipped = 0.0
        self._lock = threading.Lock()
        self._waits: dict[AbstractEventLoop, _Waits] = {}

    def skip(self, seconds: float) -> None:
        """Let time pass."""
        with self._lock:
            self._skipped += seconds

    def now(self) -> datetime:
        """The time of day."""
        return datetime.now(UTC) + timedelta(seconds=self._skipped)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.skip(seconds)

    def loop_time(self) -> float:
        """The running loop's own, and what was skipped."""
        return asyncio.get_running_loop().time() + self._skipped

    def call_later(self, seconds: float, callback: Callable[[], object]) -> clock.Timer:
        """Call something once it is its turn."""
        return self._of_loop().add(seconds, callback)

    def working(self) -> contextlib.AbstractContextManager[None]:
        """Nothing is skipped meanwhile."""
        return self._of_loop().working()

    def _of_loop(self) -> _Waits:
        loop = asyncio.get_running_loop()
        if loop not in self._waits:
            self._waits[loop] = _Waits(self, loop)
        return self._waits[loop]


class _Timer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class _Waits:
    """What waits on one event loop, and the watch that finds when it may go on."""

    def __init__(self, time: SkippedTime, loop: AbstractEventLoop) -> None:
        self._time, self._loop = time, loop
        self._timers: list[tuple[float, int, _Timer]] = []
        self._numbers = itertools.count()
        self._under_way = self._quiet_rounds = 0
        self._watching = False

    def add(self, seconds: float, callback: Callable[[], object]) -> _Timer:
        timer = _Timer(callback)
        if seconds < math.inf:
            heapq.heappush(self._timers, (self._time.loop_time() + seconds, next(self._numbers), timer))
        self._watch()
        return timer

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._watch()

    def _watch(self) -> None:
        self._quiet_rounds = 0
        if not self._watching:
            self._watching = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if self._under_way or not self._timers:
            # The end of the work, or the next wait, begins to watch again.
            self._watching = False
            return
        self._loop.call_soon(self._look)
        self._quiet_rounds += 1
        if self._quiet_rounds <= _QUIET_ROUNDS:
            return
        self._quiet_rounds = 0
        due, _, timer = heapq.heappop(self._timers)
        self._time.skip(max(0.0, due - self._time.loop_time()))
        if timer.callback is not None:
            timer.callback()


# --- a task without an Airflow --------------------------------------------------------------------------------------


class _Store(dict[str, Any]):
    """A task state store: JSON in, JSON out, and it survives a try."""

    def set(self, key: str, value: Any, *, retention: object = None) -> None:  # noqa: ARG002 - Airflow's
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self.pop(key, None)


class _TaskInstance:
    """What Airflow gives to each try of a task, as far as this package needs it."""

    def __init__(self, task: BaseOperator) -> None:
        from airflow_provider_agents.tasks import TRIGGERS_END_TASKS

        # The store came with the same release.
        self._store = _Store() if TRIGGERS_END_TASKS else None
        self._max_tries, self._tries = task.retries or 0, 0

    def next_context(self) -> dict[str, Any]:
        self._tries += 1
        ti = SimpleNamespace(
            try_number=self._tries, max_tries=self._max_tries, xcom_push=lambda key, value: json.dumps({key: value})
        )
        context: dict[str, Any] = {"ti": ti}
        if self._store is not None:
            context["task_state_store"] = self._store
        return context


@contextlib.contextmanager
def _run_by_airflow(task: BaseOperator) -> Iterator[None]:
    """Airflow warns of an operator that something else than itself executes, or refuses it."""
    from airflow.sdk.bases.operator import ExecutorSafeguard

    token = ExecutorSafeguard.tracker.set(task)
    try:
        yield
    finally:
        ExecutorSafeguard.tracker.reset(token)


async def _first_event(trigger: Any) -> Any:
    async with aclosing(trigger.run()) as events:
        return await anext(events)


# --- the fixture ----------------------------------------------------------------------------------------------------


class AgentsSimulator:
    """The platform as a test wants it. All times are seconds, on the platform's clock.

    That clock runs like the system's, and whenever an operator, sensor or trigger of this package waits, it moves on
    by the length of the wait instead: a run of twenty minutes is over in an instant.

    Attributes:
        url: where it listens, on this machine.
        api_key: the key that it accepts.
        platform: the `Simulator` itself: every request and run, every knob of `World`, every kind of `Fault`.
    """

    def __init__(self, platform: Simulator, url: str, time: SkippedTime, monkeypatch: pytest.MonkeyPatch) -> None:
        self.platform, self.url, self.api_key = platform, url, _API_KEY
        self._time, self._monkeypatch = time, monkeypatch
        self._agents: list[str] = []
        self._tasks: dict[tuple[str, str], _TaskInstance] = {}

    # --- what there is ---

    @property
    def connection(self) -> str:
        """The connection, as the value of an environment variable `AIRFLOW_CONN_…`."""
        return json.dumps({"conn_type": "agents", "host": self.url, "password": self.api_key})

    def connect(self, agents_conn_id: str) -> None:
        """Set a connection of this name, too, until the test ends. `agents_default` is set already."""
        self._monkeypatch.setenv(f"AIRFLOW_CONN_{agents_conn_id.upper()}", self.connection)

    def agent(
        self,
        agent_id: str,
        *,
        run_seconds: float = 60.0,
        queue_seconds: float = 1.0,
        ends: str | Sequence[str] = "COMPLETED",
        error: str | None = None,
    ) -> None:
        """Add an agent, or change how its next runs go. Without it the platform answers 404, as for any unknown agent.

        Args:
            agent_id: its id.
            run_seconds: how long its runs take, after they were queued.
            queue_seconds: how long they are PENDING.
            ends: `COMPLETED` or `FAILED`; or a list of these, one for each run in turn, the last for all that follow.
            error: what a run that FAILED says.

        Raises:
            ValueError: an argument has no such value.
        """
        turns = [ends] if isinstance(ends, str) else list(ends)
        if not turns or not set(turns) <= set(ENDS):
            raise ValueError(f"ends must be {' or '.join(ENDS)}, or a list of these, got {ends!r}")
        if error is not None and "FAILED" not in turns:
            raise ValueError("error is what a run that FAILED says: give ends='FAILED' with it")
        following, last = iter(turns), turns[-1]
        self.platform.add_agent(
            agent_id,
            run_seconds=run_seconds,
            queue_seconds=queue_seconds,
            end_status=lambda _: next(following, last),
            error=error,
        )
        self._agents.append(agent_id)

    def start_run(self, agent_id: str, *, after: float = 0.0) -> str:
        """Start a run that no task has asked for, as the platform's own schedule does.

        Args:
            agent_id: an agent of this test.
            after: seconds from now.

        Returns:
            The id of its event.
        """
        return self.platform.start_scheduled_run(self._known(agent_id), after=after)

    def executions(self, agent_id: str | None = None) -> list[Execution]:
        """The runs that tasks have started, in order: what would have been paid for.

        Args:
            agent_id: an agent of this test; None for all.
        """
        wanted = self._known(agent_id) if agent_id is not None else None
        return [done for done in self.platform.executions if wanted in (None, done.agent_id)]

    def _known(self, agent_id: str) -> str:
        if agent_id not in self._agents:
            known = ", ".join(sorted(set(self._agents))) or "none"
            raise ValueError(
                f"this test has no agent {agent_id!r} (it has: {known}): add it with agents_simulator.agent(...)"
            )
        return agent_id

    # --- what goes wrong ---

    def lose_answers(self, times: int = 1) -> None:
        """Start the run that is asked for next, but break the connection before the answer. So many times."""
        self.platform.faults.append(Fault(kind="reset_after", method="POST", path="/execute", times=times))

    def answer(
        self,
        status: int,
        *,
        times: int | None = 1,
        to: Literal["everything", "execute", "looks"] = "everything",
        retry_after: float | None = None,
    ) -> None:
        """Answer the next requests with an HTTP status, and do nothing.

        Args:
            status: such as 429, 503 or 401.
            times: so many requests; None for all from now on.
            to: only requests that start a run (`execute`), or only those that look at runs or agents (`looks`).
            retry_after: seconds that the answer asks to wait.

        Raises:
            ValueError: an argument has no such value.
        """
        methods = {"everything": None, "execute": "POST", "looks": "GET"}
        if to not in methods:
            raise ValueError(f"to must be one of {', '.join(methods)}, got {to!r}")
        headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
        self.platform.faults.append(
            Fault(kind="status", status=status, method=methods[to], times=times, headers=headers)
        )

    def limit_requests(self, requests: int, *, seconds: float) -> None:
        """Answer 429 to what is more than so many requests in so many seconds."""
        self._change(rate_limit=(requests, seconds))

    def show_runs_after(self, seconds: float) -> None:
        """Show the event of a run only so many seconds after the run was started."""
        self._change(record_lag=seconds)

    def _change(self, **knobs: Any) -> None:
        self.platform.world = replace(self.platform.world, **knobs)

    # --- time ---

    def now(self) -> datetime:
        """The platform's clock, aware."""
        return self._time.now()

    def pass_time(self, seconds: float) -> None:
        """Let time pass on the platform, while nobody waits.

        Raises:
            ValueError: they are negative.
        """
        if seconds < 0:
            raise ValueError("time only moves on")
        self._time.skip(seconds)

    # --- a task on its own ---

    def run(self, task: BaseOperator) -> Any:
        """Do one try of a task without a DAG and a database, and return its result, or raise what it raises.

        A task that defers is waited for, and resumed. To run the same task again is its next try: what it keeps in the
        task state store (Airflow 3.3 and later) is there. Templates and XComs are not filled in; for these, and for
        everything else that Airflow does around a task, use `dag.test()`.

        Args:
            task: an operator or sensor of this package, or derived from one.
        """
        from airflow.providers.common.compat.sdk import TaskDeferred

        instance = self._tasks.setdefault((task.dag_id, task.task_id), _TaskInstance(task))
        context: Any = instance.next_context()
        step = partial(task.execute, context)
        with _run_by_airflow(task):
            while True:
                try:
                    return step()
                except TaskDeferred as deferred:
                    event = asyncio.run(_first_event(deferred.trigger))
                    arguments = {**(deferred.kwargs or {}), "event": event.payload}
                    step = partial(task.resume_execution, deferred.method_name, arguments, context)


@contextlib.contextmanager
def simulated_agents(monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentsSimulator]:
    """The platform, its connection `agents_default`, and its time, for the length of a block.

    Args:
        monkeypatch: sets the environment; whoever owns it restores it.

    Raises:
        ModuleNotFoundError: the server's packages are not installed.
    """
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError("agents_simulator needs: pip install 'airflow-provider-agents[simulator]'")
    time = SkippedTime()
    platform = Simulator(time.now, world=World(), api_keys=(_API_KEY,))
    # The environment's proxy cannot reach this machine.
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, ",".join(filter(None, (os.environ.get(name), "127.0.0.1"))))
    with running_server(platform) as url, clock.replaced_by(time):
        simulator = AgentsSimulator(platform, url, time, monkeypatch)
        simulator.connect("agents_default")
        yield simulator
