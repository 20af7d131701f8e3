"""`make faults`: kill everything at random moments in a real Airflow on PostgreSQL, and count what it did to the runs.

For each fault it prints how often it was tried, how many runs the platform started for how many tasks that each
wanted one, and how many tasks ended with the verdict of their own run. Exit status 1 if a run was doubled, lost, or
told wrong. `--tries N` (default 20) tries of each kill; `--only NAME` for one of the faults.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from real_airflow import RealAirflow, SimulatorServer, connection_json, simulator_server, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[1]
DAG = "fault_runs"
KEY = "sk-faults-0123456789"
#: How long an agent's run takes, in seconds: long enough to be killed while it goes on.
RUN_SECONDS = 6.0
_ENDED = {"success", "failed", "upstream_failed", "skipped"}


@dataclass
class Tally:
    """What a fault did."""

    name: str
    hits: int = 0
    tasks: int = 0
    executes: int = 0
    after_failure: int = 0
    right: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def doubled(self) -> int:
        """Runs beyond the one that each task wanted, and beyond those that followed a run that had failed."""
        return self.executes - self.tasks - self.after_failure

    def row(self) -> str:
        """A row of the table."""
        return (
            f"| {self.name:50} | {self.hits:5} | {self.tasks:5} | {self.executes:8} | {self.after_failure:15} | "
            f"{self.doubled:7} | {self.right:8} |"
        )


class Bench:
    """A running Airflow and platform, and what the faults need of them."""

    def __init__(self, airflow: RealAirflow, simulator: SimulatorServer, rng: random.Random) -> None:
        self.airflow, self.simulator, self.rng = airflow, simulator, rng
        self._batches = 0

    def add_agents(self, count: int, run_seconds: float = RUN_SECONDS) -> list[str]:
        """New agents, one for each task, so that each task's executes can be counted. Every fourth one's runs fail."""
        self._batches += 1
        agents = [f"agent-{self._batches}-{number}" for number in range(count)]
        for number, agent in enumerate(agents):
            end_status = "FAILED" if number % 4 == 3 else "COMPLETED"
            self.simulator.control(
                "POST", "agents", {"agent_id": agent, "run_seconds": run_seconds, "end_status": end_status}
            )
        return agents

    def start(self, agents: list[str], *, deferrable: bool) -> str:
        """Start a DAG run with one mapped task for each agent."""
        return self.airflow.trigger(DAG, {"agents": agents, "deferrable": deferrable})

    def instances(self, run_id: str) -> list[dict[str, Any]]:
        """The mapped task instances, once they are there."""
        rows = [row for row in self.airflow.task_instances(DAG, run_id) if row["task_id"] == "run"]
        return [row for row in rows if row["map_index"] >= 0]

    def process_of(self, instance: dict[str, Any]) -> psutil.Process | None:
        """The process that runs a task instance's code now."""
        return self.airflow.task_process(instance["id"])

    def finish(self, tally: Tally, agents: list[str], run_id: str) -> None:
        """Wait for the DAG run to end, and count."""
        ends_at = time.monotonic() + 420
        while self.airflow.dag_run_state(DAG, run_id) not in {"success", "failed"} and time.monotonic() < ends_at:
            # Some components end when the database goes away, minutes later even; a deployment starts them again.
            self.airflow.revive()
            time.sleep(0.5)
        truth = {run["eventId"]: run for run in self.simulator.runs().values()}
        for instance in self.instances(run_id):
            agent = agents[instance["map_index"]]
            executions = self.simulator.executions(agent)
            mine = [truth[done["eventId"]] for done in executions]
            # A run that failed while nobody watched is followed by a new one: that is what a retry is for.
            after_failure = sum(
                before["endStatus"] == "FAILED" and before["endsAt"] <= after["acceptedAt"]
                for before, after in pairwise(mine)
            )
            tally.tasks += 1
            tally.executes += len(executions)
            tally.after_failure += after_failure
            ends = {truth[done["eventId"]]["endStatus"] for done in executions}
            event = self.airflow.xcom(DAG, run_id, "run", map_index=instance["map_index"])
            event = json.loads(event) if isinstance(event, str) else event
            if instance["state"] == "success":
                right = ends == {"COMPLETED"} and event["id"] in {done["eventId"] for done in executions}
            else:
                right = ends == {"FAILED"}
            tally.right += right
            if not right or len(executions) != 1 + after_failure:
                tally.wrong.append(f"{agent}: {instance['state']}, {len(executions)} executes that ended {ends}")


def _kill_tasks(bench: Bench, tally: Tally, tries: int, *, deferrable: bool, when: Callable[[str], bool]) -> None:
    """Kill each mapped task's process once, as soon as `when` says so of its agent; it may be gone by then."""
    agents = bench.add_agents(tries)
    run_id = bench.start(agents, deferrable=deferrable)
    done: set[int] = set()
    ends_at = time.monotonic() + 240
    while len(done) < tries and time.monotonic() < ends_at:
        for instance in bench.instances(run_id):
            index = instance["map_index"]
            if index in done:
                continue
            if instance["state"] in _ENDED:
                done.add(index)
                continue
            if instance["state"] == "running" and when(agents[index]):
                process = bench.process_of(instance)
                if process is not None:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                        tally.hits += 1
                        done.add(index)
        time.sleep(0.05)
    bench.simulator.control("DELETE", "faults")
    bench.finish(tally, agents, run_id)


