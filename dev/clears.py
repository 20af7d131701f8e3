"""`make clears`: what each way to clear, mark or retry a task costs in runs, in a real Airflow of each release.

It prints a Markdown table. Each row has DAG runs and agents of its own, and all rows run side by side. Exit status 1 if
a task paid for more runs than its user asked for, or for fewer, or did not end well; 2 if there is no Airflow to try.
`--python` names an interpreter beside an Airflow, and is repeatable; by default those that `make matrix` has made.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from command import ROOT, new_home, run_command, table
from matrix import WORK, airflows, by_number, coming_airflows
from real_airflow import (
    QUICK_WORKERS,
    RealAirflow,
    RealAirflowError,
    SimulatorServer,
    connection_to,
    simulator_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

KEY = "sk-clears-0123456789"
#: The oldest Airflow that keeps a record: before, each new try is a new run.
OLDEST = "3.3"
#: How long a run takes that a task waits for while it is cleared, and one that is to be over soon, in seconds.
WAIT_SECONDS, SHORT_SECONDS = 45.0, 5.0
#: A row that is not over after so many seconds is given up. The longest has two runs one after the other.
ROW_SECONDS = 300.0
#: Rows at the same time: each can hold two worker slots.
AT_ONCE = 16
_ENDED = {"success", "failed", "upstream_failed", "skipped", "removed"}
#: What an iteration of a group adds to its task's name.
TASK_IDS = {"plain": "run", "mapped": "run", "looped": "again.run"}

WAITS, ON_WORKER, ENDED = "waits in the triggerer", "waits on a worker", "has ended"


# --- which rows there are, and what must come of each ----------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """What a person or Airflow does to a task.

    Attributes:
        name: in the table.
        steps: names of the methods of `RowRunner` that do it, one after the other.
        since: the first Airflow that has it.
        phases: when it is done.
    """

    name: str
    steps: tuple[str, ...]
    since: str = OLDEST
    phases: tuple[str, ...] = (WAITS, ON_WORKER, ENDED)


WAYS = (
    Way("clear the task", ("clear",)),
    Way("clear the task, with *Keep task state and resume*", ("clear_and_keep",), since="3.4"),
    Way("clear the DAG run", ("clear_run",)),
    Way("`airflow tasks clear`", ("clear_by_command",)),
    Way("mark failed, then clear", ("mark_failed", "clear")),
    Way("mark success, then clear", ("mark_success", "clear"), phases=(WAITS, ON_WORKER)),
    Way("retry after a timeout", (), phases=(WAITS, ON_WORKER)),
)


@dataclass(frozen=True)
class Row:
    """One way to treat a task, in one of its phases and shapes."""

    way: Way
    phase: str
    shape: str

    def __str__(self) -> str:
        """In one line."""
        return f"{self.way.name}; {self.phase}; {self.shape}"

    @property
    def wanted(self) -> int:
        """The runs that each task must have paid for: a clear asks for a new one only after the end."""
        return 2 if self.phase == ENDED else 1

    @property
    def tasks(self) -> int:
        """Task instances, each with an agent of its own."""
        return 2 if self.shape == "mapped" else 1

    @property
    def dag_id(self) -> str:
        """The DAG that has the task."""
        waits = "worker" if self.phase == ON_WORKER else "triggerer"
        return f"clears_{self.shape}_{waits}" + "_retried" * (not self.way.steps)


def rows(release: str) -> list[Row]:
    """The rows that an Airflow has.

    Args:
        release: such as 3.4.
    """
    number = by_number(release)
    shapes = ["plain", "mapped", *(["looped"] if number >= (3, 4) else [])]
    return [
        Row(way, phase, shape)
        for way in WAYS
        if number >= by_number(way.since)
        for phase in way.phases
        for shape in shapes
    ]


@dataclass
class Result:
    """What came of a row: the most runs that one of its tasks paid for, and how the tasks ended."""

    row: Row
    runs: int = 0
    ended: str = "not over"

    @property
    def is_right(self) -> bool:
        """Whether nothing was paid for beyond what was asked for, and everything that was asked for came."""
        return self.runs == self.row.wanted and self.ended == "success"

    def cell(self) -> str:
        """As in the table."""
        words = f"{self.runs}, {self.ended}"
        return words if self.is_right else f"**{words}**"


def table_of(results: Mapping[str, Sequence[Result]]) -> str:
    """All rows as a Markdown table.

    Args:
        results: by the version of the Airflow.
    """
    found = {(version, result.row): result for version, of in results.items() for result in of}
    columns = list(dict.fromkeys((version, row.shape) for version, row in found))
    tried = {(row.way, row.phase) for _, row in found}
    lines = []
    every = [(way, phase) for way in WAYS for phase in way.phases]
    for way, phase in filter(tried.__contains__, every):
        cells = [found.get((version, Row(way, phase, shape))) for version, shape in columns]
        lines.append([way.name, phase, *(cell.cell() if cell is not None else "" for cell in cells)])
    return table(["what is done", "to a task that", *(f"{version}, {shape}" for version, shape in columns)], lines)


# --- doing it --------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """A row that is under way."""

    row: Row
    number: int
    result: Result
    run_id: str = ""
    logical_date: str = ""
    began_at: float = field(default_factory=time.monotonic)
    #: The task instances and the executes of each agent, as last seen.
    instances: list[dict[str, Any]] = field(default_factory=list)
    executes: list[int] = field(default_factory=list)

    @property
    def agents(self) -> list[str]:
        """One for each task instance."""
        return [f"clears-{self.number}-{index}" for index in range(self.row.tasks)]

    def states(self) -> set[str | None]:
        """Of the task instances that there are."""
        return {instance["state"] for instance in self.instances}

    def is_complete(self) -> bool:
        """Whether every task instance is there."""
        return len(self.instances) == self.row.tasks


class RowRunner:
    """A running Airflow and platform.

    Args:
        airflow: the Airflow.
        simulator: the platform.
        home: for logs.
    """

    def __init__(self, airflow: RealAirflow, simulator: SimulatorServer, home: Path) -> None:
        self.airflow, self.simulator, self.home = airflow, simulator, home

    def run(self, wanted: Iterable[Row]) -> list[Result]:
        """Do all rows, some at a time, and count."""
        jobs = [Job(row, number, Result(row)) for number, row in enumerate(wanted)]
        for dag_id in sorted({job.row.dag_id for job in jobs}):
            self.airflow.unpause(dag_id)
        waiting = list(jobs)
        active: dict[int, Iterator[None]] = {}
        while waiting or active:
            while waiting and len(active) < AT_ONCE:
                job = waiting.pop(0)
                active[job.number] = self._lead(job)
            self._listing([jobs[number] for number in active])
            for number in list(active):
                self._advance(jobs[number], active)
            time.sleep(0.5)
        return [job.result for job in jobs]

    def _advance(self, job: Job, active: dict[int, Iterator[None]]) -> None:
        try:
            next(active[job.number])
        except StopIteration:
            job.result.ended = ", ".join(sorted(str(state) for state in job.states()))
        except RealAirflowError as error:
            job.result.ended = "not done"
            print(f"{job.row}: {error}", file=sys.stderr, flush=True)
        else:
            if time.monotonic() < job.began_at + ROW_SECONDS:
                return
        del active[job.number]
        job.result.runs = max(job.executes, default=0)
        print(f"{job.row}: {job.result.cell()} ({time.monotonic() - job.began_at:.0f} s)", flush=True)

    def _listing(self, jobs: Iterable[Job]) -> None:
        """Take down the states of all task instances and the executes, in two requests."""
        answer = self.airflow.api("GET", "/api/v2/dags/~/dagRuns/~/taskInstances?limit=1000")
        executed = [done["agentId"] for done in self.simulator.executions()]
        for job in jobs:
            job.executes = [executed.count(agent) for agent in job.agents]
            job.instances = [
                instance
                for instance in answer["task_instances"]
                if (instance["dag_id"], instance["dag_run_id"]) == (job.row.dag_id, job.run_id)
                and instance["task_id"] == TASK_IDS[job.row.shape]
                # Before it is expanded, a mapped task is one instance.
                and (job.row.shape != "mapped" or instance["map_index"] >= 0)
            ]

    def _lead(self, job: Job) -> Iterator[None]:
        """A row, from its DAG run to its end; it goes on after each look."""
        row = job.row
        job.began_at = time.monotonic()
        seconds = SHORT_SECONDS if row.phase == ENDED else WAIT_SECONDS
        for agent in job.agents:
            self.simulator.control("POST", "agents", {"agent_id": agent, "run_seconds": seconds})
        # `airflow tasks clear` finds DAG runs by their logical date.
        job.logical_date = (datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=job.number)).isoformat()
        body = {"logical_date": job.logical_date, "conf": {"agent": f"clears-{job.number}"}}
        path = f"/api/v2/dags/{row.dag_id}/dagRuns"
        job.run_id = self.airflow.api("POST", path, body)["dag_run_id"]
        yield
        while not self._is_reached(job):
            yield
        if row.phase == ENDED:
            yield from self._until_dag_run_ends(job)
        before = {instance["id"] for instance in job.instances}
        for step in row.way.steps:
            yield from getattr(self, step)(job)
        # Airflow gives a new try another id. So a clear that has found nothing to clear does not count as one.
        while not job.is_complete() or any(instance["id"] in before for instance in job.instances):
            yield
        while not (job.is_complete() and job.states() <= _ENDED):
            yield

    @staticmethod
    def _is_reached(job: Job) -> bool:
        """Whether all tasks are in the phase that the row is about."""
        state = {WAITS: "deferred", ON_WORKER: "running", ENDED: "success"}[job.row.phase]
        return job.is_complete() and job.states() == {state} and all(job.executes)

    def _until_dag_run_ends(self, job: Job) -> Iterator[None]:
        """Wait: a scheduler that just ends a DAG run overlooks that its tasks are cleared."""
        while self.airflow.dag_run_state(job.row.dag_id, job.run_id) not in _ENDED:
            yield

    # --- what is done to a task ---

    def clear(self, job: Job) -> Iterator[None]:
        """The dialog of the task, as it opens."""
        self.airflow.clear(job.row.dag_id, job.run_id, TASK_IDS[job.row.shape])
        yield

    def clear_and_keep(self, job: Job) -> Iterator[None]:
        """The same with its tick box."""
        self.airflow.clear(job.row.dag_id, job.run_id, TASK_IDS[job.row.shape], keep=True)
        yield

    def clear_run(self, job: Job) -> Iterator[None]:
        """The dialog of the DAG run."""
        path = f"/api/v2/dags/{job.row.dag_id}/dagRuns/{quote(job.run_id)}/clear"
        self.airflow.api("POST", path, {"dry_run": False, "only_failed": False})
        yield

    def clear_by_command(self, job: Job) -> Iterator[None]:
        """The command line."""
        when = ["--start-date", job.logical_date, "--end-date", job.logical_date]
        log = self.home / f"clear-{job.number}.log"
        process = self.airflow.command(log, "tasks", "clear", "--yes", *when, job.row.dag_id)
        while process.is_alive():
            yield
        if process.popen.returncode:
            raise RealAirflowError(f"`airflow tasks clear` failed: {log.read_text()[-600:]}")

    def mark_failed(self, job: Job) -> Iterator[None]:
        """As a person does in the UI."""
        yield from self._mark(job, "failed")

    def mark_success(self, job: Job) -> Iterator[None]:
        """The same with the other state."""
        yield from self._mark(job, "success")

    def _mark(self, job: Job, state: str) -> Iterator[None]:
        path = f"/api/v2/dags/{job.row.dag_id}/dagRuns/{quote(job.run_id)}/taskInstances/{TASK_IDS[job.row.shape]}"
        if job.row.shape == "looped":
            # A task of a loop has an instance for each iteration, in a region of its own.
            (instance,) = job.instances
            path += f"?region_id={instance['region_id']}&region_index={instance['region_index']}"
        self.airflow.api("PATCH", path, {"new_state": state})
        yield from self._until_dag_run_ends(job)


def count(python: str, home: Path) -> tuple[str, list[Result]]:
    """All rows on one Airflow.

    Args:
        python: the interpreter beside it.
        home: a folder of its own.

    Returns:
        Its version, and what came of each row.
    """
    env = {
        # The code of this clone, whatever is installed there.
        "PYTHONPATH": str(ROOT),
        "AIRFLOW__CORE__PARALLELISM": str(2 * AT_ONCE),
        # Airflow 3.4 can notice the end of a killed process so late, and the next try must begin during the run.
        "AIRFLOW__CORE__KILLED_TASK_CLEANUP_TIME": "5",
        "AIRFLOW__API__MAXIMUM_PAGE_LIMIT": "1000",
        **QUICK_WORKERS,
    }
    home.mkdir()
    with simulator_server(home, "--key", KEY) as simulator:
        connections = {"agents_default": connection_to(simulator.url, KEY)}
        with RealAirflow(
            home / "airflow",
            dags=[Path(__file__).parent / "clear_dags.py"],
            env=env,
            database="postgres",
            python=python,
            connections=connections,
        ) as airflow:
            version = airflow.api("GET", "/api/v2/version")["version"]
            print(f"\nAirflow {version}", flush=True)
            return version, RowRunner(airflow, simulator, home).run(rows(".".join(version.split(".")[:2])))


# --- interpreters ----------------------------------------------------------------------------------------------------


def of_matrix(folder: Path = WORK) -> tuple[list[str], list[str]]:
    """The interpreters that `make matrix` has made, one for each Airflow that keeps a record.

    Returns:
        The interpreters, oldest Airflow first, and the Airflows that have none.
    """
    found: dict[str, Path | None] = {
        airflow: next(iter(sorted(folder.glob(f"{airflow}-py*/venv/bin/python"))), None)
        for airflow in [*airflows(), *coming_airflows()]
        if by_number(airflow) >= by_number(OLDEST)
    }
    return [str(python) for python in found.values() if python], [name for name, python in found.items() if not python]


def main(
    given: Sequence[str] | None = None,
    *,
    counted: Callable[[str, Path], tuple[str, list[Result]]] = count,
    folder: Path = WORK,
) -> int:
    """Try every Airflow and print the table; the exit status."""
    parser = argparse.ArgumentParser(prog="dev/clears.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--python", action="append", default=[], help="an interpreter beside an Airflow; repeatable")
    arguments = parser.parse_args(given)
    pythons, missing = (arguments.python, []) if arguments.python else of_matrix(folder)
    if missing:
        print(
            f"There is no environment of Airflow {' and '.join(missing)}. `make matrix` makes one for each cell: make "
            'matrix CELLS="newest next". Or name an interpreter: make clears PYTHONS=/path/to/bin/python',
            file=sys.stderr,
        )
    if not pythons:
        return 2
    with new_home("clears") as home:
        results = dict(counted(python, home / str(number)) for number, python in enumerate(pythons))
    print(f"\n{datetime.now(UTC):%Y-%m-%d}\n\n{table_of(results)}\n")
    wrong = [result for of in results.values() for result in of if not result.is_right]
    print(f"{sum(map(len, results.values()))} rows, {len(wrong)} wrong: each wrong one is bold.")
    return int(bool(wrong))


if __name__ == "__main__":
    run_command(main)
