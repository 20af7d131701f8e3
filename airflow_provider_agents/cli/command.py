"""What all commands share: a connection, and an end with one line and an exit code."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import TYPE_CHECKING

from airflow.utils.cli import suppress_logs_and_warning

from airflow_provider_agents.api.errors import AgentsError
from airflow_provider_agents.cli.arguments import DEFAULT_CONN_ID
from airflow_provider_agents.cli.exit_codes import ExitCode
from airflow_provider_agents.cli.output import say
from airflow_provider_agents.hooks import AgentsHook

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from datetime import datetime

    from airflow_provider_agents.api.client import Client


def command_of(work: Callable[[Namespace], ExitCode]) -> Callable[[Namespace], None]:
    """A command that prints in one line what went wrong, and ends with its code."""

    # What Airflow and httpx log would come in between what a script reads.
    @suppress_logs_and_warning
    def command(args: Namespace) -> None:
        # Without this, which Airflow's own commands set too, it does not look for connections in its database.
        os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
        try:
            code = work(args)
        except AgentsError as error:
            say(str(error))
            code = ExitCode.NOT_DONE
        except KeyboardInterrupt:
            say("Interrupted.")
            code = ExitCode.INTERRUPTED
        if code:
            raise SystemExit(int(code))

    # The decorator reads `verbose`. No option sets it, because nothing that is logged here would help anybody.
    return lambda args: command(argparse.Namespace(**vars(args), verbose=False))


def client_of(args: Namespace) -> Client:
    """A client over the connection of `--conn-id`."""
    return AgentsHook(args.conn_id).get_conn()


def how_to_look(args: Namespace, agent_id: str, since: datetime) -> str:
    """The command that lists the runs of an agent since a moment."""
    words = ["runs", agent_id, "--since", f"{since:%Y-%m-%dT%H:%M:%SZ}"]
    if args.conn_id != DEFAULT_CONN_ID:
        words += ["--conn-id", args.conn_id]
    return f"{getattr(args, 'program', 'airflow agents')} {shlex.join(words)}"
