"""`make up`: Airflow's UI on this machine, with the simulator, the connection, the pool and the example DAGs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from command import ROOT, run_command
from examples import POOLS
from real_airflow import (
    QUICK_WORKERS,
    STANDALONE,
    RealAirflow,
    SimulatorServer,
    connection_to,
    simulator_server,
    tail,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

KEY = "demo-key"


def run_url_at(simulator: SimulatorServer) -> str:
    """The connection's `run_url`: what the simulator knows of a run."""
    return f"{simulator.url}/_simulator/runs?agentId={{agent_id}}&eventId={{event_id}}"


@contextlib.contextmanager
def airflow_up(
    home: Path, dags: Path, *, port: int | None = None, env: Mapping[str, str] | None = None
) -> Iterator[tuple[RealAirflow, SimulatorServer]]:
    """All that `make up` starts, for the length of a block.

    Args:
        home: for everything that is written.
        dags: the DAGs folder itself, so that a change to a file there is seen.
        port: of Airflow's pages.
        env: further environment of Airflow, such as connections.
    """
    home.mkdir(exist_ok=True)
    with simulator_server(home, "--key", KEY) as simulator:
        settings = {
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__AGENTS__UI": "True",
            **QUICK_WORKERS,
            **(env or {}),
        }
        with RealAirflow(
            home,
            dags=[],
            env=settings,
            components=[STANDALONE],
            port=port,
            # In the database, so that Admin > Connections lists it.
            connections={"agents_default": connection_to(simulator.url, KEY, run_url=run_url_at(simulator))},
            pools=POOLS,
        ) as airflow:
            yield airflow, simulator


def main() -> int:
    """Serve until interrupted; the exit status."""
    port = int(os.environ.get("PORT", "8080"))
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            print(f"Port {port} is taken. Choose another one: make up PORT=8081", file=sys.stderr)
            return 1
    try:
        print("Starting Airflow (about a minute) ...", flush=True)
        with airflow_up(ROOT / ".airflow-up", ROOT / "example_dags", port=port) as (airflow, simulator):
            log = airflow.log_file(STANDALONE)
            print(
                f"\n  Airflow:    {airflow.url}   (no login needed; it listens on this machine only)\n"
                f"  Simulator:  {simulator.url}   (API key {KEY})\n"
                "  Connection: agents_default, under Admin > Connections\n"
                f"  Pool:       {', '.join(POOLS)}, under Admin > Pools\n"
                f"  Log:        {log.relative_to(ROOT)}\n\n"
                "Unpause and trigger agent_deferred to see a run, or all at once: each example has its own agents.\n"
                "Ctrl-C stops everything.",
                flush=True,
            )
            while airflow.is_alive(STANDALONE):
                signal.sigtimedwait([], 1)
            print(f"Airflow ended by itself:\n{tail(log)}", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0


if __name__ == "__main__":
    run_command(main)
