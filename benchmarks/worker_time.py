"""What each way of waiting takes from the workers, in a real Airflow: process starts, CPU, slots, and time.

Run it with `make worker-time` (about fifteen minutes). It writes its figures, plot and table to the documentation. A
real Airflow with LocalExecutor on PostgreSQL runs one DAG for each way, one after the other, against runs of two
lengths. dbt Cloud's operator does the same against a local stand-in of its endpoints, over TLS, as it insists on that.

Counted for each task, from its DAG run's trigger to its success: the worker processes that Airflow started, their CPU
and how long they held a slot, and the time beyond the run's own. Then the seconds from the run's end to the task's
success, and from there to the start of the next task.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import ipaddress
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dev"))

import evidence
import psutil
from real_airflow import RealAirflow, connection_json, free_port, simulator_server, until

if TYPE_CHECKING:
    from real_airflow import SimulatorServer

DAGS = """
from datetime import datetime
from airflow.sdk import DAG, task
from airflow.providers.dbt.cloud.operators.dbt import DbtCloudRunJobOperator
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.sensors import AgentRunSensor

START = datetime(2026, 1, 1)
RULES = {"agent_id": "agent-timed", "settle": 2.0}
EVENT = {**RULES, "event_id": "{{ dag_run.conf.event }}", "poke_interval": 2.0}
OPERATOR = {**RULES, "poll_interval": 2.0}
DBT = {"job_id": 1, "account_id": 1, "check_interval": 2}
WAYS = {
    "operator_on_worker": (ExecuteAgentOperator, {"deferrable": False, **OPERATOR}),
    "operator_deferred": (ExecuteAgentOperator, OPERATOR),
    "operator_end_from_trigger": (ExecuteAgentOperator, {"end_from_trigger": True, **OPERATOR}),
    "operator_exclusive": (ExecuteAgentOperator, {**OPERATOR, "exclusive": True, "settle": 30.0}),
    "sensor_poke": (AgentRunSensor, {"mode": "poke", **EVENT}),
    # Airflow's scheduler takes a task that is due again within a few seconds for one that was killed.
    "sensor_reschedule": (AgentRunSensor, {"mode": "reschedule", **EVENT, "poke_interval": 10.0}),
    "sensor_deferred": (AgentRunSensor, EVENT),
    "sensor_start_from_trigger": (AgentRunSensor, {"start_from_trigger": True, **EVENT}),
    "dbt_on_worker": (DbtCloudRunJobOperator, {"deferrable": False, **DBT}),
    "dbt_deferred": (DbtCloudRunJobOperator, {"deferrable": True, **DBT}),
}


@task(task_id="next")
def next_task():
    pass


for name, (operator, arguments) in WAYS.items():
    with DAG(name, start_date=START, schedule=None) as dag:
        operator(task_id="wait", **arguments) >> next_task()
    globals()[name] = dag
"""
WAYS = (
    ("ours: operator on the worker", "operator_on_worker"),
    ("ours: operator, deferred", "operator_deferred"),
    ("ours: operator, `end_from_trigger`", "operator_end_from_trigger"),
    ("ours: operator, deferred, `exclusive`", "operator_exclusive"),
    ("ours: sensor, `poke`", "sensor_poke"),
    ("ours: sensor, `reschedule`", "sensor_reschedule"),
    ("ours: sensor, deferred", "sensor_deferred"),
    ("ours: sensor, `start_from_trigger`", "sensor_start_from_trigger"),
    ("dbt Cloud: operator on the worker", "dbt_on_worker"),
    ("dbt Cloud: operator, deferred", "dbt_deferred"),
)
DBT_SERVER = """
import sys, time
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
runs, seconds = [], [0.0]

async def start(request):
    runs.append(time.time() + seconds[0])
    return JSONResponse({"data": {"id": len(runs), "href": "https://localhost/", "job_id": 1}})

async def run(request):
    over = time.time() >= runs[int(request.path_params["run"]) - 1]
    return JSONResponse({"data": {"id": 1, "status": 10 if over else 3, "job_id": 1, "project_id": 1}})

async def job(request):
    return JSONResponse({"data": {"id": 1, "project_id": 1, "environment_id": 1}})

async def last_end(request):
    return JSONResponse({"ended": runs[-1]})

async def set_seconds(request):
    seconds[0] = float(request.path_params["seconds"])
    return JSONResponse({})

app = Starlette(routes=[
    Route("/api/v2/accounts/1/jobs/1/run/", start, methods=["POST"]),
    Route("/api/v2/accounts/1/runs/{run:int}/", run),
    Route("/api/v2/accounts/1/jobs/1/", job),
    Route("/last_end", last_end),
    Route("/seconds/{seconds}", set_seconds),
])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), ssl_certfile=sys.argv[2], ssl_keyfile=sys.argv[3],
            log_level="error")
