"""`python -m airflow_provider_agents.simulator`: the platform as a server on this machine."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import json
import sys
from datetime import UTC, datetime
from typing import Any

from airflow_provider_agents.simulator.app import listen, serve, url_of
from airflow_provider_agents.simulator.state import Simulator, World

_AGENTS = ["agent-123:8", "agent-prices:5", "agent-news:12", "agent-failing:5:FAILED"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m airflow_provider_agents.simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="an address of this machine (default %(default)s)")
    parser.add_argument("--port", type=int, default=8099, help="0 takes a free one (default %(default)s)")
    parser.add_argument("--key", action="append", help="an API key that is accepted; repeatable (default demo-key)")
    parser.add_argument(
        "--agent",
        action="append",
        metavar="ID[:SECONDS[:STATUS]]",
        help=f"an agent, how long its runs take and how they end; repeatable (default {' '.join(_AGENTS)})",
    )
    parser.add_argument("--world", type=json.loads, default={}, help="JSON of the World's knobs that are not callables")
    return parser.parse_args()


def _add_agent(simulator: Simulator, text: str) -> None:
    agent_id, _, rest = text.partition(":")
    seconds, _, status = rest.partition(":")
    more: dict[str, Any] = {}
    if seconds:
        more["run_seconds"] = float(seconds)
    if status:
        more["end_status"] = status
    simulator.add_agent(agent_id, **more)
    simulator.add_history(agent_id, 3)


def main() -> int:
    """Serve until interrupted; the exit status."""
    arguments = _arguments()
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            print("The simulator's server needs: pip install 'airflow-provider-agents[simulator]'", file=sys.stderr)
            return 2
    if arguments.host != "localhost" and not ipaddress.ip_address(arguments.host).is_loopback:
        print("The simulator has control routes without a key, so it only listens on this machine.", file=sys.stderr)
        return 2
    try:
        simulator = Simulator(
            lambda: datetime.now(UTC),
            world=World(**arguments.world),
            api_keys=tuple(arguments.key or ["demo-key"]),
        )
        for text in arguments.agent or _AGENTS:
            _add_agent(simulator, text)
    except (TypeError, ValueError) as error:
        print(f"That makes no simulator: {error}", file=sys.stderr)
        return 2
    try:
        listening = listen(arguments.host, arguments.port)
    except OSError as error:
        print(f"Cannot listen on {arguments.host}:{arguments.port}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"The agents platform is simulated at {url_of(listening)}", flush=True)
    serve(simulator, listening)
    return 0


if __name__ == "__main__":
    sys.exit(main())
