"""Run hosted AI agents from Apache Airflow.

Every Airflow process loads this module to learn what the provider offers, so it imports nothing beyond the standard
library.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_CONN_TYPE = "agents"

#: The form of the connection, once for both ways in which Airflow asks for it: as metadata (3.2 and later) and from
#: the hook's methods (before). Text fields without defaults only: a form that fills in a value overwrites what an
#: environment left out, and a missing value already means the default.
_EXTRAS: dict[str, tuple[str, str]] = {
    "auth_header": (
        "Auth header",
        "The header that carries the key: Authorization (the default, as a bearer token) or X-Api-Key.",
    ),
    "timeout": ("Timeout", "Seconds for each phase of a request. Default 30, at most 600."),
    "verify": ("Verify TLS", "true (the default), false, or the path of a CA bundle on every Airflow machine."),
    "proxy": ("Proxy", "URL of a proxy, such as http://proxy.example:3128. Default: the environment's settings."),
    "run_url": (
        "Run URL",
        "Where a person can look at a run; {agent_id} and {event_id} are filled in. The task links to it.",
    ),
    "max_requests_per_second": (
        "Requests per second",
        "The most that each triggerer asks for all that wait on this connection. Default 25.",
    ),
    "allow_plain_http": (
        "Allow plain http",
        "true to send the key unencrypted to a host that is not this machine. Default false.",
    ),
    "settle": (
        "Settle",
        "Seconds within which the record of a started run appears on this platform. Default 30.",
    ),
    "appear_within": (
        "Appear within",
        "Seconds after which a started run without a record counts as lost; at least Settle. Default 300.",
    ),
    "exclusive": (
        "Exclusive",
        "true if nothing else starts an agent while a task waits for its run: short runs end sooner. Default false.",
    ),
    "budget": (
        "Budget",
        'What runs may use before no task starts another, as JSON: {"runs": 20, "per": "day"}. Default: no limit.',
    ),
}
#: Not the port, though few need it: the Test button of Airflow 3.3 works for connections with one only.
_HIDDEN_FIELDS = ["schema", "login"]
_RELABELING = {"password": "API key", "host": "Base URL"}
_PLACEHOLDERS = {
    "host": "https://api.uragents.ai",
    "port": "443",
    "password": "the key, without the word Bearer",
}

#: The section of airflow.cfg, as `airflow config list` shows it.
_CONFIG: dict[str, Any] = {
    "agents": {
        "description": "Settings of airflow-provider-agents.",
        "options": {
            "share_starts": {
                "description": (
                    "Whether tasks that start one agent at the same time are matched together across triggerers and "
                    "workers. Each task with a record then keeps an Airflow Variable agent_run/... until some minutes "
                    "after its run. For Airflow 3.3: from 3.4 on, they are kept anyway, and this has no effect."
                ),
                "version_added": "0.1.0",
                "type": "boolean",
                "example": None,
                "default": "False",
            },
            "ui": {
                "description": "Whether Airflow's pages have Browse > Agents. Needs Airflow 3.1.6 or newer.",
                "version_added": "0.1.0",
                "type": "boolean",
                "example": None,
                "default": "False",
            },
            "ui_connections": {
                "description": (
                    "Ids of connections for Browse > Agents that are kept in a secrets backend, separated by commas. "
                    "Airflow cannot list those; the connections of its database and environment are always there."
                ),
                "version_added": "0.1.0",
                "type": "string",
                "example": "agents_reports,agents_sales",
                "default": "",
            },
        },
    }
}


def get_provider_info() -> dict[str, Any]:
    """Describe the provider to Airflow."""
    return {
        "package-name": "airflow-provider-agents",
        "name": "Agents",
        "description": "Run hosted AI agents: start a run once, wait without a worker, get the final event.",
        "integrations": [
            {"integration-name": "Agents", "external-doc-url": _PLACEHOLDERS["host"], "tags": ["service", "ai"]},
        ],
        "connection-types": [
            {
                "connection-type": _CONN_TYPE,
                "hook-class-name": "airflow_provider_agents.hooks.AgentsHook",
                "hook-name": "Agents",
                "ui-field-behaviour": {
                    "hidden-fields": list(_HIDDEN_FIELDS),
                    "relabeling": dict(_RELABELING),
                    "placeholders": dict(_PLACEHOLDERS),
                },
                "conn-fields": {
                    name: {"label": label, "description": text, "schema": {"type": ["string", "null"]}}
                    for name, (label, text) in _EXTRAS.items()
                },
            }
        ],
        "operators": [{"integration-name": "Agents", "python-modules": ["airflow_provider_agents.operators"]}],
        "sensors": [{"integration-name": "Agents", "python-modules": ["airflow_provider_agents.sensors"]}],
        "hooks": [{"integration-name": "Agents", "python-modules": ["airflow_provider_agents.hooks"]}],
        "triggers": [
            {
                "integration-name": "Agents",
                "python-modules": ["airflow_provider_agents.triggers", "airflow_provider_agents.watchers"],
            }
        ],
        "extra-links": ["airflow_provider_agents.links.AgentRunLink"],
        "config": _CONFIG,
        # No "plugins": an entry point loads the plugin on every Airflow. With both, Airflow 3.3 and 3.4 report an
        # import error where `[core] lazy_discover_providers` is off, because the plugin is already registered.
        #
        # Read by Airflow 3.2 and later.
        "cli": ["airflow_provider_agents.cli.get_agents_cli_commands"],
    }
