"""A thousand deferred tasks in a real triggerer: what they take, and whether they tell.

Run it with `make deployment` (about eight minutes on two cores). A real Airflow on PostgreSQL waits for runs of a
thousand agents, with sensors that start in the triggerer, since LocalExecutor would take ten minutes to defer as many;
the simulator is behind HTTP. While all of them are deferred, the triggerer's processes and the platform's requests are
measured for a minute, and before that the same of a triggerer that has nothing to do. Airflow's own statistics are
listened to, so the delays are what a monitor sees. With its thousand tasks it writes its figures to the documentation.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
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
from real_airflow import RealAirflow, connection_json, simulator_server, until

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import psutil
    from real_airflow import SimulatorServer

WINDOW = 60.0
#: A trigger that starts from the scheduler is handed its whole DAG, so the DAGs are small.
TASKS_A_DAG = 20
ALL_TASKS = 1000
RUN_SECONDS = (360.0, 400.0)
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
        self.gauges: dict[str, float] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            for line in self._socket.recv(65536).decode().splitlines():
                name, _, rest = line.partition(":")
                value, _, kind = rest.partition("|")
                if kind.startswith("c"):
                    self.counts[name] += int(float(value))
                elif kind.startswith("ms"):
                    self.timings[name].append(float(value))
                elif kind.startswith("g"):
                    self.gauges[name] = float(value)


def cpu(processes: Iterable[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        times = process.cpu_times()
        total += times.user + times.system
    return total


def measure(airflow: RealAirflow, simulator: SimulatorServer) -> dict[str, float]:
    """CPU, memory and requests over the window."""
    processes = airflow.family("triggerer")
    requests, before, began = (
        simulator.control("GET", "requests")["total"],
        cpu(processes),
        time.monotonic(),
    )
    time.sleep(WINDOW)
    seconds = time.monotonic() - began
    return {
        "cpu_percent": 100 * (cpu(processes) - before) / seconds,
        "memory_mb": sum(process.memory_full_info().pss for process in processes) / 2**20,
        "requests_per_minute": 60 * (simulator.control("GET", "requests")["total"] - requests) / seconds,
    }


def states(airflow: RealAirflow, runs: Mapping[str, str]) -> collections.Counter[str]:
    return collections.Counter(
        row["state"] for dag_id, run_id in runs.items() for row in airflow.task_instances(dag_id, run_id)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=ALL_TASKS, help=f"a multiple of {TASKS_A_DAG}")
    dags = parser.parse_args().tasks // TASKS_A_DAG
    rng, monitor = random.Random(1), Monitor()
    env = {
        "AIRFLOW__METRICS__STATSD_ON": "True",
        "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
        "AIRFLOW__METRICS__STATSD_PORT": str(monitor.port),
    }
    with tempfile.TemporaryDirectory(prefix="agents-deployment-") as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        file = home / "waits.py"
        file.write_text(DAG_FILE.format(dags=dags, tasks=TASKS_A_DAG))
        simulator = stack.enter_context(simulator_server(home, "--key", "test-key", "--queue-seconds", "0"))
        env["AIRFLOW_CONN_AGENTS_DEFAULT"] = connection_json(simulator.url, "test-key")
        airflow = stack.enter_context(RealAirflow(home / "airflow", dags=[file], env=env, database="postgres"))
        for number in range(dags):
            airflow.unpause(f"waits_{number}")
        idle = measure(airflow, simulator)
        print(f"nothing to do: {json.dumps(idle)}", flush=True)
        began, runs = time.monotonic(), {}
        for number in range(dags):
            events = []
            for task in range(TASKS_A_DAG):
                agent = {"agent_id": f"agent-{number * TASKS_A_DAG + task}", "run_seconds": rng.uniform(*RUN_SECONDS)}
                simulator.control("POST", "agents", agent)
                events.append(simulator.control("POST", "runs", {"agentId": agent["agent_id"]})["eventId"])
            runs[f"waits_{number}"] = airflow.trigger(f"waits_{number}", {"events": events})
        tasks = dags * TASKS_A_DAG
        until(lambda: states(airflow, runs)["deferred"] == tasks, 240, "the deferral of all tasks", pause=2.0)
        deferred_after = time.monotonic() - began
        print(f"{tasks:,} tasks deferred after {deferred_after:.0f} s", flush=True)
        # Airflow hands a triggerer fifty triggers a second.
        until(lambda: (monitor.gauges.get("airflow.agents.poll.subscribers") or 0) == tasks, 120, "all triggers")
        time.sleep(10)
        waiting = measure(airflow, simulator)
        print(f"{states(airflow, runs)['deferred']:,} deferred: {json.dumps(waiting)}", flush=True)
        until(lambda: states(airflow, runs)["success"] == tasks, 600, "the end of all tasks", pause=5.0)
        print(f"all over: {dict(states(airflow, runs))}", flush=True)
        log = airflow.log_file("triggerer").read_text(errors="replace")
        blocked = [float(seconds) for seconds in re.findall(r"thread was blocked for ([0-9.]+) seconds", log)]
    delays = [seconds / 1e3 for seconds in monitor.timings["airflow.agents.run.notice_delay"]]
    cycles = monitor.timings["airflow.agents.poll.cycle"]
    row = {
        "tasks": tasks,
        "deferred_after_s": deferred_after,
        **{f"idle_{name}": value for name, value in idle.items()},
        **waiting,
        "mean_delay_s": statistics.fmean(delays),
        "worst_delay_s": max(delays),
        "delays_s": evidence.spread(delays),
        "cycles": len(cycles),
        "mean_cycle_ms": statistics.fmean(cycles),
        "worst_cycle_ms": max(cycles),
        "blocked_s": blocked,
        **{name.removeprefix("airflow."): count for name, count in monitor.counts.items() if ".agents." in name},
    }
    print(f"{row}\n\n{evidence.deployment({'rows': [row]})}")
    extra = waiting["cpu_percent"] - idle["cpu_percent"]
    print(f"\nWaiting takes {extra:.1f} % of a core and {waiting['requests_per_minute']:.0f} requests a minute.")
    if tasks == ALL_TASKS:
        evidence.save("deployment", command="make deployment", rows=[row])


if __name__ == "__main__":
    main()
