"""Tasks that start the same agent side by side, in a simulated world, each waited for in one poll."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from driving import Driver
from own_time import keep_time

from airflow_provider_agents.api.client import Client
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.polling.plan import Plan
from airflow_provider_agents.runs.siblings import Siblings
from airflow_provider_agents.runs.submission import submit
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import Fault, ManualClock, Simulator, SimulatorConfig, mock_transport

if TYPE_CHECKING:
    import random

    from airflow_provider_agents.runs.outcome import Verdict

AGENT = "agent"


@dataclass
class Task:
    """One task: when it starts its run, and how it waits.

    Attributes:
        starts_at: when it starts its run.
        joins_after: seconds from then until it waits.
        policy: how it waits.
        loses: the response to its POST is lost: after the platform has acted, or before.
        leaves_after: seconds after which it no longer waits, without a verdict.
        returns_after: seconds from then until it waits again, for the same submission; None for never.
        sensors: how many wait for its submission.
        own: the event of its run, None if the platform started none.
        verdicts: of its sensors, in the order of time.
        ended_after: seconds from its start to the first verdict.
    """

    starts_at: float
    joins_after: float = 0.0
    policy: WaitPolicy = field(default_factory=WaitPolicy)
    loses: Literal["reset_after", "reset_before"] | None = None
    leaves_after: float | None = None
    returns_after: float | None = None
    sensors: int = 1
    own: str | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    ended_after: float | None = None
    tracker: RunTracker | None = None

    @property
    def verdict(self):
        return self.verdicts[0] if self.verdicts else None

    @property
    def handed_on(self):
        """The events that it was given: at most one, however many sensors wait for it."""
        return {verdict.event.id for verdict in self.verdicts if verdict.is_end}


class World:
    """One agent, the tasks that start it, and the runs that others start.

    Args:
        config: of the simulator.
        tasks: in any order.
        strangers: seconds at which another party starts the agent.
        restarts: seconds at which the poller closes and comes again; what it knows of siblings stays.
        siblings: what the poller knows of siblings.
        more: arguments of the simulator's `add_agent`.
        skew: seconds that the clock of the machine that waits is ahead of the one that starts the runs.
    """

    def __init__(
        self, config: SimulatorConfig, tasks, *, strangers=(), restarts=(), seed=7, siblings=None, more=None, skew=0.0
    ):
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
        self.skew = timedelta(seconds=skew)
        self.driver = self._driver()
        self.actions = [(task.starts_at, self._start, task) for task in self.tasks]
        self.actions += [(moment, self._stranger, None) for moment in strangers]
        self.actions += [(moment, self._restart, None) for moment in restarts]

    def _driver(self):
        plan = Plan(siblings=self.siblings, jitter=lambda: 1.0)
        return Driver(self.client, self._waiting_clock, self.clock.advance, plan=plan)

    def _waiting_clock(self):
        return self.clock.now + self.skew

    @property
    def passed(self):
        return (self.clock.now - self.began).total_seconds()

    def _start(self, task):
        if task.loses is not None:
            self.sim.add_fault(Fault(kind=task.loses, method="POST"))
        # No two requests are sent at the same microsecond.
        self.clock.advance(1e-6)
        started = len(self.sim.executions)
        submission = self.client.run_flow(submit(AGENT, settle=task.policy.settle))
        if len(self.sim.executions) > started:
            task.own = self.sim.executions[-1].event_id
        joins_at = self.passed + task.joins_after
        self.actions.append((joins_at, self._join, (task, submission)))
        if task.leaves_after is not None:
            self.actions.append((joins_at + task.leaves_after, self._leave, task))

    def _join(self, task_and_submission):
        for _ in range(task_and_submission[0].sensors):
            self._wait(task_and_submission)

    def _wait(self, task_and_submission):
        task, submission = task_and_submission
        task.tracker = tracker = RunTracker(submission, task.policy)
        deadline_at = self._waiting_clock() + timedelta(hours=2)
        self.waiting[self.driver.subscribe(tracker, interval=5.0, deadline_at=deadline_at)] = (task, submission)

    def _leave(self, task):
        for subscription, (waiting, submission) in list(self.waiting.items()):
            if waiting is task:
                del self.waiting[subscription]
                self.driver.plan.unsubscribe(subscription)
                if task.returns_after is not None:
                    self.actions.append((self.passed + task.returns_after, self._wait, (task, submission)))

    def _stranger(self, _):
        self.sim.start_scheduled_run(AGENT)

    def _restart(self, _):
        left, self.waiting = self.waiting, {}
        for subscription in left:
            self.driver.plan.unsubscribe(subscription)
        self.driver = self._driver()
        for task_and_submission in left.values():
            self._wait(task_and_submission)

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
                task.verdicts.append(subscription.result)
                task.ended_after = task.ended_after or self.passed - task.starts_at
        return self

    # --- what came of it ---

    def status(self, event_id):
        return self.sim.final_status(event_id)

    @property
    def ended(self):
        return [task for task in self.tasks if task.handed_on]

    @property
    def handed_on(self):
        """How many tasks were given each event."""
        return Counter(event_id for task in self.tasks for event_id in task.handed_on)

    @property
    def successes(self):
        return [task for task in self.tasks if task.verdict is not None and task.verdict.outcome == "completed"]

    @property
    def completed_of_ours(self):
        return [task for task in self.tasks if task.own is not None and self.status(task.own) == "COMPLETED"]

    def outcomes(self):
        return Counter(str(task.verdict.outcome) for task in self.tasks if task.verdict is not None)


def config_of(rng: random.Random, *, lag=5.0, failing=0.3, run_seconds=20.0, **more):
    """A world in which records appear within `lag` seconds and a share of the runs FAIL."""
    return SimulatorConfig(
        queue_seconds=0.0,
        run_seconds=lambda rng: rng.uniform(0.5, run_seconds),
        end_status=lambda rng: "FAILED" if rng.random() < failing else "COMPLETED",
        record_lag=lambda rng: rng.uniform(0, lag),
        **more,
    )
