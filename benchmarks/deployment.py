"""A thousand deferred tasks in one real triggerer, five thousand in three: what they take, and how late an end is seen.

Run it with `make deployment` (about seven and twelve minutes on two cores). A real Airflow on PostgreSQL waits for runs
of as many agents, with sensors that start in the triggerer: LocalExecutor would take ten minutes to defer a thousand.
The simulator is behind HTTP. While all tasks wait, the triggerers' processes and the platform's requests are measured
for a minute, and before that the same of triggerers that have nothing to do. The delays are those of Airflow's own
statistics, as a monitor sees them. With its two sizes it writes its figures to the documentation.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dev"))

import evidence
import httpx
from real_airflow import COMPONENTS, RealAirflow, connection_json, simulator_server, until

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import psutil
    from evidence import Row
    from real_airflow import SimulatorServer

WINDOW = 60.0
#: A trigger that starts from the scheduler is handed its whole DAG, so the DAGs are small.
TASKS_A_DAG = 20
#: The triggerers of each number of tasks whose figures are kept.
FORMS = {1000: 1, 5000: 3}
ENV = {
    # A triggerer holds a thousand triggers by default.
    "AIRFLOW__TRIGGERER__CAPACITY": "2500",
    # To parse the tasks again while they are measured would take a core.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "1800",
    "AIRFLOW__METRICS__STATSD_ON": "True",
    "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
}
DAG_FILE = """
from datetime import datetime
from airflow.sdk import DAG
from airflow_provider_agents.sensors import AgentRunSensor

for number in range({dags}):
    with DAG(f"waits_{{number}}", start_date=datetime(2026, 1, 1), schedule=None, max_active_tasks=2000) as dag:
        for task in range({tasks}):
            AgentRunSensor(
                task_id=f"wait_{{task}}",
                agent_id=f"agent-{{number * {tasks} + task}}",
                event_id=f"{{{{{{{{ dag_run.conf.events[{{task}}] }}}}}}}}",
                start_from_trigger=True,
            )
    globals()[dag.dag_id] = dag
"""


class Monitor:
    """Listens to Airflow's statistics."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.timings: collections.defaultdict[str, list[float]] = collections.defaultdict(list)
        #: The last value of each process, by its address: each triggerer has a poll of its own.
        self.gauges: collections.defaultdict[str, dict[tuple[str, int], float]] = collections.defaultdict(dict)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            lines, address = self._socket.recvfrom(65536)
            for line in lines.decode().splitlines():
                name, _, rest = line.partition(":")
                value, _, kind = rest.partition("|")
                if kind.startswith("c"):
                    self.counts[name] += int(float(value))
                elif kind.startswith("ms"):
                    self.timings[name].append(float(value))
                elif kind.startswith("g"):
                    self.gauges[name][address] = float(value)


