"""The Grafana dashboard and the alerting rules, against the metrics that a poller emits."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest

from airflow_provider_agents.polling.metrics import Metrics
from airflow_provider_agents.runs.outcome import Outcome

DOCS = Path(__file__).parents[1] / "docs"
DASHBOARD = json.loads((DOCS / "grafana/agents.json").read_text())
QUERIES = {
    "dashboard": [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    + [one["query"]["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"],
    "alerts": [(DOCS / "grafana/alerts.yml").read_text()],
}
#: What statsd_exporter adds to the name of a timer, and to its labels.
TIMER_ENDINGS, TIMER_LABELS = ("", "_sum", "_count"), {"quantile"}


class Emitted:
    """What a poller sends to Airflow's statistics: the labels of each name, as statsd_exporter spells it."""

    def __init__(self):
        self.names = {}
        metrics = Metrics(self, "agents_default")
        for outcome in Outcome:
            metrics.ended(outcome, timedelta(seconds=1))
        metrics.sent()
        metrics.failed()
        metrics.polled(1.0, 1)
        metrics.closed()
        metrics.appeared(1.0)

    def incr(self, stat, count=1, *, tags=None):
        self.add(stat, tags)

    def gauge(self, stat, value, *, tags=None):
        self.add(stat, tags)

    def timing(self, stat, dt, *, tags=None):
        for ending in TIMER_ENDINGS:
            self.add(stat + ending, {*tags, *(TIMER_LABELS if not ending else ())})

    def add(self, stat, labels):
        self.names["airflow_" + stat.replace(".", "_")] = set(labels)


EMITTED = Emitted().names


@pytest.mark.parametrize("queries", QUERIES.values(), ids=QUERIES)
def test_every_metric_that_is_asked_for_is_emitted(queries):
    asked = {name for query in queries for name in re.findall(r"airflow_agents_\w+", query)}
    assert asked
    assert asked <= EMITTED.keys()


def test_every_metric_that_is_emitted_is_on_the_dashboard():
    shown = " ".join(QUERIES["dashboard"])
    names = [name for name in EMITTED if not name.endswith(("_sum", "_count"))]
    missing = [name for name in names if not re.search(rf"{name}(_sum|_count)?\b", shown)]
    assert missing == []


@pytest.mark.parametrize("queries", QUERIES.values(), ids=QUERIES)
def test_every_label_that_is_asked_for_is_emitted(queries):
    for query in queries:
        for name, selector in re.findall(r"(airflow_agents_\w+)\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)=~?", selector)) <= EMITTED[name]
        for labels in re.findall(r"by \(([^)]*)\)", query):
            assert set(labels.split(", ")) <= {"conn_id", "outcome"}


def test_every_outcome_that_an_alert_names_exists():
    named = re.findall(r'outcome=~?"([^"]+)"', QUERIES["alerts"][0])
    assert {one for text in named for one in text.split("|")} <= {str(outcome) for outcome in Outcome}


def test_the_monitoring_page_lists_the_metrics_that_are_emitted():
    listed = re.findall(r"^\| `(agents\.[\w.]+)` \|", (DOCS / "monitoring.md").read_text(), re.MULTILINE)
    spelled = {"airflow_" + name.replace(".", "_") for name in listed}
    assert spelled == {name for name in EMITTED if not name.endswith(("_sum", "_count"))}


def test_grafana_can_import_the_dashboard():
    assert isinstance(DASHBOARD["schemaVersion"], int)
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len({*places}) == len(places)
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["refId"] and target["datasource"] == panel["datasource"] for target in panel["targets"])