"""


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


class Slots(threading.Thread):
    """Watches what a task instance takes: the executor's process that holds its slot, and the one that runs its code.

    Airflow names the first `...LocalExecutor: <instance>` for as long as it is taken, the second `... -- <instance>`.
    """

    held: float
    used: dict[int, float]
    _holding: dict[int, float]
    _spent: dict[int, float]

    def __init__(self, airflow: RealAirflow) -> None:
        super().__init__(daemon=True)
        self.airflow, self.wanted, self.stopped = airflow, "", False
        self.held, self.used, self._holding, self._spent = 0.0, {}, {}, {}

    def watch(self, task_instance_id: str) -> None:
        self.held, self.used, self._holding, self._spent = 0.0, {}, {}, {}
        self.wanted = task_instance_id

    def stop(self) -> None:
        self.stopped = True
        self.join()

    def run(self) -> None:
        while not self.stopped:
            if self.wanted:
                self._listing(time.monotonic())
            time.sleep(0.02)

    def _listing(self, now: float) -> None:
        holding: dict[int, float] = {}
        for process in self.airflow.family("scheduler"):
            with contextlib.suppress(psutil.Error):
                title = " ".join(process.cmdline())
                if self.wanted not in title:
                    continue
                spent = sum(process.cpu_times()[:2])
                if "LocalExecutor" in title:
                    holding[process.pid] = now
                    # The executor's process lives on, so what counts is what it adds.
                    self.used[process.pid] = (
                        self.used.get(process.pid, 0.0) + spent - self._spent.get(process.pid, spent)
                    )
                    self._spent[process.pid] = spent
                    self.held += now - self._holding.get(process.pid, now)
                else:
                    self.used[process.pid] = spent
        # Between two tries it works for others.
        self._spent = {pid: spent for pid, spent in self._spent.items() if pid in holding}
        self._holding = holding


def measure(
    airflow: RealAirflow,
    simulator: SimulatorServer,
    slots: Slots,
    dag_id: str,
    seconds: float,
    dbt_url: str,
    verify: str,
) -> dict[str, float]:
    """One task, from its DAG run's trigger to its success."""
    import httpx

    simulator.control("POST", "agents", {"agent_id": "agent-timed", "run_seconds": seconds, "queue_seconds": 0.0})
    httpx.get(f"{dbt_url}/seconds/{seconds}", verify=verify)
    event = simulator.control("POST", "runs", {"agentId": "agent-timed"})["eventId"] if "sensor" in dag_id else None
    began = time.time()
    run_id = airflow.trigger(dag_id, {"event": event})

    def instances() -> dict[str, dict[str, Any]]:
        return {one["task_id"]: one for one in airflow.task_instances(dag_id, run_id)}

    slots.watch(until(instances, 30, "a task instance", pause=0.05)["wait"]["id"])
    state = airflow.wait_for_dag_run(dag_id, run_id, seconds=seconds + 120)
    if state != "success":
        sys.exit(f"{dag_id}: {state}\n{airflow.log_text(dag_id, run_id, 'wait')}")
    if dag_id.startswith("dbt"):
        run_ended = httpx.get(f"{dbt_url}/last_end", verify=verify).json()["ended"]
    else:
        ends = [run["endsAt"] for run in simulator.runs().values() if run["agentId"] == "agent-timed"]
        run_ended = seconds_of(max(ends))
    ended = instances()
    succeeded = seconds_of(ended["wait"]["end_date"])
    log = airflow.log_text(dag_id, run_id, "wait")
    return {
        "starts": log.count("::group::Pre Execute"),
        "cpu_s": sum(slots.used.values()),
        "slot_s": slots.held,
        "beyond_s": succeeded - began - seconds,
        "to_success_s": succeeded - run_ended,
        "to_next_s": seconds_of(ended["next"]["start_date"]) - succeeded,
    }


def seconds_of(moment: str) -> float:
    return dt.datetime.fromisoformat(moment).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="*", default=[10.0, 40.0], help="how long a run takes")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--ways", nargs="*", default=[], help="some of the DAGs only")
    options = parser.parse_args()
    ways = [way for way in WAYS if not options.ways or way[1] in options.ways]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agents-worker-time-")))
        (folder / "ways.py").write_text(DAGS)
        (folder / "dbt_server.py").write_text(DBT_SERVER)
        cert, key = certificate(folder)
        port = free_port()
        command = [sys.executable, str(folder / "dbt_server.py"), str(port), str(cert), str(key)]
        stack.callback(subprocess.Popen(command).kill)  # noqa: S603 - our own interpreter and script
        simulator = stack.enter_context(simulator_server(folder, "--key", "test-key"))
        env = {
            "AIRFLOW_CONN_AGENTS_DEFAULT": connection_json(simulator.url, "test-key"),
            "AIRFLOW_CONN_DBT_CLOUD_DEFAULT": json.dumps(
                {"conn_type": "dbt_cloud", "host": f"localhost:{port}", "login": "1", "password": "test-key"}
            ),
            "REQUESTS_CA_BUNDLE": str(cert),
            "SSL_CERT_FILE": str(cert),
        }
        airflow = stack.enter_context(
            RealAirflow(folder / "airflow", dags=[folder / "ways.py"], env=env, database="postgres")
        )
        slots = Slots(airflow)
        stack.callback(slots.stop)
        slots.start()
        for _, dag_id in WAYS:
            airflow.unpause(dag_id)
        # The first task of a scheduler and the first trigger of a triggerer import everything.
        url = f"https://localhost:{port}"
        for dag_id in ("operator_deferred", "dbt_deferred"):
            measure(airflow, simulator, slots, dag_id, 8.0, url, str(cert))
        rows: list[evidence.Row] = []
        print(evidence.workers({"rows": rows}))
        for name, dag_id in ways:
            for seconds in options.seconds:
                found = [
                    measure(airflow, simulator, slots, dag_id, seconds, url, str(cert)) for _ in range(options.repeat)
                ]
                mean = {name: statistics.fmean(one[name] for one in found) for name in found[0]}
                rows.append({"way": name, "run_s": seconds, **mean})
                print(evidence.workers({"rows": rows}).splitlines()[-1], flush=True)
        if ways == list(WAYS):
            evidence.save("worker_time", command="make worker-time", rows=rows)


if __name__ == "__main__":
    main()
