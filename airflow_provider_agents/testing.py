"""For the tests of those who use this package: the platform on this machine, where a wait takes no time.

The pytest fixture `agents_simulator` (see `pytest_plugin`) is the usual way in.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import heapq
import importlib.util
import itertools
import json
import math
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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

#: Seconds by which a wait ends late, as each real one does. Else, where a test has stopped the system's clock, rounding
#: could leave the end of a wait in the future, and the next wait for it would be too short to change the time.
_LATE = 0.001
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
        self.skip(seconds + _LATE)

    def monotonic(self) -> float:
        """The system's monotonic seconds, and what was skipped."""
        return monotonic() + self._skipped

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
        self._time.sleep(max(0.0, due - self._time.loop_time()))
        if timer.callback is not None:
            timer.callback()


# --- a task without an Airflow --------------------------------------------------------------------------------------


class _Store(dict[str, Any]):
    """A task state store: JSON in, JSON out, and it survives a try."""

    def set(self, key: str, value: Any, *, retention: object = None) -> None:  # noqa: ARG002 - Airflow's
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self.pop(key, None)


class _Given(SimpleNamespace):
    """A part of a task's context. What it lacks says so in words."""

    called: ClassVar[str]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"agents_simulator.run() gives a task no {self.called}.{name}. Use dag.test() for a task that needs it."
        )


class _DagRun(_Given):
    called = "dag_run"


class _TaskInstance(_Given):
    """A try of a task, without a database."""

    called = "ti"

    def xcom_push(self, key: str, value: Any) -> None:
        """Keep a value, or refuse what XCom would refuse."""
        from airflow.providers.common.compat.sdk import XCom

        XCom.serialize_value(value)
        self.xcoms[key] = value

    def xcom_pull(
        self, task_ids: object = None, dag_id: object = None, key: str = "return_value", *, default: Any = None
    ) -> Any:
        """What this try has pushed.

        Raises:
            ValueError: another task's is asked for.
        """
        if task_ids not in (None, self.task_id, [self.task_id]) or dag_id not in (None, self.dag_id):
            raise ValueError(
                f"agents_simulator.run() runs one task, so there is no XCom of {task_ids!r}. Use dag.test() for a task "
                "that needs another one."
            )
        return self.xcoms.get(key, default)

    def get_first_reschedule_date(self, _context: object) -> datetime | None:
        """When this task, with `mode="reschedule"`, first gave its worker back; None if it has not."""
        first: datetime | None = self.first_poke_at
        return first

    def get_template_context(self) -> dict[str, Any]:
        """The context."""
        context: dict[str, Any] = self.context
        return context


