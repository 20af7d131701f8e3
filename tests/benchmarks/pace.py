"""Whether to look more rarely while an agent's history says that nothing can have happened yet: with and without.

Run it with `make pace`. Time is virtual, so it takes a few minutes; every number is drawn from a fixed seed.

Each agent does its runs one after the other, as the tasks of scheduled DAGs do, and all are waited for on one feed.
Counted are the requests of the waits, and the delay from the end of a run to its verdict.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
from datetime import timedelta
from pathlib import Path

# Run as a script, so the tests' own modules must be found.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from driving import Driver

from airflow_provider_agents.api.client import Client, Settings
from airflow_provider_agents.feed.plan import Plan
from airflow_provider_agents.runs.submission import submit
from airflow_provider_agents.runs.verdict import Rules, Wait
from airflow_provider_agents.simulator import ManualClock, Simulator, World, mock_transport

POLL_SECONDS = 5.0
#: The agents' earlier runs, so that there is a history from the start.
HISTORY, RUNS = 30, 20


def bimodal(rng):
    return rng.uniform(40, 80) if rng.random() < 0.7 else rng.uniform(1500, 2100)


#: name, and how long a run takes.
DISTRIBUTIONS = (
    ("short: 5 to 20 s", lambda rng: rng.uniform(5, 20)),
    ("middling: 2 min, give or take a fifth", lambda rng: 120 * math.exp(rng.gauss(0, 0.2))),
    ("long: 30 min, give or take a fifth", lambda rng: 1800 * math.exp(rng.gauss(0, 0.2))),
    ("long and steady: 30 min within 2 %", lambda rng: 1800 * rng.uniform(0.98, 1.02)),
    ("bimodal: a minute, or half an hour", bimodal),
    ("heavy tail: 5 min, times or by e", lambda rng: 300 * math.exp(rng.gauss(0, 1))),
    ("drifting: twice as fast as its history", lambda rng: 60 * math.exp(rng.gauss(0, 0.2))),
)


def measure(seconds, *, agents, adaptive, history=None):
    rng = random.Random(7)
    clock = ManualClock()
    sim = Simulator(clock, world=World(request_id="absent", queue_seconds=1.0), seed=7)
    for number in range(agents):
        sim.add_agent(f"agent-{number}", run_seconds=seconds)
        for hours in range(HISTORY, 0, -1):
            sim.add_history(f"agent-{number}", 1, every=hours * 3600.0, run_seconds=(history or seconds)(rng))
    client = Client(
        Settings(api_key="test-key", base_url="http://127.0.0.1"),
        transport=mock_transport(sim),
        sleep=clock.advance,
    )
    driver = Driver(client, clock, clock.advance, plan=Plan(jitter=lambda: 1.0, adaptive=adaptive))
    left = {f"agent-{number}": RUNS for number in range(agents)}
    waiting, delays, submitting = {}, [], 0

    def start(agent_id):
        nonlocal submitting
        before = len(sim.requests)
        submission = client.follow(submit(agent_id, settle=30.0, now=clock))
        submitting += len(sim.requests) - before
        left[agent_id] -= 1
        ticket = driver.join(
            Wait(submission, Rules()), interval=POLL_SECONDS, deadline_at=clock.now + timedelta(days=1)
        )
        waiting[ticket] = agent_id

    for agent_id in left:
        start(agent_id)
    while waiting:
        driver.sweep_once()
        for ticket in [ticket for ticket in waiting if ticket.over]:
            agent_id = waiting.pop(ticket)
            delays.append((clock.now - ticket.result.event.completedAt).total_seconds())
            if left[agent_id]:
                start(agent_id)
    return len(sim.requests) - submitting, delays


def main():
    print(f"Every {POLL_SECONDS:g} s; {RUNS} runs of each agent, one after the other, after {HISTORY} known ones.\n")
    columns = ("runs", "agents", "requests, fixed", "adaptive", "mean delay s, fixed", "adaptive")
    print("| " + " | ".join((*columns, "worst delay s, fixed", "adaptive")) + " |\n" + "|---" * 8 + "|")
    for name, seconds in DISTRIBUTIONS:
        history = (lambda rng: 120 * math.exp(rng.gauss(0, 0.2))) if name.startswith("drifting") else None
        for agents in (1, 4, 20):
            (fixed, late), (adaptive, later) = (
                measure(seconds, agents=agents, adaptive=flag, history=history) for flag in (False, True)
            )
            cells = [
                f"{fixed:,}",
                f"{adaptive:,} ({adaptive / fixed - 1:+.0%})",
                f"{statistics.fmean(late):.1f}",
                f"{statistics.fmean(later):.1f}",
                f"{max(late):.1f}",
                f"{max(later):.1f}",
            ]
            print(f"| {name} | {agents} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
