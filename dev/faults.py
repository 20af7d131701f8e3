"""`make faults`: break everything around runs in a real Airflow on PostgreSQL, and count what that did to the runs.

For each fault it prints how often it was tried, how many runs the platform started for how many tasks that each
wanted one, and how many tasks ended with the verdict of their own run. Exit status 1 if a run was doubled, lost, or
told wrong. `--tries N` (default 20) tries of each kill; `--only NAME` for one of the faults. Faults of the platform
and of the connection are tried once, whatever `--tries` says.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from command import new_home, run_command
from fault_groups import kill_tasks_of_groups, kill_triggerer_of_groups
from real_airflow import RealAirflow, RealAirflowError, SimulatorServer, connection_to, simulator_server, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DAG = "fault_runs"
WATCHER_DAG = "fault_watcher"
KEY = "sk-faults-0123456789"
#: How long an agent's run takes, in seconds: long enough to be killed while it goes on.
RUN_SECONDS = 6.0
#: A wait that a fault does not concern ends within this many seconds of its run: a few polls, Airflow's own way from a
#: trigger to a worker on a busy machine, and room. What gives up and begins anew takes longer.
PROMPT_SECONDS = 60.0
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
        #: The key that the platform takes now.
        self.key = KEY
        self._batches = 0

    def add_agents(self, count: int, run_seconds: float = RUN_SECONDS, *, failing: bool = True) -> list[str]:
        """New agents, one for each task, so that each task's executes can be counted. Every fourth one's runs fail.

        Args:
            count: how many.
            run_seconds: how long their runs take.
            failing: whether any of them fail.
        """
        self._batches += 1
        agents = [f"agent-{self._batches}-{number}" for number in range(count)]
        for number, agent in enumerate(agents):
            end_status = "FAILED" if failing and number % 4 == 3 else "COMPLETED"
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

    def start_run(self, agent: str) -> str:
        """Start a run as the platform's schedule would; the id of its event."""
        event_id: str = self.simulator.control("POST", "runs", {"agentId": agent})["eventId"]
        return event_id

    def wait_until_waiting(self, runs: list[tuple[list[str], str]], seconds: float = 180) -> None:
        """Wait until every task of these DAG runs waits for its run, or has ended; give up after so many seconds.

        Args:
            runs: the agents and the id of each DAG run.
            seconds: how long at most. `finish` counts what has not even started by then.
        """

        def waits(agent: str, instance: dict[str, Any], started: set[str]) -> bool:
            return instance["state"] in {"deferred", *_ENDED} or (instance["state"] == "running" and agent in started)

        def all_wait() -> bool:
            started = {done["agentId"] for done in self.simulator.executions()}
            pairs = [(agents[row["map_index"]], row) for agents, run_id in runs for row in self.instances(run_id)]
            return len(pairs) == sum(len(agents) for agents, _ in runs) and all(
                waits(agent, row, started) for agent, row in pairs
            )

        with suppress(RealAirflowError):
            until(all_wait, seconds, "the wait of all tasks", pause=0.5)

    def remove_connection(self) -> None:
        """Delete the connection: whoever asks for it is told that it is not defined."""
        self.airflow.api("DELETE", "/api/v2/connections/agents_default")

    def add_connection(self) -> None:
        """Create the connection in the database, where it can be changed while tasks wait."""
        connection = {"connection_id": "agents_default", **connection_to(self.simulator.url, self.key)}
        self.airflow.api("POST", "/api/v2/connections", connection)

    def wait_for_end(self, run_id: str, seconds: float) -> None:
        """Wait until the DAG run has ended, or `seconds` have passed."""
        ends_at = time.monotonic() + seconds
        while self.airflow.dag_run_state(DAG, run_id) not in {"success", "failed"} and time.monotonic() < ends_at:
            # Some components end when the database goes away, minutes later even; a deployment starts them again.
            self.airflow.revive()
            time.sleep(0.5)

    def finish(
        self,
        tally: Tally,
        agents: list[str],
        run_id: str,
        *,
        deleted: frozenset[str] = frozenset(),
        prompt: bool = False,
        seconds: float = 420,
    ) -> None:
        """Wait for the DAG run to end, and count.

        Args:
            tally: where to.
            agents: one for each mapped task.
            run_id: of the DAG run.
            deleted: agents whose tasks may fail for good, with a text that says why.
            prompt: whether all other tasks must end within `PROMPT_SECONDS` of their run.
            seconds: how long the DAG run may take.
        """
        self.wait_for_end(run_id, seconds)
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
            ends = {run["endStatus"] for run in mine}
            late = _seconds_between(mine[-1]["endsAt"], instance["end_date"]) if mine and instance["end_date"] else None
            if instance["state"] == "failed" and agent in deleted:
                right = self._says_that_it_is_deleted(agent, run_id, instance)
            elif instance["state"] == "success":
                event = self.airflow.xcom(DAG, run_id, "run", map_index=instance["map_index"])
                event = json.loads(event) if isinstance(event, str) else event or {}
                right = ends == {"COMPLETED"} and event.get("id") in {run["eventId"] for run in mine}
            else:
                # Before its end, nothing but a fault can have failed it.
                right = instance["state"] == "failed" and ends == {"FAILED"} and late is not None and late >= 0
            tally.right += right
            in_time = not prompt or agent in deleted or (late is not None and late <= PROMPT_SECONDS)
            if not (right and in_time) or len(executions) != 1 + after_failure:
                tally.wrong.append(
                    f"{agent}: {instance['state']} after {instance['try_number']} tries, "
                    f"{late} s after the end of its run; {len(executions)} executes that ended {ends}"
                )
                self.print_logs(agent, run_id, instance)

    def _says_that_it_is_deleted(self, agent: str, run_id: str, instance: dict[str, Any]) -> bool:
        """Whether the log of a task names its agent and what has become of it."""
        text = self.airflow.log_text(DAG, run_id, "run", instance["try_number"], instance["map_index"])
        return any(agent in line and re.search(r"404|deleted|does not exist", line) for line in _errors(text))

    def print_logs(self, agent: str, run_id: str, instance: dict[str, Any]) -> None:
        """Print what each try warned of: the deployment is deleted at the end."""
        for number in range(1, instance["try_number"] + 1):
            with suppress(RealAirflowError):
                text = self.airflow.log_text(DAG, run_id, "run", number, instance["map_index"])
                lines = [line[:600] for line in text.splitlines() if line.startswith(("warning", "error", "critical"))]
                print(f"    {agent}, try {number}:", *lines[-5:], sep="\n      ", flush=True)


