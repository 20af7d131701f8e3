"""What the asset events of a successful task say of its run, as Airflow's worker would send them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.metadata import version

import pytest
from airflow.sdk import Asset, AssetAlias
from conftest import connection

from airflow_provider_agents.api.models import read_event
from airflow_provider_agents.asset_events import EXTRA_KEY, describe_run
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.runs.outcome import Outcome, Verdict
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.sensors import AgentRunSensor

RUN_URL = "https://app.example/{agent_id}/runs/{event_id}"
REPORT, PRICES = Asset("report"), Asset("prices", uri="s3://bucket/prices")
UNKNOWN = {
    "event_id": None,
    "candidate_event_ids": None,
    "run_url": None,
    "finalModel": None,
    "browserStepCount": None,
    "browserSessionSeconds": None,
    "duration_seconds": None,
}


class Outlets:
    """The outlet events of a task, as the process that ended the task leaves them; a DAG author can write to them."""

    def __init__(self, write=lambda events: None):
        self.events, self.write = None, write

    def __call__(self, context):
        self.events = context["outlet_events"]
        self.write(self.events)

    def extra_of(self, asset=REPORT):
        return json.loads(json.dumps(self.events[asset].extra, allow_nan=False))


@pytest.fixture(params=["on the worker", "deferred"])
def waiting(request):
    return {"deferrable": request.param == "deferred"}


def operator(outlets, assets=(REPORT,), **arguments):
    return ExecuteAgentOperator(
        **{"task_id": "run", "agent_id": "prices", "outlets": list(assets), "pre_execute": outlets, **arguments}
    )


@pytest.fixture
def with_links(agents_simulator, monkeypatch):
    monkeypatch.setenv(
        "AIRFLOW_CONN_AGENTS_DEFAULT", connection(agents_simulator.url, agents_simulator.api_key, run_url=RUN_URL)
    )
    agents_simulator.add_agent("prices")
    return agents_simulator


def test_the_event_names_the_run_with_its_ids_its_usage_and_its_link(with_links, waiting):
    outlets = Outlets()
    event = with_links.run(operator(outlets, **waiting))
    (mine,) = with_links.executions("prices")
    assert outlets.extra_of() == {
        EXTRA_KEY: {
            "agent_id": "prices",
            "request_id": mine.request_id,
            "event_id": mine.event_id,
            "candidate_event_ids": None,
            "run_url": RUN_URL.format(agent_id="prices", event_id=mine.event_id),
            "finalModel": event["finalModel"],
            "browserStepCount": event["browserStepCount"],
            "browserSessionSeconds": event["browserSessionSeconds"],
            "duration_seconds": 60.0,
        }
    }


def test_each_of_several_outlets_names_the_run(with_links, waiting):
    outlets = Outlets()
    with_links.run(operator(outlets, (REPORT, PRICES), **waiting))
    assert outlets.extra_of(REPORT) == outlets.extra_of(PRICES) != {}


def test_what_the_author_has_put_into_extra_stays(with_links, waiting):
    outlets = Outlets(lambda events: events[REPORT].extra.update(rows=7))
    with_links.run(operator(outlets, **waiting))
    assert outlets.extra_of().keys() == {"rows", EXTRA_KEY}
    assert outlets.extra_of()["rows"] == 7


def test_what_the_author_has_put_under_our_own_key_stays(with_links, waiting):
    outlets = Outlets(lambda events: events[REPORT].extra.update({EXTRA_KEY: "mine"}))
    with_links.run(operator(outlets, **waiting))
    assert outlets.extra_of() == {EXTRA_KEY: "mine"}


def test_an_extra_of_post_execute_stays_too(with_links, waiting):
    outlets = Outlets()
    after = lambda context, result: context["outlet_events"][REPORT].extra.update(id=result["id"])  # noqa: E731
    event = with_links.run(operator(outlets, post_execute=after, **waiting))
    assert outlets.extra_of()["id"] == event["id"] == outlets.extra_of()[EXTRA_KEY]["event_id"]


def test_the_events_of_an_asset_alias_name_the_run(with_links, waiting):
    alias = AssetAlias("reports")
    outlets = Outlets(lambda events: [events[alias].add(one, extra={"name": one.name}) for one in (REPORT, PRICES)])
    event = with_links.run(operator(outlets, (alias,), **waiting))
    extras = [one.extra for one in outlets.events[alias].asset_alias_events]
    assert [extra["name"] for extra in extras] == ["report", "prices"]
    assert [extra[EXTRA_KEY]["event_id"] for extra in extras] == [event["id"]] * 2


def test_an_alias_without_an_event_of_its_author_gets_none(with_links, waiting):
    alias, outlets = AssetAlias("reports"), Outlets()
    with_links.run(operator(outlets, (alias,), **waiting))
    assert (outlets.events[alias].asset_alias_events, outlets.events[alias].extra) == ([], {})


def test_an_asset_that_is_no_outlet_gets_no_event(with_links):
    outlets = Outlets()
    with_links.run(operator(outlets))
    assert list(outlets.events) == [REPORT]


def test_an_outlet_that_cannot_be_used_does_not_fail_a_paid_task(with_links, waiting, logged):
    def spoil(events):
        events[PRICES].extra = None

    outlets = Outlets(spoil)
    event = with_links.run(operator(outlets, (PRICES, REPORT), **waiting))
    assert outlets.extra_of()[EXTRA_KEY]["event_id"] == event["id"]
    assert "does not name the run" in logged()


def test_a_task_that_does_not_wait_names_its_request(with_links):
    outlets = Outlets()
    submission = with_links.run(operator(outlets, wait_for_completion=False))
    run = outlets.extra_of()[EXTRA_KEY]
    assert run == {**UNKNOWN, "agent_id": "prices", "request_id": submission["request_id"]}


def test_a_failed_run_leaves_no_extra(with_links, waiting):
    with_links.add_agent("prices", ends="FAILED")
    outlets = Outlets()
    with pytest.raises(Exception, match="FAILED"):
        with_links.run(operator(outlets, **waiting))
    assert list(outlets.events) == []


@pytest.mark.parametrize("mode", [None, "poke", "reschedule"])
def test_a_sensor_names_the_run_that_it_has_waited_for(with_links, mode):
    event_id, outlets = with_links.start_run("prices"), Outlets()
    mode = {} if mode is None else {"mode": mode}
    sensor = AgentRunSensor(
        task_id="wait", agent_id="prices", event_id=event_id, outlets=[REPORT], pre_execute=outlets, **mode
    )
    with_links.run(sensor)
    run = outlets.extra_of()[EXTRA_KEY]
    assert (run["event_id"], run["request_id"], run["duration_seconds"]) == (event_id, None, 60.0)
    assert run["run_url"] == RUN_URL.format(agent_id="prices", event_id=event_id)


def test_a_retry_that_repeats_an_earlier_end_names_that_run(with_links, waiting):
    if tuple(map(int, version("apache-airflow-core").split(".")[:2])) < (3, 3):
        pytest.skip("no record is kept before Airflow 3.3")
    failures = iter([RuntimeError("the disk is full")])

    def fail_once(context, result):
        for failure in failures:
            raise failure

    outlets = Outlets()
    task = operator(outlets, post_execute=fail_once, **waiting)
    with pytest.raises(RuntimeError):
        with_links.run(task)
    with_links.run(task)
    (mine,) = with_links.executions("prices")
    assert outlets.extra_of()[EXTRA_KEY]["event_id"] == mine.event_id


def test_tasks_that_end_in_their_trigger_still_refuse_outlets():
    with pytest.raises(Exception, match="asset events of its outlets|needs Airflow 3.3"):
        operator(Outlets(), pre_execute=None, end_from_trigger=True)


# --- what is not known for certain, and what is too large ---

SUBMISSION = Submission(agent_id="prices", request_id="req-1", taken_at=datetime(2026, 1, 1, tzinfo=UTC))


def event_of(event_id, **fields):
    return read_event({"id": event_id, "agentId": "prices", "status": "COMPLETED", "finalModel": "m", **fields})


def test_of_several_candidates_none_is_said_to_be_the_run():
    verdict = Verdict(Outcome.COMPLETED, (event_of("event-1"), event_of("event-2")))
    run = describe_run(SUBMISSION, verdict)
    wanted = {"agent_id": "prices", "request_id": "req-1", "candidate_event_ids": ["event-1", "event-2"]}
    assert run == {**UNKNOWN, **wanted}


def test_an_event_that_was_shared_out_is_the_tasks_own():
    run = describe_run(SUBMISSION, Verdict(Outcome.COMPLETED, (event_of("event-1"),), is_shared=True))
    assert (run["event_id"], run["candidate_event_ids"], run["finalModel"]) == ("event-1", None, "m")


def test_the_run_of_a_lost_answer_is_only_a_candidate():
    run = describe_run(SUBMISSION.changed(in_doubt=True), Verdict(Outcome.COMPLETED, (event_of("event-1"),)))
    assert (run["event_id"], run["candidate_event_ids"], run["finalModel"]) == (None, ["event-1"], None)


def test_a_hostile_platform_cannot_make_the_event_large():
    long = "x\x00\ud800" * 100_000
    submission = SUBMISSION.changed(request_id=long)
    own = Verdict(Outcome.COMPLETED, (event_of(long, finalModel=long),))
    many = Verdict(Outcome.COMPLETED, tuple(event_of(f"{number}{long}") for number in range(50)))
    for verdict in (own, many):
        text = json.dumps(describe_run(submission, verdict, link="https://" + "x" * 1_000_000), allow_nan=False)
        assert len(text.encode()) < 32 * 1024
        assert "\\ud800" not in text
        assert "\\u0000" not in text
