"""A thousand deferred tasks in a real triggerer: what it takes, and whether it tells.

Run it with `make deployment` (about ten minutes on two cores, most of which LocalExecutor takes to start the tasks). A
real Airflow on PostgreSQL runs one mapped task for each of so many agents; the simulator is behind HTTP. While all of
them are deferred, the triggerer's processes and the platform's requests are measured for a minute, and then the same
of a triggerer that has nothing to do. Airflow's own statistics are listened to, so the delays are what a monitor sees.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "dev"))

from real_airflow import RealAirflow, connection_json, simulator_server, until

DAG = "many_runs"
WINDOW = 60.0
DAG_FILE = """
from datetime import datetime
from airflow.sdk import DAG, task
from airflow_provider_agents.operators import ExecuteAgentOperator

with DAG("many_runs", start_date=datetime(2026, 1, 1), schedule=None, max_active_tasks=2000):

    @task
    def agents(dag_run=None):
        return dag_run.conf["agents"]

    ExecuteAgentOperator.partial(task_id="run", settle=3.0).expand(agent_id=agents())
"""


class Monitor:
    """Listens to Airflow's statistics."""

    def __init__(self):
        self.counts, self.timings = collections.Counter(), collections.defaultdict(list)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        while True:
            for line in self._socket.recv(65536).decode().splitlines():
                name, _, rest = line.partition(":")
                value, _, kind = rest.partition("|")
                if kind.startswith("c"):
                    self.counts[name] += int(float(value))
                elif kind.startswith("ms"):
                    self.timings[name].append(float(value))


def cpu(processes):
    total = 0.0
    for process in processes:
        times = process.cpu_times()
        total += times.user + times.system
    return total


def measure(airflow, simulator):
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


def states(airflow, run_id):
    return collections.Counter(row["state"] for row in airflow.all_task_instances(DAG, run_id, "run"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000)
    tasks = parser.parse_args().tasks
    # All are deferred before the first one ends.
    run_seconds = 60.0 + WINDOW + 0.45 * tasks
    monitor = Monitor()
    env = {
        "AIRFLOW__METRICS__STATSD_ON": "True",
        "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
        "AIRFLOW__METRICS__STATSD_PORT": str(monitor.port),
    }
    with tempfile.TemporaryDirectory(prefix="agents-deployment-") as folder:
        home = Path(folder)
        dag = home / "many_runs.py"
        dag.write_text(DAG_FILE)
        with simulator_server(home, "--key", "test-key") as simulator:
            env["AIRFLOW_CONN_AGENTS_DEFAULT"] = connection_json(simulator.url, "test-key")
            agents = [f"agent-{number}" for number in range(tasks)]
            for agent_id in agents:
                simulator.control("POST", "agents", {"agent_id": agent_id, "run_seconds": run_seconds})
            with RealAirflow(home / "airflow", dags=[dag], env=env, database="postgres") as airflow:
                airflow.unpause(DAG)
                idle = measure(airflow, simulator)
                print(f"nothing to do: {json.dumps(idle)}", flush=True)
                began = time.monotonic()
                run_id = airflow.trigger(DAG, {"agents": agents})
                until(
                    lambda: states(airflow, run_id)["deferred"] == tasks,
                    run_seconds,
                    "the deferral of all tasks",
                    pause=2.0,
                )
                print(f"{tasks:,} tasks deferred after {time.monotonic() - began:.0f} s", flush=True)
                time.sleep(15)
                waiting = measure(airflow, simulator)
                still = states(airflow, run_id)["deferred"]
                print(f"{still:,} deferred: {json.dumps(waiting)}", flush=True)
                state = airflow.wait_for_dag_run(DAG, run_id, seconds=run_seconds + tasks)
                log = airflow.log_file("triggerer").read_text(errors="replace")
                executions = len(simulator.executions())
                print(f"the DAG run: {state}; {states(airflow, run_id)}; {executions:,} runs started")
                print("loop blocked:", re.findall(r"thread was blocked for ([0-9.]+) seconds", log))
    delays = [seconds / 1e3 for seconds in monitor.timings["airflow.agents.run.notice_delay"]]
    sweeps = monitor.timings["airflow.agents.feed.sweep"]
    print(f"notice delay of {len(delays):,}: mean {statistics.fmean(delays):.2f} s, worst {max(delays):.2f} s")
    print(f"{len(sweeps):,} sweeps: mean {statistics.fmean(sweeps):.0f} ms, worst {max(sweeps):.0f} ms")
    print({name: count for name, count in monitor.counts.items() if ".agents." in name})
    extra = waiting["cpu_percent"] - idle["cpu_percent"]
    print(f"waiting takes {extra:.1f} % of a core and {waiting['requests_per_minute']:.0f} requests a minute")


if __name__ == "__main__":
    main()
