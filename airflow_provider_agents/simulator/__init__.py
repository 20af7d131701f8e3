"""The agents platform on your machine: for tests without a network, and for demos.

It shares no code with the client: a field that both misread would otherwise go unnoticed.
"""

from __future__ import annotations

from airflow_provider_agents.simulator.app import asgi_app, mock_transport, running_server, serve
from airflow_provider_agents.simulator.clock import ManualClock
from airflow_provider_agents.simulator.config import SimulatorConfig
from airflow_provider_agents.simulator.faults import Fault, IncomingRequest, Interceptor, Reply
from airflow_provider_agents.simulator.platform import Simulator
from airflow_provider_agents.simulator.runs import Execution, Run

__all__ = [
    "Execution",
    "Fault",
    "IncomingRequest",
    "Interceptor",
    "ManualClock",
    "Reply",
    "Run",
    "Simulator",
    "SimulatorConfig",
    "asgi_app",
    "mock_transport",
    "running_server",
    "serve",
]
