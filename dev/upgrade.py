"""`make upgrade`: tasks wait on Airflow 3.3, the deployment becomes Airflow 3.4, and the tasks end. What was paid for?

It starts a real Airflow 3.3 on PostgreSQL and DAG runs whose tasks, plain and mapped, wait for runs of the simulator.
Then it stops Airflow, migrates the same database with Airflow 3.4, and starts that. One DAG run is left alone. In the
others, tasks are cleared while they wait, each in another way. The simulator says how many runs each task has started.

Exit status 1 if a task did not end with its own run, or started more runs than docs/upgrading.md says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from command import new_home, run_command, status_of, table
from matrix import WORK, Cell, CellEnvironment, build_wheel, by_number, find_pythons
from real_airflow import (
    QUICK_WORKERS,
    Postgres,
    RealAirflow,
    RealAirflowError,
    SimulatorServer,
    connection_json,
    simulator_server,
    until,
)

OLD, NEW = "3.3", "3.4"
DAG, KEY = "upgrade_runs", "sk-upgrade-0123456789"
#: Runs that are still running when Airflow 3.4 is up: its start and the migration take a minute, or some minutes on a
#: busy machine.
RUN_SECONDS = 300.0
#: Runs that a clear starts need not last.
LATER_RUN_SECONDS = 5.0
_END_SECONDS = 600.0
#: The tasks of the DAG, by their id and their index.
TASKS = (("plain", -1), ("attach", -1), ("mapped", 0), ("mapped", 1))
#: What the table calls them.
COLUMNS = ("plain", 'plain, `if_running="attach"`', "mapped 0", "mapped 1")


@dataclass(frozen=True)
class Way:
    """What a person does to a DAG run that waits, once Airflow is the new one.

    Attributes:
        words: for the table.
        cleared: the tasks to clear; none for a DAG run that is left alone.
        keep: keep the task state.
        executes: how many runs each task of `TASKS` starts, those on the old Airflow included.
    """

    words: str
    cleared: tuple[str | tuple[str, int], ...]
    keep: bool
    executes: tuple[int, int, int, int]


WAYS = {
    "alone": Way("left alone", (), keep=False, executes=(1, 1, 1, 1)),
    "kept": Way("plain tasks cleared, state kept", ("plain", "attach"), keep=True, executes=(1, 1, 1, 1)),
    "discarded": Way("plain tasks cleared, state discarded", ("plain", "attach"), keep=False, executes=(2, 1, 1, 1)),
    "instance": Way("one mapped instance cleared, state kept", (("mapped", 0),), keep=True, executes=(1, 1, 1, 1)),
    "whole": Way("mapped task cleared whole, state kept", ("mapped",), keep=True, executes=(1, 1, 2, 2)),
}


def agents_of(name: str) -> list[str]:
    """The agents of a way's tasks, in the order of `TASKS`."""
    return [f"{name}-{task_id}-{number}" for number, (task_id, _) in enumerate(TASKS)]


def start_waiting(airflow: RealAirflow, simulator: SimulatorServer) -> dict[str, str]:
    """Start a DAG run for each way, and return their ids once every task waits in the triggerer."""
    run_ids = {}
    for name in WAYS:
        plain, attach, *mapped = agents = agents_of(name)
        for agent_id in agents:
            _let_run(simulator, agent_id, RUN_SECONDS)
        run_ids[name] = airflow.trigger(DAG, {"plain": plain, "attach": attach, "mapped": mapped})
    for run_id in run_ids.values():
        for task_id, map_index in TASKS:
            airflow.wait_for_task(DAG, run_id, task_id, "deferred", map_index=map_index)
    return run_ids


def _let_run(simulator: SimulatorServer, agent_id: str, seconds: float) -> None:
    body = {"agent_id": agent_id, "run_seconds": seconds, "queue_seconds": 0.0}
    simulator.control("POST", "agents", body)