def cpu(processes: Iterable[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        times = process.cpu_times()
        total += times.user + times.system
    return total


def measure(airflow: RealAirflow, simulator: SimulatorServer, triggerers: Sequence[str]) -> dict[str, float]:
    """Over the window: CPU and memory of the triggerer that takes most, and the requests of all."""
    families = [airflow.family(name) for name in triggerers]
    requests, before, began = (
        simulator.control("GET", "requests")["total"],
        [cpu(family) for family in families],
        time.monotonic(),
    )
    time.sleep(WINDOW)
    seconds = time.monotonic() - began
    return {
        "cpu_percent": max(100 * (cpu(family) - busy) / seconds for family, busy in zip(families, before, strict=True)),
        "memory_mb": max(sum(process.memory_full_info().pss for process in family) for family in families) / 2**20,
        "requests_per_minute": 60 * (simulator.control("GET", "requests")["total"] - requests) / seconds,
    }


def states(airflow: RealAirflow) -> dict[str, int]:
    """How many tasks are in each state."""
    assert airflow.postgres is not None
    return dict(airflow.postgres.rows("select coalesce(state, 'none'), count(*) from task_instance group by 1"))


def start(airflow: RealAirflow, simulator: SimulatorServer, dags: int) -> None:
    """Start the runs and the tasks that wait for them.

    The runs last until all tasks wait and a minute has been measured. They end over forty seconds for each thousand.
    """
    rng, thousands = random.Random(1), dags * TASKS_A_DAG / 1000
    shortest = 240 + 30 * thousands
    with httpx.Client(base_url=f"{simulator.url}/_simulator/", timeout=30) as platform:
        for number in range(dags):
            events = []
            for task in range(TASKS_A_DAG):
                agent_id = f"agent-{number * TASKS_A_DAG + task}"
                run_seconds = rng.uniform(shortest, shortest + 40 * thousands)
                platform.post("agents", json={"agent_id": agent_id, "run_seconds": run_seconds})
                events.append(platform.post("runs", json={"agentId": agent_id}).json()["eventId"])
            airflow.trigger(f"waits_{number}", {"events": events})


def run(
    airflow: RealAirflow, simulator: SimulatorServer, monitor: Monitor, triggerers: Sequence[str], dags: int
) -> Row:
    """Let the tasks wait and end, and measure."""
    tasks = dags * TASKS_A_DAG
    for number in range(dags):
        airflow.unpause(f"waits_{number}")
    idle = measure(airflow, simulator, triggerers)
    print(f"nothing to do: {json.dumps(idle)}", flush=True)
    began = time.monotonic()
    start(airflow, simulator, dags)
    until(lambda: states(airflow).get("deferred") == tasks, 600, "the deferral of all tasks", pause=2.0)
    deferred_after = time.monotonic() - began
    print(f"{tasks:,} tasks deferred after {deferred_after:.0f} s", flush=True)
    # Airflow hands a triggerer fifty triggers a second.
    subscribers = monitor.gauges["airflow.agents.poll.subscribers"]
    until(lambda: sum(subscribers.values()) >= tasks, 300, "all triggers")
    waiting_after, arrival = time.monotonic() - began, simulator.control("GET", "requests")
    kinds: collections.Counter[str] = collections.Counter()
    for path, count in arrival["paths"].items():
        kinds[re.sub(r"agent-\d+", "{agent}", path)] += count
    waits = sorted(int(count) for count in subscribers.values())
    print(f"all wait after {waiting_after:.0f} s: {waits}, {dict(kinds)}", flush=True)
    time.sleep(10)
    waiting = measure(airflow, simulator, triggerers)
    print(f"{states(airflow)}: {json.dumps(waiting)}", flush=True)
    until(lambda: states(airflow).get("success") == tasks, 1200, "the end of all tasks", pause=5.0)
    logs = "\n".join(airflow.log_file(name).read_text(errors="replace") for name in triggerers)
    delays = [seconds / 1e3 for seconds in monitor.timings["airflow.agents.run.notice_delay"]]
    cycles = monitor.timings["airflow.agents.poll.cycle"]
    return {
        "tasks": tasks,
        "triggerers": len(triggerers),
        "load": os.getloadavg()[2],
        "waits": waits,
        "deferred_after_s": deferred_after,
        "waiting_after_s": waiting_after,
        "arrival_requests": arrival["total"],
        **{f"idle_{name}": value for name, value in idle.items()},
        **waiting,
        "mean_delay_s": statistics.fmean(delays),
        "worst_delay_s": max(delays),
        "delays_s": evidence.spread(delays),
        "cycles": len(cycles),
        "mean_cycle_ms": statistics.fmean(cycles),
        "worst_cycle_ms": max(cycles),
        "blocked_s": [float(seconds) for seconds in re.findall(r"thread was blocked for ([0-9.]+) seconds", logs)],
        **{name.removeprefix("airflow."): count for name, count in monitor.counts.items() if ".agents." in name},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000, help=f"a multiple of {TASKS_A_DAG}")
    parser.add_argument("--triggerers", type=int, default=1)
    options = parser.parse_args()
    dags, monitor = options.tasks // TASKS_A_DAG, Monitor()
    # One triggerer of a machine can serve its logs.
    others = [f"triggerer-{number}" for number in range(2, options.triggerers + 1)]
    with tempfile.TemporaryDirectory(prefix="agents-deployment-") as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        file = home / "waits.py"
        file.write_text(DAG_FILE.format(dags=dags, tasks=TASKS_A_DAG))
        simulator = stack.enter_context(simulator_server(home, "--key", "test-key", "--queue-seconds", "0"))
        airflow = RealAirflow(
            home / "airflow",
            dags=[file],
            env={
                **ENV,
                "AIRFLOW__METRICS__STATSD_PORT": str(monitor.port),
                "AIRFLOW_CONN_AGENTS_DEFAULT": connection_json(simulator.url, "test-key"),
            },
            database="postgres",
            components=[*COMPONENTS, *others],
            commands={name: ["triggerer", "--skip-serve-logs"] for name in others},
        )
        row = run(stack.enter_context(airflow), simulator, monitor, ["triggerer", *others], dags)
    print(f"{row}\n\n{evidence.deployment({'rows': [row]})}")
    if FORMS.get(options.tasks) == options.triggerers:
        kept = [other for other in evidence.load()["deployment"]["rows"] if other["tasks"] != row["tasks"]]
        rows = sorted([*kept, row], key=lambda each: each["tasks"])
        evidence.save("deployment", command="make deployment", rows=rows)


if __name__ == "__main__":
    main()