class _Context(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        raise KeyError(
            f"agents_simulator.run() puts no {key!r} into the context. Use dag.test() for a task that needs it."
        )


class _Tries:
    """A task instance over its tries, without a database.

    Each worker process of Airflow parses the DAG again, so each step gets a fresh copy of the task here too: an
    attribute that `execute` sets on the task is gone when the task resumes.
    """

    def __init__(self, task: BaseOperator, time: SkippedTime) -> None:
        from airflow_provider_agents.tasks import TRIGGERS_END_TASKS

        self._task, self._time = task, time
        # The store came with the same release.
        self._store = _Store() if TRIGGERS_END_TASKS else None
        self._began_at = self._last_end_at = time.now()
        self._tries = self._reschedules = 0
        self._first_poke_at: datetime | None = None

    def do_next(self) -> Any:
        """Do the next try, with all its deferrals and reschedules.

        Raises:
            ValueError: the clock shows a time before the end of the last try.
        """
        if self._time.now() < self._last_end_at:
            raise ValueError(
                f"agents_simulator.run() cannot do the next try of {self._task.task_id}: the clock was set back after "
                "the last try, so the run of that try would be in the future. Freeze the clock around all tries of a "
                "task, or make a new task object."
            )
        try:
            return self._do()
        finally:
            self._last_end_at = self._time.now()

    def _do(self) -> Any:
        from airflow.providers.common.compat.sdk import TaskDeferred

        self._tries += 1
        self._reschedules = 0
        xcoms: dict[str, Any] = {}
        began_at = self._time.now()
        method = "execute"
        arguments: dict[str, Any] = {}
        while True:
            step_began_at = self._time.now()
            task = copy.copy(self._task)
            context = self._context(task, xcoms, began_at)
            try:
                return _do_step(task, context, method, arguments)
            except TaskDeferred as deferred:
                event = asyncio.run(_first_event(deferred.trigger))
                method, arguments = deferred.method_name, {**(deferred.kwargs or {}), "event": event.payload}
            except _airflows_sensors().AirflowRescheduleException as rescheduled:
                method, arguments = "execute", {}
                self._reschedules += 1
                # Airflow counts a sensor's timeout from its first try's first poke.
                self._first_poke_at = self._first_poke_at or step_began_at
                self._time.skip(max(0.0, (rescheduled.reschedule_date - self._time.now()).total_seconds()))

    def _context(self, task: BaseOperator, xcoms: dict[str, Any], began_at: datetime) -> dict[str, Any]:
        dag_run = _DagRun(
            dag_id=task.dag_id,
            run_id=f"manual__{self._began_at.isoformat()}",
            run_type="manual",
            state="running",
            conf={},
            logical_date=self._began_at,
            data_interval_start=self._began_at,
            data_interval_end=self._began_at,
            run_after=self._began_at,
            start_date=self._began_at,
            end_date=None,
            clear_number=0,
            note=None,
            triggering_user_name=None,
            consumed_asset_events=[],
        )
        ti = _TaskInstance(
            task=task,
            task_id=task.task_id,
            dag_id=task.dag_id,
            run_id=dag_run.run_id,
            map_index=-1,
            try_number=self._tries,
            max_tries=task.retries or 0,
            state="running",
            start_date=began_at,
            end_date=None,
            hostname="localhost",
            xcoms=xcoms,
            first_poke_at=self._first_poke_at,
        )
        context = _Context(
            ti=ti,
            task_instance=ti,
            task=task,
            dag_run=dag_run,
            run_id=dag_run.run_id,
            params=task.params,
            inlets=task.inlets,
            outlets=task.outlets,
            map_index_template=task.map_index_template,
            task_reschedule_count=self._reschedules,
            task_instance_key_str=f"{task.dag_id}__{task.task_id}__{self._began_at:%Y%m%d}",
            logical_date=self._began_at,
            data_interval_start=self._began_at,
            data_interval_end=self._began_at,
            ds=f"{self._began_at:%Y-%m-%d}",
            ds_nodash=f"{self._began_at:%Y%m%d}",
            ts=self._began_at.isoformat(),
            ts_nodash=f"{self._began_at:%Y%m%dT%H%M%S}",
        )
        if task.has_dag():
            context["dag"] = task.dag
        if self._store is not None:
            context["task_state_store"] = self._store
        ti.context = context
        return context


def _do_step(task: BaseOperator, context: Any, method: str, arguments: dict[str, Any]) -> Any:
    """What a worker's process does: from a try's start, or its resumption, to where the task lets go or ends."""
    from airflow.providers.common.compat.sdk import BaseOperator

    before, after = getattr(task, "_pre_execute_hook", None), getattr(task, "_post_execute_hook", None)
    with _run_by_airflow(task):
        if before is not None:
            before(context)
        if type(task).pre_execute is not BaseOperator.pre_execute:
            task.pre_execute(context)
        result = task.execute(context) if method == "execute" else task.resume_execution(method, arguments, context)
        if after is not None:
            after(context, result)
        if type(task).post_execute is not BaseOperator.post_execute:
            task.post_execute(context, result)
    return result


def _check_runnable(task: object) -> None:
    """Refuse what `AgentsSimulator.run` cannot run, before anything is started.

    Raises:
        ValueError: saying what to do.
    """
    from airflow.providers.common.compat.sdk import BaseOperator

    if not isinstance(task, BaseOperator):
        what = f"a {type(task).__name__}" if not isinstance(task, type) else f"the class {task.__name__}"
        raise ValueError(  # noqa: TRY004 - one class for every mistake in a test
            f"agents_simulator.run() takes one operator or sensor, and this is {what}. Of a mapped task, make one "
            "instance: the operator itself with the arguments of that instance. Or use dag.test()."
        )
    for name in task.template_fields:
        if _needs_rendering(getattr(task, name, None)):
            raise ValueError(
                f"agents_simulator.run() fills in no templates and no XComs, and {name} of {task.task_id} needs that. "
                "Give it a plain value, or use dag.test()."
            )


def _needs_rendering(value: object) -> bool:
    """Whether Airflow would put another value in the place of this one, or of a part of it."""
    from airflow.providers.common.compat.sdk import XComArg

    match value:
        case str():
            return any(mark in value for mark in ("{{", "{%", "{#"))
        case XComArg():
            return True
        case dict():
            return any(map(_needs_rendering, value.values()))
        case list() | tuple() | set() | frozenset():
            return any(map(_needs_rendering, value))
    return False


@contextlib.contextmanager
def _run_by_airflow(task: BaseOperator) -> Iterator[None]:
    """Airflow warns of an operator that something else than itself executes, or refuses it."""
    from airflow.sdk.bases.operator import ExecutorSafeguard

    token = ExecutorSafeguard.tracker.set(task)
    try:
        yield
    finally:
        ExecutorSafeguard.tracker.reset(token)


class _InsteadOf:
    """A module as seen by another one, with some of its functions replaced."""

    def __init__(self, module: Any, **functions: Callable[..., Any]) -> None:
        self._module = module
        vars(self).update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _airflows_sensors() -> Any:
    """The module of Airflow's sensors, wherever this release has it: what one waits with, and what it raises."""
    from airflow.providers.common.compat.sdk import BaseSensorOperator

    return sys.modules[BaseSensorOperator.__module__]


@contextlib.contextmanager
def _sensors_wait_on(time: SkippedTime) -> Iterator[None]:
    """Airflow's own waits between two pokes of a sensor, and its timeout, on another time."""
    import pytest

    module = _airflows_sensors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", _InsteadOf(module.time, sleep=time.sleep, monotonic=time.monotonic))
        patch.setattr(module, "timezone", _InsteadOf(module.timezone, utcnow=time.now))
        yield


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


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
        #: By the task's own identity: Airflow counts two operators with equal arguments as equal.
        self._tries: dict[int, _Tries] = {}

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

        The task is waited for and resumed when it defers, and poked again when it is rescheduled. The same task object
        run again is the next try, with the record that the last try kept (Airflow 3.3 and later). Another task object
        is another task instance, even with the same `task_id`.

        Templates and XComs are not filled in; for these, and for everything else that Airflow does around a task, use
        `dag.test()`. In an async test, this blocks the event loop until the try is over.

        Args:
            task: an operator or sensor of this package, or derived from one.

        Raises:
            ValueError: the task cannot be run like this. Nothing was started.
        """
        _check_runnable(task)
        tries = self._tries.setdefault(id(task), _Tries(task, self._time))
        with _sensors_wait_on(self._time):
            if not _in_event_loop():
                return tries.do_next()
            # A worker's thread has no event loop, and the wait needs one of its own.
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(copy_context().run, tries.do_next).result()


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