def _posts(bench: Bench) -> dict[str, int]:
    paths: dict[str, int] = bench.simulator.control("GET", "requests")["paths"]
    return paths


def kill_before_post(bench: Bench, tally: Tally, tries: int) -> None:
    """The look before the POST hangs, so the task is caught there."""
    bench.simulator.control(
        "POST", "faults", {"kind": "hang_before", "method": "GET", "path": "/events", "times": tries}
    )
    _kill_tasks(
        bench, tally, tries, deferrable=True, when=lambda agent: f"GET /v1/agents/{agent}/events" in _posts(bench)
    )


def kill_in_post_not_acted(bench: Bench, tally: Tally, tries: int) -> None:
    """The POST hangs before the platform acts."""
    bench.simulator.control(
        "POST", "faults", {"kind": "hang_before", "method": "POST", "path": "/execute", "times": tries}
    )
    _kill_tasks(
        bench, tally, tries, deferrable=True, when=lambda agent: f"POST /v1/agents/{agent}/execute" in _posts(bench)
    )


def kill_in_post_acted(bench: Bench, tally: Tally, tries: int) -> None:
    """The platform has started the run, and its answer does not come."""
    bench.simulator.control(
        "POST", "faults", {"kind": "hang_after", "method": "POST", "path": "/execute", "times": tries}
    )
    _kill_tasks(bench, tally, tries, deferrable=True, when=lambda agent: bool(bench.simulator.executions(agent)))


def _after(bench: Bench, most: float) -> Callable[[str], bool]:
    """True of an agent from a random moment on, up to `most` seconds after its first execute."""
    due: dict[str, float] = {}

    def when(agent: str) -> bool:
        if agent not in due:
            if not bench.simulator.executions(agent):
                return False
            due[agent] = time.monotonic() + bench.rng.uniform(0, most)
        return time.monotonic() >= due[agent]

    return when


def kill_around_record(bench: Bench, tally: Tally, tries: int) -> None:
    """Just after the platform has started the run: around the record, the XCom and the deferral."""
    _kill_tasks(bench, tally, tries, deferrable=True, when=_after(bench, 0.15))


def kill_waiting_on_worker(bench: Bench, tally: Tally, tries: int) -> None:
    """While the task waits on the worker, up to and around the end of its run."""
    _kill_tasks(bench, tally, tries, deferrable=False, when=_after(bench, RUN_SECONDS + 4))


def kill_at_random(bench: Bench, tally: Tally, tries: int) -> None:
    """At a random moment of the task's process, whatever it does then."""
    seen: dict[str, float] = {}

    def when(agent: str) -> bool:
        seen.setdefault(agent, time.monotonic() + bench.rng.uniform(0, 1.2))
        return time.monotonic() >= seen[agent]

    _kill_tasks(bench, tally, tries, deferrable=True, when=when)


#: Strikes at one batch of tasks, and how many tasks are in it.
STRIKES, BATCH = 5, 8


def _strike_while_deferred(bench: Bench, tally: Tally, strikes: int, strike: Callable[[], None]) -> None:
    """Strike so often while tasks are deferred, in as many batches as that takes."""
    while strikes > 0:
        # Long enough that there is still something to strike at.
        agents = bench.add_agents(BATCH, run_seconds=10.0 + 10.0 * min(STRIKES, strikes))
        run_id = bench.start(agents, deferrable=True)
        until(
            lambda: any(row["state"] == "deferred" for row in bench.instances(run_id)),  # noqa: B023 - asked at once
            120,
            "a deferred task",
        )
        for _ in range(min(STRIKES, strikes)):
            time.sleep(bench.rng.uniform(0, 4))
            strike()
            tally.hits += 1
            strikes -= 1
        bench.finish(tally, agents, run_id)


def _restart(bench: Bench, component: str) -> Callable[[], None]:
    def strike() -> None:
        bench.airflow.kill(component)
        bench.airflow.start(component)
        bench.airflow.wait_until_healthy()

    return strike


def kill_triggerer(bench: Bench, tally: Tally, tries: int) -> None:
    """SIGKILL of the triggerer and its children; another one is started."""
    _strike_while_deferred(bench, tally, tries, _restart(bench, "triggerer"))


def kill_scheduler(bench: Bench, tally: Tally, tries: int) -> None:
    """SIGKILL of the scheduler with its executor and every task that it runs."""
    _strike_while_deferred(bench, tally, tries, _restart(bench, "scheduler"))


def kill_api_server(bench: Bench, tally: Tally, tries: int) -> None:
    """SIGKILL of the API server, over which tasks and triggers talk to the database."""
    _strike_while_deferred(bench, tally, tries, _restart(bench, "api-server"))


