"""`make cluster-test`: many agent tasks on a cluster of Airflow while each of its parts is killed in turn, and a count.

A cluster on this machine: PostgreSQL, Redis, CeleryExecutor with two schedulers and two workers, three triggerers, API
server and dag-processor, and the platform's simulator behind HTTP. Its agents fail now and then, their records appear
late, they run on schedules of their own, and the platform limits the rate of requests. A quarter of the tasks share
agents: they start their runs in the same seconds, and triggerers and workers read each other's starts. Each start reads
a budget, and some tasks have used theirs up. A watcher reports each run that ends to a DAG whose task is tried again.

It prints what happened to the tasks and to the runs. Exit status 1 if a run was doubled or lost, a task told wrong, not
ended, or not refused, or if a run did not reach the watcher's DAG. `--short` is for CI. `--tasks`, `--width`,
`--rounds`, `--minutes` and `--shared` choose another size.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psycopg2
from audit import Audit, Refusals, Task, audit, audit_refusals
from cluster_consumer import Consumer, consumer_rows
from cluster_database import Database
from cluster_platform import (
    KEY,
    SHARED_KIND,
    SHARED_PART,
    SIBLINGS,
    SPENT_AGENT,
    Place,
    places,
    platform,
    side_by_side,
    started_runs,
)
from command import ROOT, run_command
from real_airflow import RealAirflow, RealAirflowError, connection_to

from airflow_provider_agents.simulator import Simulator, running_server

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DAG = "cluster_runs"
#: What each triggerer allows itself in a second.
TRIGGERER_RATE = 5
#: The connection's budget: every start reads it, and no agent of these tests has so many runs in an hour.
BUDGET = {"runs": 1000, "per": 3600}
WATCHER_CONNECTION = "agents_watcher"
PARTS = (
    "worker-1", "scheduler-1", "triggerer-1", "redis", "api-server", "postgres", "dag-processor", "worker-2",
    "triggerer-2", "scheduler-2", "triggerer-3",
)  # fmt: skip
SHORT_PARTS = ("worker-1", "triggerer-1", "redis", "scheduler-1")


@dataclass(frozen=True, kw_only=True)
class Form:
    """How large a test is.

    Attributes:
        tasks: in all.
        width: tasks in each DAG run.
        slots: of each worker.
        parts: what is killed, in this order.
        rounds: how often that is repeated, as long as tasks go on.
        pause: seconds between two kills, from and to.
        minutes: start no more tasks after so many; those that were started may still end.
        shared: the part of the tasks that share agents.
    """

    tasks: int = 2000
    width: int = 200
    slots: int = 6
    parts: tuple[str, ...] = PARTS
    rounds: int = 3
    pause: tuple[float, float] = (30.0, 70.0)
    minutes: float = 60.0
    shared: float = SHARED_PART


SHORT = Form(tasks=60, width=30, slots=4, parts=SHORT_PARTS, rounds=1, pause=(8.0, 16.0), minutes=5.0)


def commands(slots: int) -> dict[str, list[str]]:
    """The commands of Airflow's part of the cluster."""
    worker = ["celery", "worker", "--skip-serve-logs", "--concurrency", str(slots), "--celery-hostname"]
    return {
        "api-server": ["api-server"],
        "dag-processor": ["dag-processor"],
        **{name: ["scheduler"] for name in ("scheduler-1", "scheduler-2")},
        **{name: ["triggerer", "--skip-serve-logs"] for name in ("triggerer-1", "triggerer-2", "triggerer-3")},
        **{name: [*worker, name] for name in ("worker-1", "worker-2")},
    }


#: Seconds that tasks may take to end once no more are started: a few kills, and what notices them.
END_SECONDS = 600.0
#: States of a task that no worker has had yet.
NOT_BEGUN = {"none", "scheduled", "queued"}
#: What a deployment notices after minutes, noticed after seconds: a test has no minutes.
ENV = {
    "AIRFLOW__AGENTS__SHARE_STARTS": "True",
    "AIRFLOW__CORE__PARALLELISM": "32",
    "AIRFLOW__CELERY__SYNC_PARALLELISM": "1",
    # What a killed worker had taken from Redis, another one is given after this time.
    "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "90",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "30",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "20",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "20",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
    # Each asset event starts a DAG run, and its two tries take a worker some seconds. On a connection that tasks wait
    # on, too, the watcher would report as often as they poll.
    "CONSUMER_CONNECTION": WATCHER_CONNECTION,
    "CONSUMER_POLL_SECONDS": "20",
}


