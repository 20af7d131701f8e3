"""Run hosted AI agents from Apache Airflow."""

from __future__ import annotations

__version__ = "0.1.0"


def get_provider_info() -> dict[str, object]:
    """Describe the provider to Airflow (placeholder until hooks exist)."""
    return {"package-name": "airflow-provider-agents", "name": "Agents", "description": "Run hosted AI agents."}
