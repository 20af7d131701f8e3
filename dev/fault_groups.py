"""Faults of `make faults` that strike while tasks that have started one agent together wait for their runs.

Nothing distinguishes such runs, so they are shared out: each event to one task. A triggerer that is killed forgets
which events it has given.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil
from real_airflow import RealAirflowError, until

if TYPE_CHECKING:
    from faults import Bench, Tally

DAG = "fault_runs"
#: How many agents there are at once, and how many tasks start each of them.
AGENTS, TASKS_OF_AGENT = 4, 3
#: How long a run takes, in seconds: longer than it takes until all tasks wait, on a busy machine.
RUN_SECONDS = 40.0
_ENDED = {"success", "failed"}


def kill_triggerer_of_groups(bench: Bench, tally: Tally, tries: int) -> None:
    """The triggerer is killed while groups wait, and again once it has given the first of their events."""
    for _ in range(max(1, tries // 10)):
        agents, run_id = _start(bench)
        _let_later_runs_fail(bench, set(agents))
        bench.wait_until_waiting([(agents, run_id)])
        _restart_triggerer(bench, tally)
        with suppress(RealAirflowError):
            until(lambda: _states(bench, run_id) & _ENDED, 240, "the first end", pause=0.1)  # noqa: B023 - asked at once
        _restart_triggerer(bench, tally)
        _count(bench, tally, agents, run_id)


def kill_tasks_of_groups(bench: Bench, tally: Tally, tries: int) -> None:
    """One task of each group is killed on its worker, at a random moment after its execute."""
    for _ in range(max(1, tries // 10)):
        agents, run_id = _start(bench)
        struck: set[str] = set()
        ends_at = time.monotonic() + 180
        while len(struck) < AGENTS and time.monotonic() < ends_at:
            started = {done["agentId"] for done in bench.simulator.executions()}
            for instance in bench.instances(run_id):
                agent = agents[instance["map_index"]]
                if instance["state"] != "running" or agent not in started - struck or bench.rng.random() < 0.5:
                    continue
                process = bench.process_of(instance)
                if process is not None:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                        tally.hits += 1
                        struck.add(agent)
            time.sleep(0.05)
        _count(bench, tally, agents, run_id)


def _start(bench: Bench) -> tuple[list[str], str]:
    """Start a DAG run of some tasks for each of some agents. The agent of each mapped task, and the DAG run's id."""
    # Only a run whose task is not killed may fail, so none of them does by itself: a retry would start a new one.
    agents = [agent for agent in bench.add_agents(AGENTS, RUN_SECONDS, failing=False) for _ in range(TASKS_OF_AGENT)]
    return agents, bench.start(agents, deferrable=True)


def _let_later_runs_fail(bench: Bench, agents: set[str]) -> None:
    """Let the runs of an agent end otherwise once it has one, so that a verdict can be wrong."""
    ends_at = time.monotonic() + 180
    while agents and time.monotonic() < ends_at:
        started = {done["agentId"] for done in bench.simulator.executions()}
        for agent in agents & started:
            body = {"agent_id": agent, "run_seconds": RUN_SECONDS, "end_status": "FAILED"}
            bench.simulator.control("POST", "agents", body)
        agents = agents - started
        time.sleep(0.05)


def _states(bench: Bench, run_id: str) -> set[str]:
    return {instance["state"] for instance in bench.instances(run_id)}


def _restart_triggerer(bench: Bench, tally: Tally) -> None:
    bench.airflow.kill("triggerer")
    bench.airflow.start("triggerer")
    bench.airflow.wait_until_healthy()
    tally.hits += 1


def _failed(truth: dict[str, dict[str, Any]]) -> set[str]:
    return {event_id for event_id, run in truth.items() if run["endStatus"] == "FAILED"}


def _count(bench: Bench, tally: Tally, agents: list[str], run_id: str) -> None:
    """Wait for the end, and count: one run for each task, and each event for one task.

    Args:
        bench: the Airflow and the platform.
        tally: where to.
        agents: one for each mapped task.
        run_id: of the DAG run.
    """
    bench.wait_for_end(run_id, 420)
    truth = {run["eventId"]: run for run in bench.simulator.runs().values()}
    given: dict[str, list[str]] = {agent: [] for agent in agents}
    failures = Counter[str]()
    for instance in bench.instances(run_id):
        agent = agents[instance["map_index"]]
        completed = {one["eventId"] for one in truth.values() if one["agentId"] == agent} - _failed(truth)
        tally.tasks += 1
        if instance["state"] == "success":
            event = bench.airflow.xcom(DAG, run_id, "run", map_index=instance["map_index"])
            event_id = str((json.loads(event) if isinstance(event, str) else event or {}).get("id"))
            right = event_id in completed - set(given[agent])
            given[agent].append(event_id)
        else:
            failures[agent] += 1
            right = instance["state"] == "failed" and failures[agent] <= TASKS_OF_AGENT - len(completed)
        tally.right += right
        if not right:
            tally.wrong.append(
                f"{agent}: {instance['state']} after {instance['try_number']} tries, "
                f"and {len(completed)} of its runs COMPLETED"
            )
            bench.print_logs(agent, run_id, instance)
    for agent in given:
        executes = len(bench.simulator.executions(agent))
        tally.executes += executes
        if executes != TASKS_OF_AGENT:
            tally.wrong.append(f"{agent}: {executes} executes for {TASKS_OF_AGENT} tasks")
