"""The agents platform on your machine: for tests without a network, and for demos.

It stands alone: it shares no code with the client that it is tried with, so that a misread field cannot cancel out.
"""

from __future__ import annotations

from airflow_provider_agents.simulator.app import asgi_app, mock_transport, running_server, serve
from airflow_provider_agents.simulator.faults import Fault, IncomingRequest, Interceptor, Reply
from airflow_provider_agents.simulator.state import Execution, ManualClock, Run, Simulator, World

__all__ = [
    "Execution",
    "Fault",
    "IncomingRequest",
    "Interceptor",
    "ManualClock",
    "Reply",
    "Run",
    "Simulator",
    "World",
    "asgi_app",
    "mock_transport",
    "running_server",
    "serve",
]