def _errors(text: str) -> list[str]:
    """The lines of a log that say what failed."""
    return [line for line in text.splitlines() if line.startswith(("error", "critical"))]


def _seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


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


def _strike_while_deferred(
    bench: Bench, tally: Tally, strikes: int, strike: Callable[[], None], *, all_wait: bool = False
) -> None:
    """Strike so often while tasks are deferred, in as many batches as that takes: once any task or all tasks wait."""
    while strikes > 0:
        # Long enough that there is still something to strike at.
        agents = bench.add_agents(BATCH, run_seconds=10.0 + 10.0 * min(STRIKES, strikes))
        run_id = bench.start(agents, deferrable=True)
        until(
            lambda: any(row["state"] == "deferred" for row in bench.instances(run_id)),  # noqa: B023 - asked at once
            120,
            "a deferred task",
        )
        if all_wait:
            bench.wait_until_waiting([(agents, run_id)])
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
        bench.key = f"sk-rotated-{bench.rng.getrandbits(64):x}"
        bench.airflow.api(
            "PATCH",
            "/api/v2/connections/agents_default?update_mask=password",
            {"connection_id": "agents_default", "conn_type": "agents", "password": bench.key},
        )
        bench.simulator.control("PUT", "keys", [bench.key])

    # A task that has read the old key and has started nothing yet fails with 401, and says so.
    _strike_while_deferred(bench, tally, max(1, tries // 4), strike, all_wait=True)


def delete_agents(bench: Bench, tally: Tally, tries: int) -> None:
    """Two agents are deleted while the runs of all go on: one whose events vanish, one whose events stay listed.

    A watcher of the account follows all of these runs. It must still report the runs of the other agents.
    """
    del tries
    (bystander,) = bench.add_agents(1, run_seconds=2.0)
    bench.airflow.unpause(WATCHER_DAG)
    started: list[str] = []

    def is_watching() -> bool:
        started.append(bench.start_run(bystander))
        return any(_is_reported(bench, event_id) for event_id in started)

    # Airflow starts a watcher when it has parsed its DAG again.
    until(is_watching, 180, "the first report of the watcher", pause=5)
    agents = bench.add_agents(BATCH, run_seconds=60.0)
    # Neither of them is one whose runs fail.
    vanishing, staying, *others = agents
    run_id = bench.start(agents, deferrable=True)
    bench.wait_until_waiting([(agents, run_id)])
    bench.simulator.control("DELETE", f"agents?agentId={vanishing}")
    bench.simulator.control("DELETE", f"agents?agentId={staying}&keepEvents=true")
    tally.hits += 2
    time.sleep(10)
    wanted = [bench.start_run(bystander)]
    bench.finish(tally, agents, run_id, deleted=frozenset({vanishing, staying}), prompt=True, seconds=900)
    wanted += [done["eventId"] for done in bench.simulator.executions() if done["agentId"] in others]
    try:
        until(lambda: _is_reported(bench, *wanted), PROMPT_SECONDS, "the watcher's report of every other run", pause=2)
    except RealAirflowError as error:
        tally.wrong.append(str(error))
    bench.airflow.api("PATCH", f"/api/v2/dags/{WATCHER_DAG}", {"is_paused": True})


def _is_reported(bench: Bench, *event_ids: str) -> bool:
    """Whether the watcher has reported all of these runs."""
    events = bench.airflow.api("GET", "/api/v2/assets/events?limit=1000")["asset_events"]
    reported = {run["id"] for event in events for run in event["extra"]["payload"]["runs"]}
    return reported.issuperset(event_ids)


#: What gateways and firewalls answer while they are changed, each for so many seconds, with as long a pause after it.
REFUSALS = (302, 400, 403, 404)
REFUSAL_SECONDS = 5.0


def refuse_reads(bench: Bench, tally: Tally, tries: int) -> None:
    """Every read is refused for some seconds, with one status after the other, while tasks wait in both places."""
    del tries
    run_seconds = 20.0 + 2 * REFUSAL_SECONDS * len(REFUSALS)
    deferred, on_workers = bench.add_agents(BATCH, run_seconds), bench.add_agents(4, run_seconds)
    runs = [(agents, bench.start(agents, deferrable=agents is deferred)) for agents in (on_workers, deferred)]
    bench.wait_until_waiting(runs)
    for status in REFUSALS:
        headers = {"Location": "https://login.example/"} if status == 302 else {}
        fault = {"kind": "status", "status": status, "method": "GET", "times": None, "headers": headers}
        bench.simulator.control("POST", "faults", {**fault, "seconds": REFUSAL_SECONDS})
        time.sleep(2 * REFUSAL_SECONDS)
        tally.hits += 1
    for agents, run_id in runs:
        bench.finish(tally, agents, run_id, prompt=True)


#: One field of a row, or all of it, as no reader expects it. None of these rows can be the run of a task.
ODD_ROWS: tuple[Any, ...] = (
    {"id": None}, {"id": 7}, {"id": ""}, {"status": None}, {"status": 7}, {"status": "RESTING"}, {"agentId": None},
    {"agentId": "agent-of-others"}, {"userId": 789}, {"finalModel": {"name": "m"}}, {"error": ["x"]},
    {"browserStepCount": "many"}, {"browserSessionSeconds": {}}, {"createdAt": None}, {"createdAt": "yesterday"},
    {"createdAt": 1767258000000}, {"updatedAt": 1767258000000}, {"startedAt": "0001-01-01T00:00:00"},
    {"completedAt": []}, {"requestId": 7}, {"id": "x" * 5000}, "text", None, 7, [], [[]],
)  # fmt: skip
#: Fields that a row may lack.
_FIELDS = ("id", "status", "agentId", "createdAt", "startedAt", "completedAt", "updatedAt")


def corrupt_history(bench: Bench, tally: Tally, tries: int) -> None:
    """Each agent's history holds one row of each odd kind; while its run is waited for, honest rows become odd, too."""
    del tries
    agents = bench.add_agents(BATCH, run_seconds=30.0)
    honest: list[str] = []
    for agent in agents:
        for age, row in enumerate(ODD_ROWS, 3600):
            bench.simulator.control("POST", "rows", {"agentId": agent, "row": row, "age": age})
        for age, name in enumerate(_FIELDS, 7200):
            bench.simulator.control("POST", "rows", {"agentId": agent, "row": {}, "without": [name], "age": age})
        for age in range(600, 600 + len(ODD_ROWS)):
            added = bench.simulator.control("POST", "rows", {"agentId": agent, "row": {}, "age": age})
            honest.append(added["eventId"])
    run_id = bench.start(agents, deferrable=True)
    bench.wait_until_waiting([(agents, run_id)])
    for number, event_id in enumerate(honest):
        row = ODD_ROWS[number % len(ODD_ROWS)]
        bench.simulator.control("PATCH", "rows", {"eventId": event_id, "row": row})
    tally.hits += 1
    bench.finish(tally, agents, run_id, prompt=True)


#: How long the connection is not found, in seconds.
NOT_FOUND_SECONDS = 60.0


def lose_connection_at_start(bench: Bench, tally: Tally, tries: int) -> None:
    """Tasks start while the connection is not found, in both places of waiting."""
    del tries
    deferred, on_workers = bench.add_agents(4), bench.add_agents(4)
    bench.remove_connection()
    runs = [(agents, bench.start(agents, deferrable=agents is deferred)) for agents in (on_workers, deferred)]
    time.sleep(NOT_FOUND_SECONDS)
    bench.add_connection()
    tally.hits += 1
    for agents, run_id in runs:
        bench.finish(tally, agents, run_id)


def lose_connection_of_triggers(bench: Bench, tally: Tally, tries: int) -> None:
    """A new triggerer takes the triggers while the connection is not found."""
    del tries
    agents = bench.add_agents(BATCH, run_seconds=20.0)
    run_id = bench.start(agents, deferrable=True)
    bench.wait_until_waiting([(agents, run_id)])
    bench.airflow.kill("triggerer")
    bench.remove_connection()
    bench.airflow.start("triggerer")
    bench.airflow.wait_until_healthy()
    time.sleep(NOT_FOUND_SECONDS)
    bench.add_connection()
    tally.hits += 1
    bench.finish(tally, agents, run_id)


#: How long the platform is unavailable before a start, in seconds.
UNAVAILABLE_SECONDS = 20.0


def unavailable_before_start(bench: Bench, tally: Tally, tries: int) -> None:
    """The platform answers 503 while tasks start: to everything, then to executes only."""
    del tries
    for only in ({}, {"method": "POST"}):
        fault = {"kind": "status", "status": 503, "times": None, "seconds": UNAVAILABLE_SECONDS, **only}
        agents = bench.add_agents(BATCH)
        bench.simulator.control("POST", "faults", fault)
        run_id = bench.start(agents, deferrable=True)
        tally.hits += 1
        bench.finish(tally, agents, run_id)


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
    "agent-deleted": ("two agents deleted while the runs of all wait", delete_agents),
    "refused": ("reads answered 302, 400, 403, 404 while runs wait", refuse_reads),
    "odd-rows": ("odd rows in the agents' histories", corrupt_history),
    "connection-start": ("connection not found while tasks start", lose_connection_at_start),
    "connection-triggers": ("connection not found while triggers start", lose_connection_of_triggers),
    "unavailable": ("503 for 20 s while tasks start", unavailable_before_start),
    "groups-triggerer": ("triggerer killed while runs wait to be shared out", kill_triggerer_of_groups),
    "groups-tasks": ("one of three tasks that share an agent killed", kill_tasks_of_groups),
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
            "AIRFLOW__AGENTS__SHARE_STARTS": "True",
        }
        with RealAirflow(home, dags=[Path(__file__).parent / "fault_dags.py"], env=env, database="postgres") as airflow:
            made = Bench(airflow, simulator, random.Random(seed))
            made.add_connection()
            yield made


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
    with new_home("faults") as home:
        tallies = run(arguments.only or list(FAULTS), arguments.tries, arguments.seed, home)
    wrong = sum(len(tally.wrong) for tally in tallies)
    tasks, executes = sum(tally.tasks for tally in tallies), sum(tally.executes for tally in tallies)
    print(f"\n{tasks} tasks that wanted one run each: {executes} runs started, {wrong} doubled, lost or told wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    run_command(main)
