"""`make up`: Airflow's UI on this machine, with the simulator, the connection and the example DAGs."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import httpx
from real_airflow import Process, RealAirflowError, connection_json, free_port, simulator_server, tail, until

ROOT = Path(__file__).resolve().parents[1]
KEY = "demo-key"


def main() -> int:
    """Serve until interrupted; the exit status."""
    port = int(os.environ.get("PORT", "8080"))
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            print(f"Port {port} is taken. Choose another one: make up PORT=8081", file=sys.stderr)
            return 1
    home = ROOT / ".airflow-up"
    home.mkdir(exist_ok=True)
    url = f"http://localhost:{port}"
    try:
        with simulator_server(home, "--key", KEY) as simulator:
            env = {
                **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
                "AIRFLOW_HOME": str(home),
                "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                "AIRFLOW__CORE__PARALLELISM": "4",
                "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
                # This machine only, so no password stands between a newcomer and the UI.
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
                "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
                "AIRFLOW__API__HOST": "127.0.0.1",
                "AIRFLOW__API__PORT": str(port),
                "AIRFLOW__API__BASE_URL": url,
                "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
                "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
                "AIRFLOW_CONN_AGENTS_DEFAULT": connection_json(simulator.url, KEY),
            }
            print("Starting Airflow (about half a minute) ...", flush=True)
            airflow = Process(
                [str(Path(sys.executable).parent / "airflow"), "standalone"], env, home / "standalone.log"
            )
            try:

                def answers() -> bool:
                    if not airflow.is_alive():
                        raise RealAirflowError(f"Airflow ended by itself:\n{tail(airflow.log)}")
                    try:
                        return httpx.get(f"{url}/api/v2/monitor/health", timeout=5).is_success
                    except httpx.HTTPError:
                        return False

                until(answers, 180, "the start of Airflow")
                print(
                    f"\n  Airflow:    {url}   (no login needed; it listens on this machine only)\n"
                    f"  Simulator:  {simulator.url}   (API key {KEY})\n"
                    "  Connection: agents_default, set already\n"
                    f"  Log:        {airflow.log.relative_to(ROOT)}\n\n"
                    "Unpause and trigger agent_deferred to see a run. Ctrl-C stops everything.",
                    flush=True,
                )
                while airflow.is_alive():
                    signal.sigtimedwait([], 1)
                print(f"Airflow ended by itself:\n{tail(airflow.log)}", file=sys.stderr)
                return 1
            finally:
                airflow.stop()
    except RealAirflowError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    sys.exit(main())