@dataclass
class States:
    """In which states tasks are, and were.

    Attributes:
        now: how many are in a state.
        most: how many were in it at once.
        seconds: how long all tasks of a kind together were in it.
    """

    now: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))

    def add(self, rows: Iterable[tuple[str, str, int]], seconds: float) -> None:
        """So many tasks of a kind were in those states for so long."""
        self.now.clear()
        for kind, state, count in rows:
            self.now[state] += count
            self.seconds[kind, state] += count * seconds
        self.most |= self.now


class Cluster:
    """A running cluster and the platform, and what happens to them."""

    def __init__(self, airflow: RealAirflow, form: Form, wanted: Sequence[Place], rng: random.Random) -> None:
        if airflow.postgres is None or airflow.redis is None:
            raise ValueError("a cluster has PostgreSQL and Redis")
        self.airflow, self.form, self.places, self.rng = airflow, form, wanted, rng
        self.postgres, self.redis = airflow.postgres, airflow.redis
        self.database = Database(self.postgres.port, airflow.release)
        self.struck: Counter[str] = Counter()
        self.states = States()
        self._dag_runs = 0

    def strike(self, part: str) -> None:
        """Kill a part, and start it again some seconds later."""
        pause = self.rng.uniform(0, 4)
        if part == "postgres":
            self.postgres.stop()
            time.sleep(pause)
            self.postgres.start()
        elif part == "redis":
            self.redis.kill()
            time.sleep(pause)
            self.redis.start()
        else:
            self.airflow.kill(part)
            time.sleep(pause)
            self.airflow.start(part)
        self.struck[part] += 1

    def run(self, say_every: float = 30.0) -> None:
        """Start the tasks, strike in turn until they have ended, and look what they do meanwhile."""
        began_at = seen_at = said_at = now = time.monotonic()
        strikes = (part for _ in range(self.form.rounds) for part in self.form.parts)
        strike_at = began_at + self.rng.uniform(*self.form.pause)
        while now - began_at < self.form.minutes * 60 + END_SECONDS:
            now = time.monotonic()
            with suppress(psycopg2.OperationalError):
                self.states.add(self._listing(), now - seen_at)
                seen_at = now
                is_all = self._dag_runs * self.form.width >= self.form.tasks or now - began_at > self.form.minutes * 60
                if is_all and self._is_over():
                    return
                if not is_all and self._not_begun() < self.form.width:
                    self._start_dag_run()
            if now - said_at >= say_every:
                said_at = now
                told = ", ".join(f"{count} {state}" for state, count in self.states.now.most_common())
                print(f"  {now - began_at:5.0f} s: {told}; struck {self.struck.total()}", file=sys.stderr, flush=True)
            if now >= strike_at:
                part = next(strikes, None)
                if part is not None:
                    self.strike(part)
                strike_at = time.monotonic() + self.rng.uniform(*self.form.pause)
            # Some components end by themselves when the database goes away; a deployment starts them again.
            self.airflow.revive()
            time.sleep(0.5)

    def _listing(self) -> list[tuple[str, str, int]]:
        rows = self.database.rows(
            "select map_index, coalesce(state, 'none'), count(*) from tasks "
            "where dag_id = %s and task_id = 'run' and map_index >= 0 group by 1, 2",
            DAG,
        )
        return [(self.places[map_index].kind, state, count) for map_index, state, count in rows]

    def _not_begun(self) -> int:
        begun = sum(count for state, count in self.states.now.items() if state not in NOT_BEGUN)
        return self._dag_runs * self.form.width - begun

    def _start_dag_run(self) -> None:
        """Start a DAG run, if the API server is there just then."""
        with suppress(RealAirflowError, httpx.HTTPError):
            self.airflow.trigger(DAG, {"tasks": [place.arguments for place in self.places]})
            self._dag_runs += 1

    def _is_over(self) -> bool:
        states = self.database.rows("select state, count(*) from dag_run where dag_id = %s group by 1", DAG)
        return {state for state, _ in states} <= {"success", "failed"}

    def tasks(self) -> list[Task]:
        """What Airflow and its logs know of each task instance."""
        rows = self.database.rows(
            "select run_id, map_index, state, value from tasks "
            "left join xcoms on xcoms.id = tasks.id and key = 'return_value' "
            "where dag_id = %s and task_id = 'run' and map_index >= 0",
            DAG,
        )
        tasks = []
        for run_id, map_index, state, value in rows:
            event = json.loads(value) if isinstance(value, str) else value
            task = Task(
                name=f"{run_id}[{map_index}]",
                agent_id=self.places[map_index].agent_id,
                state=state,
                returned=event["id"] if event else None,
            )
            logs = self.airflow.home / "logs" / f"dag_id={DAG}" / f"run_id={run_id}" / "task_id=run"
            for text in self._texts(logs / f"map_index={map_index}"):
                task = task.with_log(text)
            tasks.append(task)
        return tasks

    def refusals(self, simulator: Simulator) -> Refusals:
        """What became of the tasks whose budget is used up."""
        rows = self.database.rows(
            "select run_id, task_id, state from tasks where dag_id = %s and task_id like 'over_budget_%%'", DAG
        )
        logs = self.airflow.home / "logs" / f"dag_id={DAG}"
        tasks = [
            (f"{run_id} {task_id}", state, "".join(self._texts(logs / f"run_id={run_id}" / f"task_id={task_id}")))
            for run_id, task_id, state in rows
        ]
        return audit_refusals(tasks, [run for run in started_runs(simulator) if run.agent_id == SPENT_AGENT])

    @staticmethod
    def _texts(folder: Path) -> list[str]:
        """The logs of a task's tries."""
        return [log.read_text(errors="replace") for log in sorted(folder.glob("attempt=*.log*"))]

    def xcoms(self) -> Counter[str]:
        """How many XComs of the tasks there are, by their key."""
        rows = self.database.rows(
            "select key, count(*) from xcoms join tasks using (id) "
            "where dag_id = %s and task_id = 'run' group by key order by key",
            DAG,
        )
        return Counter(dict(rows))


