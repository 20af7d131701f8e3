"""One task without a DAG, a database and an Airflow: its tries, and the context of each."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from contextvars import copy_context
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_agents.testing.variables import Copies, copies_kept_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from airflow.providers.common.compat.sdk import BaseOperator

    from airflow_provider_agents.testing.skipped_time import SkippedTime


class _Store(dict[str, Any]):
    """A task state store: JSON in, JSON out, and it survives a try."""

    def set(self, key: str, value: Any, *, retention: object = None) -> None:  # noqa: ARG002 - Airflow's
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self.pop(key, None)


class _Given(SimpleNamespace):
    """A part of a task's context. A missing part raises an error that names it."""

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


class Tries:
    """A task instance over its tries, without a database.

    Each worker process of Airflow parses the DAG again, so each step gets a fresh copy of the task here too: an
    attribute that `execute` sets on the task is gone when the task resumes.
    """

    def __init__(self, task: BaseOperator, time: SkippedTime) -> None:
        from airflow_provider_agents.version_compat import TRIGGERS_END_TASKS

        self._task, self._time = task, time
        # The store came with the same release.
        self._store = _Store() if TRIGGERS_END_TASKS else None
        self._began_at = self._last_end_at = time.now()
        self._copies = Copies()
        self._tries = self._reschedules = self._clears = 0
        self._max_tries = task.retries or 0
        self._first_poke_at: datetime | None = None

    def clear(self, *, keep_task_state: bool) -> None:
        """Clear the task, as a user does: its next try is wanted, whatever became of the last one."""
        from airflow_provider_agents.version_compat import clears_discard_state

        self._clears += 1
        self._max_tries = self._tries + (self._task.retries or 0)
        if self._store is not None and clears_discard_state() and not keep_task_state:
            self._store.clear()

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
            if not _in_event_loop():
                return self._do()
            # A worker's thread has no event loop, and the wait needs one of its own.
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(copy_context().run, self._do).result()
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
                with copies_kept_in(self._copies):
                    return _do_step(task, context, method, arguments)
            except TaskDeferred as deferred:
                event = asyncio.run(_first_event(deferred.trigger))
                method, arguments = deferred.method_name, {**(deferred.kwargs or {}), "event": event.payload}
            except _airflows_sensors().AirflowRescheduleException as rescheduled:
                method, arguments = "execute", {}
                self._reschedules += 1
                # Airflow counts a sensor's timeout from its first try's first poke.
                self._first_poke_at = self._first_poke_at or step_began_at
                self._time.advance(max(0.0, (rescheduled.reschedule_date - self._time.now()).total_seconds()))

    def _context(self, task: BaseOperator, xcoms: dict[str, Any], began_at: datetime) -> dict[str, Any]:
        # What a task writes there is read when this process ends it well.
        from airflow.sdk.execution_time.context import OutletEventAccessors

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
            clear_number=self._clears,
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
            max_tries=self._max_tries,
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
            outlet_events=OutletEventAccessors(),
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


def check_runnable(task: object) -> None:
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
def sensors_wait_on(time: SkippedTime) -> Iterator[None]:
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
