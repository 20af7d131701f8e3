"""What is true on the simulated platform: agents, and every run with all its times.

A run's state follows from the clock, so nothing has to tick: no threads, no waiting, no real time.
"""

from __future__ import annotations

import itertools
import random
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from airflow_provider_agents.simulator.checks import check, is_seconds
from airflow_provider_agents.simulator.config import Seconds, SimulatorConfig, draw
from airflow_provider_agents.simulator.runs import Agent, Execution, Run, Starter, Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_agents.simulator.clock import Clock


class State:
    """Agents and runs; arguments and attributes as of `Simulator`."""

    def __init__(self, clock: Clock, *, config: SimulatorConfig | None = None, seed: int = 0) -> None:
        self.clock = clock
        self.config = config if config is not None else SimulatorConfig()
        self.rng = random.Random(seed)  # noqa: S311 - a simulation
        self.executions: list[Execution] = []
        self._event_ids: dict[str, str] = {}
        self._agents: dict[str, Agent] = {}
        self._agent_count = 0
        self._runs: dict[str, Run] = {}
        self._run_numbers = itertools.count()
        self._ids = itertools.count(1)
        self._all = Timeline()
        self._by_agent: dict[str, Timeline] = {}
        self._next_due: datetime | None = None

    def now(self) -> datetime:
        """The server's clock."""
        return self.clock() + timedelta(seconds=self.config.clock_skew)

    # --- agents ---

    def add_agent(
        self,
        agent_id: str,
        *,
        name: str | None = None,
        status: str = "ACTIVE",
        queue_seconds: Seconds | None = None,
        run_seconds: Seconds | None = None,
        end_status: str | Callable[[random.Random], str] | None = None,
        error: str | None = None,
        schedule_every: float | None = None,
        schedule_offset: float = 0.0,
    ) -> None:
        """Add an agent, or replace it; a replaced agent keeps its runs.

        Args:
            agent_id: not empty.
            name: the id if None.
            status: `ACTIVE`, `PAUSED` or `DELETED`.
            queue_seconds: how long its runs are PENDING; as in the config if None.
            run_seconds: how long its runs are RUNNING; as in the config if None.
            end_status: the last status of its runs; as in the config if None.
            error: the `error` of its runs that do not end COMPLETED.
            schedule_every: seconds (above 0) between the runs that the platform starts itself; None for no such runs.
            schedule_offset: seconds from now to the first of them.

        Raises:
            ValueError: an argument has no such value; the message names the argument.
        """
        check(is_seconds(schedule_offset), "schedule_offset", "a number of seconds, 0 or more")
        now = self.now()
        agent = Agent(
            id=agent_id,
            number=0,
            name=name or agent_id,
            created_at=now,
            status=status,
            queue_seconds=queue_seconds,
            run_seconds=run_seconds,
            end_status=end_status,
            error=Agent.error if error is None else error,
            schedule_every=schedule_every,
            next_scheduled=None if schedule_every is None else now + timedelta(seconds=schedule_offset),
        )
        # The replaced agent has started these runs.
        self.run_schedules()
        known = self._agents.get(agent_id)
        self._agent_count += known is None
        agent.number = self._agent_count if known is None else known.number
        self._agents[agent_id] = agent
        self._by_agent.setdefault(agent_id, Timeline())
        self._update_next_due()

    def remove_agent(self, agent_id: str, *, keep_events: bool = False) -> None:
        """Delete an agent. Its listing, its execute and the agent itself are answered 404. Its runs stay true.

        Args:
            agent_id: its id.
            keep_events: whether the account's listing still shows its events.

        Raises:
            KeyError: the agent does not exist.
        """
        self.run_schedules()
        if keep_events:
            agent = self._agents[agent_id]
            agent.status, agent.schedule_every, agent.next_scheduled = "DELETED", None, None
        else:
            del self._agents[agent_id]

    def agents(self) -> Iterator[Agent]:
        """The agents that are not deleted, newest first."""
        return (agent for agent in reversed(self._agents.values()) if agent.status != "DELETED")

    def agent(self, agent_id: str) -> Agent | None:
        """An agent; None if it does not exist or is deleted."""
        agent = self._agents.get(agent_id)
        return agent if agent is not None and agent.status != "DELETED" else None

    # --- runs ---

    def start_scheduled_run(self, agent_id: str, *, after: float = 0.0) -> str:
        """Start a run as the platform's schedule does. Returns the id of its event.

        Args:
            agent_id: its agent.
            after: seconds from now.

        Raises:
            KeyError: the agent does not exist.
            ValueError: `after` is not a number of seconds, 0 or more.
        """
        check(is_seconds(after), "after", "a number of seconds, 0 or more")
        return self.start(self._agents[agent_id], "schedule", self.now() + timedelta(seconds=after)).event_id

    def add_history(
        self,
        agent_id: str,
        count: int,
        *,
        every: float = 3600.0,
        run_seconds: float = 60.0,
        end_status: str = "COMPLETED",
    ) -> None:
        """Add `count` past runs, one every `every` seconds; the last began `every` seconds ago."""
        agent, now = self._agents[agent_id], self.now()
        for number in range(count, 0, -1):
            accepted_at = now - timedelta(seconds=number * every)
            self.start(agent, "schedule", accepted_at, queue=0.0, run=run_seconds, end_status=end_status, lag=0.0)

    def execute(self, agent: Agent) -> Run:
        """Start a run as an execute does."""
        run = self.start(agent, "execute", self.now())
        self.executions.append(Execution(agent.id, run.request_id, run.event_id, run.accepted_at))
        self._event_ids[run.request_id] = run.event_id
        return run

    def event_of(self, request_id: str) -> str:
        """The id of the event of the run that a request started.

        Raises:
            KeyError: no request with this id was accepted.
        """
        return self._event_ids[request_id]

    def truth(self, event_id: str) -> Run:
        """A run, whatever a listing shows of it.

        Raises:
            KeyError: the event does not exist.
        """
        return self._runs[event_id]

    def final_status(self, event_id: str) -> str:
        """The last status of a run, whether it has ended or not."""
        return self._runs[event_id].end_status

    def runs(self) -> list[tuple[Run, str]]:
        """Every run that was started by now, and its status, oldest first."""
        self.run_schedules()
        now = self.now()
        runs = (run for run in self._all.newest_first(now) if run.started_by != "row")
        return [(run, run.status_at(now, self.config)) for run in runs][::-1]

    def timeline(self, agent_id: str | None) -> Timeline:
        """The runs of an agent; all runs if None."""
        return self._all if agent_id is None else self._by_agent.get(agent_id, Timeline())

    def forget(self, ended_before: datetime) -> None:
        """Remove the runs that ended before a time, as if they had never been. Simulations of months need it."""
        gone = {event_id for event_id, run in self._runs.items() if run.ended_at < ended_before}
        self._runs = {event_id: run for event_id, run in self._runs.items() if event_id not in gone}
        self._event_ids = {name: event_id for name, event_id in self._event_ids.items() if event_id not in gone}
        self.executions[:] = [done for done in self.executions if done.event_id not in gone]
        for timeline in (self._all, *self._by_agent.values()):
            timeline.runs[:] = [run for run in timeline.runs if run.event_id not in gone]

    def start(
        self,
        agent: Agent,
        started_by: Starter,
        accepted_at: datetime,
        *,
        queue: float | None = None,
        run: float | None = None,
        end_status: str | None = None,
        lag: float | None = None,
    ) -> Run:
        """Start a run. What is None is drawn as the agent or the config says."""
        config, rng = self.config, self.rng
        if queue is None:
            queue = draw(config.queue_seconds if agent.queue_seconds is None else agent.queue_seconds, rng)
        if run is None:
            run = draw(config.run_seconds if agent.run_seconds is None else agent.run_seconds, rng)
        if end_status is None:
            drawn = config.end_status if agent.end_status is None else agent.end_status
            end_status = drawn(rng) if callable(drawn) else drawn
        if lag is None:
            lag = draw(config.record_lag, rng)
        request_id = self._new_id("req")
        started_at = accepted_at + timedelta(seconds=queue)
        made = Run(
            number=next(self._run_numbers),
            event_id=request_id if config.request_id == "id" else self._new_id("event"),
            request_id=request_id,
            agent_id=agent.id,
            accepted_at=accepted_at,
            visible_at=accepted_at + timedelta(seconds=lag),
            started_at=started_at,
            ended_at=started_at + timedelta(seconds=run),
            end_status=end_status,
            error=agent.error,
            started_by=started_by,
            steps=1 + int(run // 2),
        )
        self._runs[made.event_id] = made
        for timeline in (self._all, self._by_agent[agent.id]):
            timeline.add(made)
        return made

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}-{next(self._ids):06d}{self.rng.getrandbits(32):08x}"

    def run_schedules(self) -> None:
        """Start the runs that the platform's own schedules have started by now."""
        now = self.now()
        if self._next_due is None or self._next_due > now:
            return
        for agent in self._agents.values():
            while agent.next_scheduled is not None and agent.schedule_every and agent.next_scheduled <= now:
                self.start(agent, "schedule", agent.next_scheduled)
                agent.next_scheduled += timedelta(seconds=agent.schedule_every)
        self._update_next_due()

    def _update_next_due(self) -> None:
        due = (agent.next_scheduled for agent in self._agents.values())
        self._next_due = min((moment for moment in due if moment is not None), default=None)