def clear_waiting(airflow: RealAirflow, simulator: SimulatorServer, run_ids: dict[str, str]) -> None:
    """Clear what each way says, while it waits.

    Raises:
        RealAirflowError: a run has ended before.
    """
    for run_id in run_ids.values():
        states = {row["state"] for row in airflow.task_instances(DAG, run_id) if row["task_id"] != "agents"}
        if states != {"deferred"}:
            raise RealAirflowError(f"The tasks of {run_id} wait no more ({states}): make RUN_SECONDS longer.")
    for name, way in WAYS.items():
        for agent_id in agents_of(name):
            _let_run(simulator, agent_id, LATER_RUN_SECONDS)
        if way.cleared:
            tries = _tries(airflow, run_ids[name])
            airflow.clear(DAG, run_ids[name], *way.cleared, keep=way.keep)
            until(partial(_is_changed, airflow, run_ids[name], tries), 60, f"the new try of what was cleared in {name}")


def _tries(airflow: RealAirflow, run_id: str) -> list[Any]:
    return sorted((row["task_id"], row["map_index"], row["try_number"]) for row in airflow.task_instances(DAG, run_id))


def _is_changed(airflow: RealAirflow, run_id: str, tries: list[Any]) -> bool:
    return _tries(airflow, run_id) != tries


def judge(
    airflow: RealAirflow, simulator: SimulatorServer, run_ids: dict[str, str]
) -> tuple[list[list[Any]], list[str]]:
    """Wait for the ends; the rows of the table, and what is not as it should be."""
    rows, faults = [], []
    for name, way in WAYS.items():
        state = airflow.wait_for_dag_run(DAG, run_ids[name], _END_SECONDS)
        if state != "success":
            faults.append(f"{way.words}: the DAG run is {state}")
        counts = []
        for (task_id, map_index), agent_id, wanted in zip(TASKS, agents_of(name), way.executes, strict=True):
            executions = simulator.executions(agent_id)
            counts.append(len(executions))
            event = airflow.xcom(DAG, run_ids[name], task_id, map_index=map_index)
            event = json.loads(event) if isinstance(event, str) else event
            place = f"{way.words}: {task_id} {map_index}"
            if event is None or event["id"] != executions[-1]["eventId"]:
                faults.append(f"{place} returned {event and event['id']}, not its own {executions[-1]['eventId']}")
            if len(executions) != wanted:
                faults.append(f"{place} started {len(executions)} runs, not {wanted}")
        rows.append([way.words, *counts])
    return rows, faults


def upgrade(home: Path, old: Path, new: Path) -> tuple[list[list[Any]], list[str]]:
    """Do all of it; the rows of the table, and what is not as it should be.

    Args:
        home: for everything that is written.
        old: the interpreter of the environment with the old Airflow.
        new: that with the new one.
    """
    postgres = Postgres()
    try:
        postgres.start()
        with simulator_server(home, "--key", KEY) as simulator:

            def airflow_of(python: Path) -> RealAirflow:
                return RealAirflow(
                    home / "airflow",
                    dags=[Path(__file__).with_name("upgrade_dags.py")],
                    env={**QUICK_WORKERS, "AIRFLOW_CONN_AGENTS_DEFAULT": connection_json(simulator.url, KEY)},
                    database=postgres,
                    python=str(python),
                )

            with airflow_of(old) as airflow:
                print(f"Airflow {'.'.join(map(str, airflow.release))}: tasks begin to wait ...", flush=True)
                run_ids = start_waiting(airflow, simulator)
            with airflow_of(new) as airflow:
                print(
                    f"Airflow {'.'.join(map(str, airflow.release))}: tasks wait, and some are cleared ...", flush=True
                )
                clear_waiting(airflow, simulator, run_ids)
                return judge(airflow, simulator, run_ids)
    finally:
        postgres.remove()


def main() -> int:
    """Make the environments and upgrade; the exit status."""
    found = find_pythons([])
    python = max(found, key=by_number)
    WORK.mkdir(parents=True, exist_ok=True)
    wheel = build_wheel()
    environments = [CellEnvironment(Cell(airflow, python), found[python], wheel) for airflow in (OLD, NEW)]
    for environment in environments:
        environment.install()
    with new_home("upgrade") as home:
        rows, faults = upgrade(home, *(environment.python for environment in environments))
    print(f"\nRuns that each task has started:\n\n{table(['', *COLUMNS], rows)}")
    return status_of(faults)


if __name__ == "__main__":
    run_command(main)