def report(
    cluster: Cluster, simulator: Simulator, result: Audit, seconds: float, more: Iterable[tuple[str, str]]
) -> str:
    """What happened, as a table; `more` are rows of it."""
    per_second = Counter(int(request.at.timestamp()) for request in simulator.requests)
    refused = sum(request.status == 429 for request in simulator.requests)
    scheduled = sum(run.started_by == "schedule" and run.agent_id != SPENT_AGENT for run, _ in simulator.runs())
    rounds = result.tasks // cluster.form.width
    kinds = {kind: count * rounds for kind, count in Counter(place.kind for place in cluster.places).items()}
    shared = {place.agent_id for place in cluster.places if place.is_shared}
    ambiguous = sum(map(len, result.ambiguous.values()))
    rows = [
        ("tasks", f"{result.tasks:,} on {len({place.agent_id for place in cluster.places})} agents"),
        ("of them, tasks that share agents", f"{kinds[SHARED_KIND]:,} on {len(shared)} agents"),
        ("struck", ", ".join(f"{part} {count}" for part, count in sorted(cluster.struck.items())) or "nothing"),
        ("runs that the platform started for them", f"{result.executes:,}"),
        ("of them, less than a second from another run of the same agent", f"{side_by_side(simulator)}"),
        ("of them, after a run of the same task or agent that had failed", f"{result.after_failure:,}"),
        ("runs of the same agents that the platform started by itself", f"{scheduled:,}"),
        ("runs doubled", f"{len(result.doubled)}"),
        ("runs lost: no task knows of them", f"{len(result.lost)}"),
        ("tasks that ended as their own run did, or as the run that was shared out to them", f"{result.right:,}"),
        ("of them, with one of several events that all COMPLETED, and said so", f"{result.several}"),
        ("of them, with the event of a run that another task had started, and said so", f"{result.shared}"),
        (
            "tasks that said that they could not tell how their run ended",
            f"{ambiguous} ({ambiguous / max(1, result.tasks):.1%})",
        ),
        *((f"of them, where {cause}", f"{len(found)}") for cause, found in result.ambiguous.items()),
        (
            "tasks without an answer to their POST that took another's run for theirs, and said so",
            f"{len(result.assumed)}",
        ),
        ("tasks told wrong", f"{len(result.wrong)}"),
        ("events handed to two tasks", f"{len(result.twice)}"),
        ("tasks not ended", f"{len(result.unfinished)}"),
        *more,
        ("their XComs", ", ".join(f"{key} {count:,}" for key, count in cluster.xcoms().items())),
        ("tasks that waited at once, at most", f"{cluster.states.most['deferred']:,}"),
        ("requests a second, mean and highest", f"{len(simulator.requests) / seconds:.1f}, {max(per_second.values())}"),
        ("requests in all, and refused with 429", f"{len(simulator.requests):,}, {refused}"),
    ]
    for kind, count in kinds.items():
        running, deferred = (cluster.states.seconds[kind, state] / max(1, count) for state in ("running", "deferred"))
        rows.append((f"seconds of a worker's slot a task, {kind}", f"{running:.1f} (deferred {deferred:.0f})"))
    rows.append(("seconds in all", f"{seconds:.0f}"))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def run(form: Form, seed: int, home: Path) -> tuple[Audit, list[str]]:
    """Try it, print the report, and return what was found of the tasks' runs, and what else must not be."""
    wanted = places(form.width, form.shared)
    simulator = platform(wanted, seed)
    airflows = commands(form.slots)
    readings = home / "readings"
    readings.mkdir()
    with (
        running_server(simulator) as url,
        RealAirflow(
            home,
            dags=[Path(__file__).parent / name for name in ("cluster_dags.py", "consumer_dags.py")],
            env={**ENV, "CONSUMER_READINGS": str(readings)},
            database="postgres",
            executor="CeleryExecutor",
            components=airflows,
            commands=airflows,
        ) as airflow,
    ):
        connection = connection_to(url, KEY, max_requests_per_second=str(TRIGGERER_RATE), budget=json.dumps(BUDGET))
        for name in ("agents_default", WATCHER_CONNECTION):
            airflow.api("POST", "/api/v2/connections", {"connection_id": name, **connection})
        cluster = Cluster(airflow, form, wanted, random.Random(seed))
        consumer = Consumer(airflow, cluster.database, readings)
        consumer.start()
        began_at = time.monotonic()
        cluster.run()
        seconds = time.monotonic() - began_at
        arrivals = consumer.finish(simulator)
        result = audit(cluster.tasks(), [run for run in started_runs(simulator) if run.agent_id != SPENT_AGENT])
        refusals = cluster.refusals(simulator)
        more = [*refusals.rows, *consumer_rows(arrivals)]
        print(report(cluster, simulator, result, seconds, more), flush=True)
    return result, [*result.findings, *refusals.findings, *arrivals.findings]


