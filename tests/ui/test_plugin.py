"""The plugin: off unless asked for, cheap in every process, and nothing before its first request."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from airflow_provider_agents.plugin import AgentsPlugin, is_supported

on_supported = pytest.mark.skipif(
    not is_supported(version("apache-airflow-core")), reason="the page needs Airflow 3.1.6"
)


def test_the_page_is_off_unless_the_configuration_asks_for_it(monkeypatch):
    monkeypatch.delenv("AIRFLOW__AGENTS__UI", raising=False)
    plugin = AgentsPlugin()
    assert (plugin.fastapi_apps, plugin.external_views) == ([], [])


@on_supported
def test_the_configuration_adds_the_page_to_the_menu(monkeypatch):
    monkeypatch.setenv("AIRFLOW__AGENTS__UI", "True")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/team/")
    plugin = AgentsPlugin()
    assert [app["url_prefix"] for app in plugin.fastapi_apps] == ["/agents"]
    (view,) = plugin.external_views
    assert (view["category"], view["url_route"], view["href"]) == ("browse", "agents", "/team/agents/page")


def test_an_airflow_that_is_too_old_has_no_page():
    assert not any(map(is_supported, ("3.0.6", "3.1.0", "3.1.5")))
    assert all(map(is_supported, ("3.1.6", "3.1.8", "3.2.0", "3.4.0b2", "4.0.0rc1")))


def test_the_module_brings_nothing_of_the_page_into_a_process():
    script = (
        "import airflow.plugins_manager, sys; before = set(sys.modules); import airflow_provider_agents.plugin\n"
        "new = set(sys.modules) - before\n"
        "print(*(name for name in new if name.partition('.')[0] not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)  # noqa: S603 - our own
    brought = set(done.stdout.splitlines()[-1].split()) - {"airflow_provider_agents"}
    assert brought == {"airflow_provider_agents.plugin"}


@on_supported
def test_a_plugin_that_is_on_loads_nothing_of_the_page_before_a_request():
    script = (
        "import sys, airflow_provider_agents.plugin as plugin\n"
        "apps = plugin.AgentsPlugin().fastapi_apps\n"
        "print(len(apps), 'airflow_provider_agents.ui' in sys.modules, 'fastapi' in sys.modules)"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    environment = {**os.environ, "AIRFLOW__AGENTS__UI": "True"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)  # noqa: S603 - our own
    assert done.stdout.splitlines()[-1] == "1 False False"
