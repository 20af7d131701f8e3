"""Tasks that start the same agent side by side, in a simulated world, each waited for in one poll."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from driving import Driver
from own_time import keep_time

from airflow_provider_agents.api.client import Client
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.polling.plan import Plan
from airflow_provider_agents.runs.siblings import Siblings
from airflow_provider_agents.runs.submission import submit
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import ManualClock, Simulator, SimulatorConfig, mock_transport

if TYPE_CHECKING:
    import random

AGENT = "agent"
_OVER = {"completed", "failed"}


@dataclass
class Task:
    """One task: when it starts its run, and how it waits."""

    starts_at: float
    joins_after: float = 0.0
    policy: WaitPolicy = field(default_factory=WaitPolicy)
    own: str | None = None
    verdict: object = None
    ended_after: float | None = None


class World:
    """One agent, the tasks that start it, and the runs that others start.

    Args:
        config: of the simulator.
        tasks: in any order.
        strangers: seconds at which another party starts the agent.
        restarts: seconds at which the poller closes and comes again; what it knows of siblings stays.
        siblings: what the poller knows of siblings.
        more: arguments of the simulator's `add_agent`.
    """

    def __init__(self, config: SimulatorConfig, tasks, *, strangers=(), restarts=(), seed=7, siblings=None, more=None):
        self.clock = ManualClock()
        keep_time(self.clock)
        self.sim = Simulator(self.clock, config=config, seed=seed)
        self.sim.add_agent(AGENT, **(more or {}))
        self.sim.add_history(AGENT, 3)
        transport = mock_transport(self.sim)
        self.client = Client(Settings(api_key="test-key", base_url="http://127.0.0.1"), transport=transport)
        self.siblings = siblings if siblings is not None else Siblings()
        self.tasks = sorted(tasks, key=lambda task: task.starts_at)
        self.began = self.clock.now
        self.waiting = {}
        self.driver = self._driver()
        self.actions = [(task.starts_at, self._start, task) for task in self.tasks]
        self.actions += [(moment, self._stranger, None) for moment in strangers]
        self.actions += [(moment, self._restart, None) for moment in restarts]

    def _driver(self):
        plan = Plan(siblings=self.siblings, jitter=lambda: 1.0)
        return Driver(self.client, self.clock, self.clock.advance, plan=plan)

    @property
    def passed(self):
        return (self.clock.now - self.began).total_seconds()

    def _start(self, task):
        submission = self.client.run_flow(submit(AGENT, settle=task.policy.settle))
        task.own = self.sim.executions[-1].event_id
        self.actions.append((self.passed + task.joins_after, self._join, (task, submission)))

    def _join(self, task_and_submission):
        task, submission = task_and_submission
        tracker = RunTracker(submission, task.policy)
        deadline_at = self.clock.now + timedelta(hours=2)
        self.waiting[self.driver.subscribe(tracker, interval=5.0, deadline_at=deadline_at)] = (task, submission)

    def _stranger(self, _):
        self.sim.start_scheduled_run(AGENT)

    def _restart(self, _):
        left, self.waiting = self.waiting, {}
        for subscription in left:
            self.driver.plan.unsubscribe(subscription)
        self.driver = self._driver()
        for task_and_submission in left.values():
            self._join(task_and_submission)

    def play(self):
        """Let every task end."""
        while self.actions or self.waiting:
            self.actions.sort(key=lambda action: action[0])
            at = self.driver.at()
            next_at = self.driver.plan.next_at(at)
            due_at = self.passed + max(next_at - at.monotonic, 0.0) if next_at is not None else None
            if self.actions and (due_at is None or self.actions[0][0] <= due_at):
                moment, act, what = self.actions.pop(0)
                self.clock.advance(max(moment - self.passed, 0.0))
                act(what)
            else:
                self.driver.cycle_once()
            for subscription in [each for each in self.waiting if each.has_ended]:
                task, _ = self.waiting.pop(subscription)
                assert subscription.error is None, subscription.error
                task.verdict, task.ended_after = subscription.result, self.passed - task.starts_at
        return self

    # --- what came of it ---

    def status(self, event_id):
        return self.sim.final_status(event_id)

    @property
    def ended(self):
        return [task for task in self.tasks if task.verdict.outcome in _OVER]

    @property
    def handed_on(self):
        """How many tasks were given each event."""
        return Counter(task.verdict.event.id for task in self.ended)

    @property
    def successes(self):
        return [task for task in self.tasks if task.verdict.outcome == "completed"]

    @property
    def completed_of_ours(self):
        return [task for task in self.tasks if self.status(task.own) == "COMPLETED"]

    def outcomes(self):
        return Counter(str(task.verdict.outcome) for task in self.tasks)


def config_of(rng: random.Random, *, lag=5.0, failing=0.3, run_seconds=20.0, **more):
    """A world in which records appear within `lag` seconds and a share of the runs FAIL."""
    return SimulatorConfig(
        queue_seconds=0.0,
        run_seconds=lambda rng: rng.uniform(0.5, run_seconds),
        end_status=lambda rng: "FAILED" if rng.random() < failing else "COMPLETED",
        record_lag=lambda rng: rng.uniform(0, lag),
        **more,
    )
