"""For the tests of those who use this package: the platform on this machine, where a wait takes no time.

The pytest fixture `agents_simulator` (see `pytest_plugin`) is the usual way in.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_agents import clock
from airflow_provider_agents.simulator import Execution, Fault, Simulator, SimulatorConfig, running_server
from airflow_provider_agents.testing.skipped_time import SkippedTime
from airflow_provider_agents.testing.tries import Tries, check_runnable, sensors_wait_on

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    import pytest
    from airflow.providers.common.compat.sdk import BaseOperator

ENDS = ("COMPLETED", "FAILED")
_API_KEY = "key-of-the-simulator"


class AgentsSimulator:
    """The platform as a test wants it. All times are seconds, on the platform's clock.

    That clock runs like the system's, and whenever an operator, sensor or trigger of this package waits, it moves on
    by the length of the wait instead: a run of twenty minutes is over in an instant.

    Attributes:
        url: where it listens, on this machine.
        api_key: the key that it accepts.
        platform: the `Simulator` itself: every request and run, every option of `SimulatorConfig`, every `Fault`.
    """

    def __init__(self, platform: Simulator, url: str, time: SkippedTime, monkeypatch: pytest.MonkeyPatch) -> None:
        self.platform, self.url, self.api_key = platform, url, _API_KEY
        self._time, self._monkeypatch = time, monkeypatch
        self._agents: list[str] = []
        #: By the task's own identity: Airflow counts two operators with equal arguments as equal.
        self._tries: dict[int, Tries] = {}

    # --- what there is ---

    @property
    def connection(self) -> str:
        """The connection, as the value of an environment variable `AIRFLOW_CONN_…`."""
        return json.dumps({"conn_type": "agents", "host": self.url, "password": self.api_key})

    def connect(self, agents_conn_id: str) -> None:
        """Set a connection of this name, too, until the test ends. `agents_default` is set already."""
        self._monkeypatch.setenv(f"AIRFLOW_CONN_{agents_conn_id.upper()}", self.connection)

    def add_agent(
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
            error: the error text of a run that FAILED.

        Raises:
            ValueError: an argument has no such value.
        """
        turns = [ends] if isinstance(ends, str) else list(ends)
        if not turns or not set(turns) <= set(ENDS):
            raise ValueError(f"ends must be {' or '.join(ENDS)}, or a list of these, got {ends!r}")
        if error is not None and "FAILED" not in turns:
            raise ValueError("error is the text of a run that FAILED: give ends='FAILED' with it")
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
                f"this test has no agent {agent_id!r} (it has: {known}): add it with agents_simulator.add_agent(...)"
            )
        return agent_id

    # --- what goes wrong ---

    def drop_responses(self, times: int = 1) -> None:
        """For the next `times` executes, start the run, but break the connection before the response."""
        self.platform.faults.append(Fault(kind="reset_after", method="POST", path="/execute", times=times))

    def fail_requests(
        self,
        status: int,
        *,
        times: int | None = 1,
        to: Literal["everything", "execute", "looks"] = "everything",
        retry_after: float | None = None,
    ) -> None:
        """Fail the next requests with an HTTP status; the platform does nothing.

        Args:
            status: such as 429, 503 or 401.
            times: how many requests; None for all from now on.
            to: only requests that start a run (`execute`), or only those that read (`listings`).
            retry_after: the `Retry-After` of the response, in seconds.

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
        """Respond 429 to requests beyond this number in this many seconds."""
        self._change(rate_limit=(requests, seconds))

    def delay_events(self, seconds: float) -> None:
        """Make each event visible only this many seconds after its run was started."""
        self._change(record_lag=seconds)

    def _change(self, **options: Any) -> None:
        self.platform.config = replace(self.platform.config, **options)

    # --- time ---

    def now(self) -> datetime:
        """The platform's clock, aware."""
        return self._time.now()

    def advance(self, seconds: float) -> None:
        """Move the platform's clock forward while no task waits.

        Raises:
            ValueError: they are negative.
        """
        if seconds < 0:
            raise ValueError("time only moves on")
        self._time.advance(seconds)

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
        check_runnable(task)
        tries = self._tries.setdefault(id(task), Tries(task, self._time))
        with sensors_wait_on(self._time):
            return tries.do_next()

    def clear(self, task: BaseOperator, *, keep_task_state: bool = False) -> None:
        """Clear a task that was run, as a user does. The same task object run again is the try that the clear wants.

        Args:
            task: was given to `run` before.
            keep_task_state: what the user chooses under "Keep task state and resume" (Airflow 3.4 and later). Before
                3.4, every clear keeps the state.

        Raises:
            ValueError: the task was not run.
        """
        if id(task) not in self._tries:
            raise ValueError(
                "agents_simulator.clear() takes a task object that agents_simulator.run() was given before"
            )
        self._tries[id(task)].clear(keep_task_state=keep_task_state)


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
    from airflow_provider_agents import hooks
    from airflow_provider_agents.api.client import AsyncClient

    time = SkippedTime()
    # All that the provider awaits on an event loop and that is not a wait of its own.
    monkeypatch.setattr(AsyncClient, "send_once", time.works(AsyncClient.send_once))
    monkeypatch.setattr(hooks, "open_client", time.works(hooks.open_client))
    platform = Simulator(time.now, config=SimulatorConfig(), api_keys=(_API_KEY,))
    # The environment's proxy cannot reach this machine.
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, ",".join(filter(None, (os.environ.get(name), "127.0.0.1"))))
    with running_server(platform) as url, clock.replaced_by(time):
        simulator = AgentsSimulator(platform, url, time, monkeypatch)
        simulator.connect("agents_default")
        yield simulator
