"""The platform of `make cluster-test`: its agents, the tasks that run them, and how awkward the platform is."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from audit import Run

from airflow_provider_agents.simulator import Simulator, SimulatorConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The API key.
KEY = "sk-cluster-0123456789"
#: The agents take turns with these, in seconds: what a wait costs the workers must not depend on it.
RUN_SECONDS = (5.0, 45.0)
FAILS = 0.05
#: Every how many seconds the platform starts a run of each agent by itself.
SCHEDULE_SECONDS = 240.0
#: What the platform allows in a second.
PLATFORM_RATE = 15
#: The part of the tasks that share agents, and how many tasks share one.
SHARED_PART, SIBLINGS = 0.25, 4
SHARED_KIND = "shared agents"
#: Tasks of a shared agent begin at full multiples of so many seconds.
START_EVERY = 10
#: Of a task that has an agent to itself: above the 3.5 s after which a record appears, so that a test takes minutes.
SETTLE = 5.0
#: Of a task that shares its agent: a third of the default of 30, for the same reason.
SHARED_SETTLE = 10.0
#: The agent of the tasks whose budget is used up: `cluster_dags.py` gives them one run a day, and the agent has had it.
SPENT_AGENT = "agent-spent"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A task that each DAG run has.

    Attributes:
        agent_id: whose run it wants.
        run_seconds: how long that takes.
        is_shared: other tasks of the DAG run want runs of the agent, too.
    """

    agent_id: str
    run_seconds: float
    is_shared: bool

    @property
    def kind(self) -> str:
        """Which tasks it is counted with."""
        return SHARED_KIND if self.is_shared else f"runs of {self.run_seconds:g} s"

    @property
    def arguments(self) -> dict[str, Any]:
        """Of its operator."""
        if self.is_shared:
            return {"agent_id": self.agent_id, "settle": SHARED_SETTLE, "start_every": START_EVERY}
        return {"agent_id": self.agent_id, "settle": SETTLE, "start_every": 0}


def places(count: int, shared_part: float = SHARED_PART) -> list[Place]:
    """The tasks of a DAG run: first those that have an agent to themselves, then those that share one."""
    shared = min(max(1, round(count * shared_part / SIBLINGS)), count // SIBLINGS)
    turns = len(RUN_SECONDS)
    alone = [
        Place(agent_id=f"agent-{number}", run_seconds=RUN_SECONDS[number % turns], is_shared=False)
        for number in range(count - shared * SIBLINGS)
    ]
    together = [
        Place(agent_id=f"shared-{number}", run_seconds=RUN_SECONDS[number % turns], is_shared=True)
        for number in range(shared)
        for _ in range(SIBLINGS)
    ]
    return alone + together


def platform(wanted: Sequence[Place], seed: int) -> Simulator:
    """The platform at its most awkward, as far as its page allows."""
    config = SimulatorConfig(
        record_lag=lambda rng: rng.uniform(0, 3),
        replica_lag=lambda rng: rng.uniform(0, 0.5),
        end_status=lambda rng: "FAILED" if rng.random() < FAILS else "COMPLETED",
        rate_limit=(PLATFORM_RATE, 1.0),
    )
    simulator = Simulator(lambda: datetime.now(UTC), config=config, api_keys=(KEY,), seed=seed)
    rng = random.Random(seed)
    for agent_id, run_seconds in {place.agent_id: place.run_seconds for place in wanted}.items():
        simulator.add_agent(
            agent_id,
            run_seconds=run_seconds,
            schedule_every=SCHEDULE_SECONDS,
            schedule_offset=rng.uniform(0, SCHEDULE_SECONDS),
        )
    simulator.add_agent(SPENT_AGENT)
    simulator.add_history(SPENT_AGENT, 1)
    return simulator


def started_runs(simulator: Simulator) -> list[Run]:
    """What the platform was asked for and has started."""
    return [
        Run(
            agent_id=done.agent_id,
            request_id=done.request_id,
            event_id=done.event_id,
            accepted_at=done.accepted_at,
            ended_at=simulator.truth(done.event_id).ended_at,
            end_status=simulator.final_status(done.event_id),
        )
        for done in simulator.executions
    ]


def side_by_side(simulator: Simulator) -> int:
    """How many runs tasks started less than a second before or after another run of the same agent."""
    of_agents: dict[str, list[datetime]] = defaultdict(list)
    for done in simulator.executions:
        of_agents[done.agent_id].append(done.accepted_at)
    beside = 0
    for moments in of_agents.values():
        far = [True, *(after - before >= timedelta(seconds=1) for before, after in pairwise(moments)), True]
        beside += sum(not (before and after) for before, after in pairwise(far))
    return beside