_CHOICES = ("tasks", "width", "rounds", "minutes", "shared")


def main() -> int:
    """Run it from the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a form of some minutes, for CI")
    parser.add_argument("--tasks", type=int, help="in all, a multiple of the width")
    parser.add_argument("--width", type=int, help="tasks in each DAG run")
    parser.add_argument("--rounds", type=int, help="of kills, at most")
    parser.add_argument("--minutes", type=float, help="start no more tasks after so many")
    parser.add_argument("--shared", type=float, help="the part of the tasks that share agents, from 0 to 1")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of everything that is drawn")
    parser.add_argument("--keep", action="store_true", help="keep Airflow's logs")
    given = parser.parse_args()
    chosen = {name: getattr(given, name) for name in _CHOICES if getattr(given, name) is not None}
    form = Form(**{**vars(SHORT if given.short else Form()), **chosen})
    if form.width < SIBLINGS or form.tasks % form.width:
        parser.error(f"the width must be {SIBLINGS} or more, and the tasks a multiple of it")
    print(f"seed {given.seed}", flush=True)
    home = Path(tempfile.mkdtemp(prefix=".airflow-cluster-", dir=ROOT))
    try:
        result, findings = run(form, given.seed, home)
    finally:
        if given.keep:
            print(f"Airflow's logs are in {home}", file=sys.stderr)
        else:
            shutil.rmtree(home, ignore_errors=True)
    for line in findings:
        print(f"    {line}")
    for cause, lines in result.ambiguous.items():
        for line in lines:
            print(f"    ambiguous, {cause}: {line}")
    for line in result.assumed:
        print(f"    assumed {line}")
    return int(bool(findings))


if __name__ == "__main__":
    run_command(main)
