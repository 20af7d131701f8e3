"""`python -m airflow_provider_agents.simulator`: the platform as a server on this machine."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.simulator.app import serve
from airflow_provider_agents.simulator.config import SimulatorConfig
from airflow_provider_agents.simulator.platform import Simulator

if TYPE_CHECKING:
    from collections.abc import Sequence

_HISTORY = 3
_KEY = "demo-key"
#: The agents of the example DAGs, each with its own so that all can run at the same time, and two whose runs fail.
_AGENTS = [
    "agent-123:8",
    "agent-archive:6",
    "agent-briefing:6",
    "agent-cleanup:6",
    "agent-draft:6",
    "agent-failing:5:FAILED",
    "agent-fleet-east:6",
    "agent-fleet-west:7",
    "agent-fragile:5:FAILED",
    "agent-hourly:5:COMPLETED:60",
    "agent-invoices:6",
    "agent-market:6",
    "agent-news:12",
    "agent-nightly:5:COMPLETED:60",
    "agent-orders:10",
    "agent-prices:5",
    "agent-research:6",
    "agent-shared:6",
    "agent-shop:6",
    "agent-weather:7",
]


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:  # noqa: PLR2004 - TCP
        raise argparse.ArgumentTypeError("must be from 0 to 65535")
    return port


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m airflow_provider_agents.simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="an address of this machine (default %(default)s)")
    parser.add_argument(
        "--allow-remote",
        action="store_true",
        help="take a --host that others can reach; they can then use the control routes, which need no key",
    )
    parser.add_argument("--port", type=_port, default=8099, help="0 takes a free one (default %(default)s)")
    parser.add_argument("--key", action="append", help=f"an API key that is accepted; repeatable (default {_KEY})")
    parser.add_argument(
        "--agent",
        action="append",
        metavar="ID[:SECONDS[:STATUS[:EVERY]]]",
        help="an agent, how long its runs take, how they end, and every how many seconds the platform starts one by "
        f"itself; repeatable (default {' '.join(_AGENTS)})",
    )
    parser.add_argument("--record-lag", type=float, metavar="S", help="seconds until an event can be seen")
    parser.add_argument("--queue-seconds", type=float, metavar="S", help="seconds that a run is PENDING")
    parser.add_argument(
        "--config",
        type=json.loads,
        default={},
        metavar="JSON",
        help="the options of SimulatorConfig that JSON can express; the two options above take precedence",
    )
    return parser.parse_args(given)


def _config(arguments: argparse.Namespace) -> SimulatorConfig:
    options = dict(arguments.config)
    for name in ("record_lag", "queue_seconds"):
        if getattr(arguments, name) is not None:
            options[name] = getattr(arguments, name)
    return SimulatorConfig(**options)


def _add_agent(simulator: Simulator, text: str) -> None:
    agent_id, _, rest = text.partition(":")
    seconds, _, rest = rest.partition(":")
    status, _, every = rest.partition(":")
    more: dict[str, Any] = {}
    if seconds:
        more["run_seconds"] = float(seconds)
    if status:
        more["end_status"] = status
    if every:
        more["schedule_every"] = float(every)
    simulator.add_agent(agent_id, **more)
    simulator.add_history(agent_id, _HISTORY)


def _notes(arguments: argparse.Namespace, agents: Sequence[str]) -> list[str]:
    """What a user needs to know of the platform: the key and the agents."""
    # A key that the user has chosen may be used elsewhere, too.
    key = "It accepts the keys of --key." if arguments.key else f"It accepts the key {_KEY}."
    return [key, f"Its agents are {', '.join(text.partition(':')[0] for text in agents)}."]


def main(given: Sequence[str] | None = None) -> int:
    """Serve until interrupted.

    Args:
        given: the command's arguments; those of the process if None.

    Returns:
        The exit status: 0; 1 if the server cannot listen on the address; 2 for a wrong argument or a missing package.
    """
    arguments = _arguments(given)
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            print("The simulator's server needs: pip install 'airflow-provider-agents[simulator]'", file=sys.stderr)
            return 2
    if not (arguments.allow_remote or _is_loopback(arguments.host)):
        print(
            "The simulator has control routes without a key, so it only listens on this machine (or --allow-remote).",
            file=sys.stderr,
        )
        return 2
    try:
        simulator = Simulator(
            lambda: datetime.now(UTC),
            config=_config(arguments),
            api_keys=tuple(arguments.key or [_KEY]),
        )
        agents = arguments.agent or _AGENTS
        for text in agents:
            _add_agent(simulator, text)
    except (TypeError, ValueError) as error:
        print(f"That makes no simulator: {error}", file=sys.stderr)
        return 2
    try:
        serve(simulator, arguments.host, arguments.port, notes=_notes(arguments, agents))
    except OSError as error:
        print(f"Cannot listen on {arguments.host}:{arguments.port}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
