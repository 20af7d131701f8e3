"""Tasks that start the same agent side by side, in a simulated world, each waited for in the poll of a process."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from driving import Driver
from own_time import keep_time

from airflow_provider_agents.api.client import Client
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.polling.plan import Plan
from airflow_provider_agents.polling.single_polls import SinglePolls
from airflow_provider_agents.runs.outcome import Outcome, Verdict
from airflow_provider_agents.runs.selector import BySubmission
from airflow_provider_agents.runs.siblings import Siblings
from airflow_provider_agents.runs.starts import Start
from airflow_provider_agents.runs.submission import submit
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import Fault, ManualClock, Simulator, SimulatorConfig, mock_transport

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime
    from typing import Self

    from airflow_provider_agents.polling.subscriptions import Subscription
    from airflow_provider_agents.runs.submission import Submission

AGENT = "agent"
#: A task that is polled on a worker gives up then.
POKED_SECONDS = 600.0


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
        process: the number of the process that waits for it.
        pokes: its run is polled on a worker, in one process or in a new one each time.
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
    process: int = 0
    pokes: Literal["poke", "reschedule"] | None = None
    own: str | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    ended_after: float | None = None
    tracker: RunTracker | None = None

    @property
    def verdict(self) -> Verdict | None:
        return self.verdicts[0] if self.verdicts else None

    @property
    def handed_on(self) -> set[str]:
        """The events that it was given: at most one, however many sensors wait for it."""
        return {verdict.event.id for verdict in self.verdicts if verdict.is_end and verdict.event}


class World:
    """One agent, the tasks that start it, and the runs that others start.

    Args:
        config: of the simulator.
        tasks: in any order.
        other_starts: seconds at which another party starts the agent.
        restarts: seconds at which the poller closes and comes again; what it knows of siblings stays.
        siblings: what the poller knows of siblings.
        more: arguments of the simulator's `add_agent`.
        skew: seconds that the clock of the machine that waits is ahead of the one that starts the runs.
        processes: how many processes wait, each with a poller.
        read_starts: what a process reads of all starts that are written down; None if starts are not shared.
        driver: drives the plan of each process.
        readable_after: seconds until what was written down can be read.
    """

    def __init__(
        self,
        config: SimulatorConfig,
        tasks: Iterable[Task],
        *,
        other_starts: Iterable[float] = (),
        restarts: Iterable[float] = (),
        seed: int = 7,
        siblings: Siblings | None = None,
        more: Mapping[str, Any] | None = None,
        skew: float = 0.0,
        processes: int = 1,
        read_starts: Callable[[list[Start]], Sequence[Start]] | None = None,
        driver: type[Driver] = Driver,
        readable_after: float = 0.0,
    ) -> None:
        self.clock = ManualClock()
        keep_time(self.clock)
        self.sim = Simulator(self.clock, config=config, seed=seed)
        self.sim.add_agent(AGENT, **(more or {}))
        self.sim.add_history(AGENT, 3)
        transport = mock_transport(self.sim)
        self.client = Client(Settings(api_key="test-key", base_url="http://127.0.0.1"), transport=transport)
        self.siblings = [siblings if siblings is not None else Siblings() for _ in range(processes)]
        self.starts: dict[int, list[tuple[float, Start]]] = {}
        self.read_starts, self.readings = read_starts, 0
        self.readable_after = readable_after
        self.tasks = sorted(tasks, key=lambda task: task.starts_at)
        self.began = self.clock.now
        self.waiting: dict[Subscription[Verdict], tuple[Task, Submission]] = {}
        self.skew = timedelta(seconds=skew)
        self.new_driver = driver
        self.drivers = self._new_drivers()
        self.actions: list[tuple[float, Callable[[Any], None], Any]] = []
        self.actions += [(task.starts_at, self._start, task) for task in self.tasks]
        self.actions += [(moment, self._stranger, None) for moment in other_starts]
        self.actions += [(moment, self._restart, None) for moment in restarts]

    def _new_drivers(self) -> list[Driver]:
        plans = [
            Plan(siblings=siblings, jitter=lambda: 1.0, reads_starts=self.read_starts is not None)
            for siblings in self.siblings
        ]
        return [self.new_driver(self.client, self._waiting_clock, self.clock.advance, plan=plan) for plan in plans]

    def _waiting_clock(self) -> datetime:
        return self.clock.now + self.skew

    @property
    def passed(self) -> float:
        return (self.clock.now - self.began).total_seconds()

    def _start(self, task: Task) -> None:
        if task.loses is not None:
            self.sim.add_fault(Fault(kind=task.loses, method="POST"))
        # No two requests are sent at the same microsecond.
        self.clock.advance(1e-6)
        started = len(self.sim.executions)
        submission = self.client.run_flow(submit(AGENT, settle=task.policy.settle))
        if len(self.sim.executions) > started:
            task.own = self.sim.executions[-1].event_id
        if not submission.in_doubt:
            self._write(task, Start(submission, task.policy.settle, task.policy.appear_within))
        joins_at = self.passed + task.joins_after
        self.actions.append((joins_at, self._join, (task, submission)))
        if task.leaves_after is not None:
            self.actions.append((joins_at + task.leaves_after, self._leave, task))

    def _join(self, task_and_submission: tuple[Task, Submission]) -> None:
        for _ in range(task_and_submission[0].sensors):
            self._wait(task_and_submission)

    def _wait(self, task_and_submission: tuple[Task, Submission]) -> None:
        task, submission = task_and_submission
        task.tracker = tracker = RunTracker(submission, task.policy, self._waiting_clock())
        if task.pokes is not None:
            self._poke((task, submission, SinglePolls()))
            return
        deadline_at = self._waiting_clock() + timedelta(hours=2)
        driver = self.drivers[task.process]
        self.waiting[driver.subscribe(tracker, interval=5.0, deadline_at=deadline_at)] = (task, submission)

    def _poke(self, task_and_polls: tuple[Task, Submission, SinglePolls]) -> None:
        task, submission, polls = task_and_polls
        verdict = self._poll_once(task, submission, polls)
        if verdict is None and task.pokes == "reschedule" and polls.lacks_only_time:
            self.clock.advance(task.policy.settle)
            verdict = self._poll_once(task, submission, polls)
        if verdict is None and self.passed - task.starts_at > POKED_SECONDS:
            verdict = Verdict(Outcome.TIMED_OUT)
        if verdict is not None:
            task.verdicts.append(verdict)
            task.ended_after = task.ended_after or self.passed - task.starts_at
            return
        following = (5.0, polls) if task.pokes == "poke" else (20.0, SinglePolls())
        self.actions.append((self.passed + following[0], self._poke, (task, submission, following[1])))

    def _poll_once(self, task: Task, submission: Submission, polls: SinglePolls) -> Verdict | None:
        verdict, _ = polls.poll(
            self.client,
            BySubmission(agent_id=AGENT, submission=submission),
            task.policy,
            deadline_at=self.clock.now + timedelta(hours=2),
            say=lambda *_: None,
            is_followed=task.pokes == "reschedule",
            read_starts=(lambda _: self._read()) if self.read_starts is not None else None,
        )
        return verdict

    def _leave(self, task: Task) -> None:
        for subscription, (waiting, submission) in list(self.waiting.items()):
            if waiting is task:
                del self.waiting[subscription]
                self.drivers[task.process].plan.unsubscribe(subscription)
                if task.returns_after is not None:
                    self.actions.append((self.passed + task.returns_after, self._wait, (task, submission)))

    def _stranger(self, _: None) -> None:
        self.sim.start_scheduled_run(AGENT)

    def _restart(self, _: None) -> None:
        left, self.waiting = self.waiting, {}
        for subscription, (task, _submission) in left.items():
            self.drivers[task.process].plan.unsubscribe(subscription)
        self.drivers = self._new_drivers()
        for task_and_submission in left.values():
            self._wait(task_and_submission)

    def play(self) -> Self:
        """Let every task end."""
        while self.actions or self.waiting:
            self.actions.sort(key=lambda action: action[0])
            due_at, driver = self._due()
            if self.actions and (due_at is None or self.actions[0][0] <= due_at):
                moment, act, what = self.actions.pop(0)
                self.clock.advance(max(moment - self.passed, 0.0))
                act(what)
            else:
                assert driver is not None
                driver.cycle_once()
                self._read_starts(driver)
            for subscription in [each for each in self.waiting if each.has_ended]:
                task, _ = self.waiting.pop(subscription)
                assert subscription.error is None, subscription.error
                verdict = subscription.result
                assert verdict is not None
                task.verdicts.append(verdict)
                if verdict.is_end and id(task) in self.starts:
                    assert verdict.event is not None
                    _, start = self.starts[id(task)][-1]
                    self._write(task, replace(start, given_event_id=verdict.event.id))
                task.ended_after = task.ended_after or self.passed - task.starts_at
        return self

    def _due(self) -> tuple[float, Driver] | tuple[None, None]:
        """When the next poll is due, and whose."""
        due = []
        for driver in self.drivers:
            at = driver.at()
            next_at = driver.plan.next_at(at)
            if next_at is not None:
                due.append((self.passed + max(next_at - at.monotonic, 0.0), driver))
        return min(due, key=lambda one: one[0], default=(None, None))

    def _read_starts(self, driver: Driver) -> None:
        for agent_id in driver.plan.wanted_starts():
            driver.follow_all([driver.plan.add_starts(agent_id, self._read(), driver.at())])

    def _read(self) -> Sequence[Start]:
        assert self.read_starts is not None
        self.readings += 1
        readable = [[start for at, start in written if at <= self.passed] for written in self.starts.values()]
        return self.read_starts([versions[-1] for versions in readable if versions])

    def _write(self, task: Task, start: Start) -> None:
        self.starts.setdefault(id(task), []).append((self.passed + self.readable_after, start))

    # --- what came of it ---

    def status(self, event_id: str) -> str:
        return self.sim.final_status(event_id)

    @property
    def ended(self) -> list[Task]:
        return [task for task in self.tasks if task.handed_on]

    @property
    def handed_on(self) -> Counter[str]:
        """How many tasks were given each event."""
        return Counter(event_id for task in self.tasks for event_id in task.handed_on)

    @property
    def successes(self) -> list[Task]:
        return [task for task in self.tasks if task.verdict is not None and task.verdict.outcome == "completed"]

    @property
    def completed_of_ours(self) -> list[Task]:
        return [task for task in self.tasks if task.own is not None and self.status(task.own) == "COMPLETED"]

    def outcomes(self) -> Counter[str]:
        return Counter(str(task.verdict.outcome) for task in self.tasks if task.verdict is not None)


def config_of(
    rng: random.Random, *, lag: float = 5.0, failing: float = 0.3, run_seconds: float = 20.0, **more: Any
) -> SimulatorConfig:
    """A world in which records appear within `lag` seconds and a share of the runs FAIL."""
    return SimulatorConfig(
        queue_seconds=0.0,
        run_seconds=lambda rng: rng.uniform(0.5, run_seconds),
        end_status=lambda rng: "FAILED" if rng.random() < failing else "COMPLETED",
        record_lag=lambda rng: rng.uniform(0, lag),
        **more,
    )