def restart_postgres(bench: Bench, tally: Tally, tries: int) -> None:
    """A fast shutdown of the metadata database, and a start two seconds later."""
    postgres = bench.airflow.postgres
    assert postgres is not None  # noqa: S101 - this bench always runs on PostgreSQL

    def strike() -> None:
        postgres.stop()
        time.sleep(2)
        postgres.start()

        def recovered() -> bool:
            bench.airflow.revive()
            return bench.airflow.is_healthy()

        until(recovered, 120, "Airflow's recovery")

    _strike_while_deferred(bench, tally, max(1, tries // 4), strike)


def platform_down(bench: Bench, tally: Tally, tries: int) -> None:
    """Every request is reset for a minute, once however many `tries` there are."""
    del tries

    def strike() -> None:
        bench.simulator.control("POST", "faults", {"kind": "reset_before", "times": None})
        time.sleep(60)
        bench.simulator.control("DELETE", "faults")

    _strike_while_deferred(bench, tally, 1, strike)


def rotate_key(bench: Bench, tally: Tally, tries: int) -> None:
    """The platform takes a new key and refuses the old one; the connection in the database is changed first."""

    def strike() -> None:
        key = f"sk-rotated-{bench.rng.getrandbits(64):x}"
        bench.airflow.api(
            "PATCH",
            "/api/v2/connections/agents_default?update_mask=password",
            {"connection_id": "agents_default", "conn_type": "agents", "password": key},
        )
        bench.simulator.control("PUT", "keys", [key])

    _strike_while_deferred(bench, tally, max(1, tries // 4), strike)


FAULTS: dict[str, tuple[str, Callable[[Bench, Tally, int], None]]] = {
    "before-post": ("task killed before the POST", kill_before_post),
    "post-not-acted": ("task killed in the POST, before the platform acted", kill_in_post_not_acted),
    "post-acted": ("task killed between the POST and the record", kill_in_post_acted),
    "after-record": ("task killed around and after the record", kill_around_record),
    "on-worker": ("task killed while it waits on the worker", kill_waiting_on_worker),
    "random": ("task killed at a random moment", kill_at_random),
    "triggerer": ("triggerer killed while runs are deferred", kill_triggerer),
    "scheduler": ("scheduler and its tasks killed", kill_scheduler),
    "api-server": ("API server killed", kill_api_server),
    "postgres": ("PostgreSQL restarted", restart_postgres),
    "platform-down": ("platform down for a minute", platform_down),
    "rotate-key": ("key rotated while runs wait", rotate_key),
}


@contextmanager
def bench(home: Path, seed: int) -> Iterator[Bench]:
    """A real Airflow on PostgreSQL and the platform, for the length of a block."""
    with simulator_server(home, "--key", KEY) as simulator:
        env = {
            "AIRFLOW__CORE__PARALLELISM": "8",
            # A task whose supervisor died too is noticed by its heartbeat: sooner than the 300 s of production.
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
        }
        with RealAirflow(home, dags=[Path(__file__).parent / "fault_dags.py"], env=env, database="postgres") as airflow:
            airflow.api("POST", "/api/v2/connections", json.loads(connection_body(simulator.url)))
            yield Bench(airflow, simulator, random.Random(seed))


def connection_body(url: str) -> str:
    """The connection as the REST API wants it: in the database, where it can be changed while tasks wait."""
    given = json.loads(connection_json(url, KEY))
    return json.dumps({**given, "connection_id": "agents_default", "extra": json.dumps(given["extra"])})


HEADER = (
    f"| {'fault':50} | times | tasks | executes | after a failure | doubled | verdicts |\n|---|---|---|---|---|---|---|"
)


def run(names: list[str], tries: int, seed: int, home: Path) -> list[Tally]:
    """Try the named faults and return what each did."""
    tallies = []
    with bench(home, seed) as there:
        print(HEADER, flush=True)
        for name in names:
            words, fault = FAULTS[name]
            tally = Tally(words)
            fault(there, tally, tries)
            tallies.append(tally)
            print(tally.row(), flush=True)
            for line in tally.wrong:
                print(f"    WRONG {line}", flush=True)
    return tallies


def main() -> int:
    """Run it from the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=20, help="of each kill (default %(default)s)")
    parser.add_argument("--only", action="append", choices=sorted(FAULTS), help="repeatable")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of every random moment")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    home = Path(tempfile.mkdtemp(prefix=".airflow-faults-", dir=ROOT))
    try:
        tallies = run(arguments.only or list(FAULTS), arguments.tries, arguments.seed, home)
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(home, ignore_errors=True)
    wrong = sum(len(tally.wrong) for tally in tallies)
    tasks, executes = sum(tally.tasks for tally in tallies), sum(tally.executes for tally in tallies)
    print(f"\n{tasks} tasks that wanted one run each: {executes} runs started, {wrong} doubled, lost or told wrong")
    return int(wrong > 0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    sys.exit(main())
