"""The documented polling loop and this provider's, side by side: whose run does each report?

Run it with `make soundness`. Time is virtual, so it takes seconds; every number is drawn from a fixed seed.

Both loops execute agents in worlds that the API's page allows and report how the run ended. The simulator knows which
event each request really started, and so whether a report is about another run. An `ambiguous` verdict of ours says
that the API cannot tell: it is counted apart, and is never a success.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import httpx

# Run as a script, so the tests' own modules must be found.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from driving import Driver, wait_on_worker
from own_time import keep_time

from airflow_provider_agents.api.client import Client
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.runs.outcome import Outcome
from airflow_provider_agents.runs.submission import submit
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy
from airflow_provider_agents.simulator import ManualClock, Simulator, SimulatorConfig, mock_transport

RUNS, AGENTS = 200, 40
#: The documented loop is given runs of a second, so it polls often; ours polls as its operator does by default.
NAIVE_POLL_SECONDS, OUR_POLL_SECONDS = 0.5, 5.0


def run_seconds(rng):
    return rng.uniform(0.5, 1.0)


def mostly_completed(rng):
    return "COMPLETED" if rng.random() < 0.9 else "FAILED"


BASE = {"queue_seconds": 0.0, "run_seconds": run_seconds, "end_status": mostly_completed}
#: name, the world, and how often (seconds) the platform itself starts each agent.
CONFIGS = (
    ("record at once, nothing else runs", SimulatorConfig(**BASE), None),
    ("record up to 0.3 s after the 202", SimulatorConfig(**BASE, record_lag=lambda rng: rng.uniform(0, 0.3)), None),
    ("record up to 20 s after the 202", SimulatorConfig(**BASE, record_lag=lambda rng: rng.uniform(0, 20)), None),
    ("record at once, own schedule", SimulatorConfig(**BASE), 7.0),
    ("late records, own schedule", SimulatorConfig(**BASE, record_lag=lambda rng: rng.uniform(0, 0.3)), 45.0),
    (
        "late, scheduled, lagging replicas, skewed clocks",
        SimulatorConfig(
            **BASE,
            record_lag=lambda rng: rng.uniform(0, 5),
            replica_lag=lambda rng: rng.uniform(0, 5),
            clock_skew=240.0,
            gateway_skew=-2.0,
            sort_by="startedAt",
            created_at="appeared",
        ),
        90.0,
    ),
)


def naive(http, clock, agent_id):
    """The polling pattern of the API's page, in Python: what its last line would see."""
    http.post(f"/v1/agents/{agent_id}/execute").raise_for_status()
    while True:
        rows = http.get(f"/v1/agents/{agent_id}/events", params={"limit": 1}).json()["data"]
        if rows and rows[0]["status"] in {"COMPLETED", "FAILED"}:
            return rows[0]["status"], [rows[0]["id"]]
        clock.advance(NAIVE_POLL_SECONDS)


def on_a_worker(client, clock, wait):
    """This provider's way in a task that waits by itself."""
    deadline_at = clock.now + timedelta(hours=24)
    return wait_on_worker(client, wait, clock, clock.advance, interval=OUR_POLL_SECONDS, deadline_at=deadline_at)


def on_a_feed(client, clock, wait):
    """This provider's way in a triggerer."""
    driver = Driver(client, clock, clock.advance)
    subscription = driver.subscribe(wait, interval=OUR_POLL_SECONDS, deadline_at=clock.now + timedelta(hours=24))
    return driver.wait_for(subscription)[0]


def ours(way, client, clock, agent_id):
    """This provider's way, with its default rules."""
    submission = client.run_flow(submit(agent_id, settle=30.0))
    verdict = way(client, clock, RunTracker(submission, WaitPolicy()))
    status = {Outcome.COMPLETED: "COMPLETED", Outcome.FAILED: "FAILED"}.get(verdict.outcome, verdict.outcome.value)
    return status, [event.id for event in verdict.events]


def measure(way, config, every):
    clock = ManualClock()
    keep_time(clock)
    sim = Simulator(clock, config=config, seed=7)
    rng = random.Random(7)
    for number in range(AGENTS):
        sim.add_agent(f"agent-{number}", schedule_every=every, schedule_offset=rng.uniform(0, every or 1))
        sim.add_history(f"agent-{number}", 10)
    transport = mock_transport(sim)
    http = httpx.Client(base_url="http://127.0.0.1", headers={"X-Api-Key": "test-key"}, transport=transport)
    client = Client(Settings(api_key="test-key", base_url="http://127.0.0.1"), transport=transport)
    counts = Counter()
    for number in range(RUNS):
        agent_id = f"agent-{number % AGENTS}"
        clock.advance(rng.uniform(1, 10))
        status, events = naive(http, clock, agent_id) if way is naive else ours(way, client, clock, agent_id)
        done = sim.executions[-1]
        counts["another run's event"] += done.event_id not in events
        counts["false success"] += status == "COMPLETED" and sim.final_status(done.event_id) != "COMPLETED"
        counts["wrong verdict"] += status in {"COMPLETED", "FAILED"} and status != sim.final_status(done.event_id)
        counts["ambiguous, said so"] += status == "ambiguous"
    return counts


def main():
    columns = ("another run's event", "wrong verdict", "false success", "ambiguous, said so")
    print(
        f"{RUNS} runs on {AGENTS} agents in each world, "
        f"polled every {NAIVE_POLL_SECONDS} s (documented) and {OUR_POLL_SECONDS} s (ours)\n"
    )
    print(f"| {'world':48} | {'loop':17} | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    wrong = 0
    for name, config, every in CONFIGS:
        for way, label in ((naive, "documented"), (on_a_worker, "ours, on a worker"), (on_a_feed, "ours, deferred")):
            counts = measure(way, config, every)
            cells = " | ".join(f"{counts[column] / RUNS:{len(column)}.1%}" for column in columns)
            print(f"| {name:48} | {label:17} | {cells} |", flush=True)
            if way is not naive:
                wrong += counts["another run's event"] + counts["wrong verdict"] + counts["false success"]
    print(f"\nours: {wrong} wrong in {2 * RUNS * len(CONFIGS):,} runs")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
