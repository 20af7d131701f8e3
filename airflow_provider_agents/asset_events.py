"""Which run an asset event came from: what a successful task writes into the `extra` of its outlets' events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import AssetAlias

from airflow_provider_agents.api.errors import one_line
from airflow_provider_agents.links import AgentRunLink
from airflow_provider_agents.runs.outcome import candidate_event_ids, own_event
from airflow_provider_agents.runs.status import usage_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.providers.common.compat.sdk import BaseOperator, Context

    from airflow_provider_agents.runs.outcome import Verdict
    from airflow_provider_agents.runs.submission import Submission

#: The key in an event's `extra`. Public, as the names below are. Everything else in `extra` is the DAG author's.
EXTRA_KEY = "agent_run"
#: What is kept of one text, in characters: an id has about 40. An asset event is no place for a document.
_LONGEST_ID = 1024
#: A link that is cut leads elsewhere, so a longer one is left out. Browsers and servers accept about this length.
_LONGEST_LINK = 2048
#: An event names at most this many candidates, as an event of OpenLineage does.
_MOST_CANDIDATES = 20
#: The fields of `usage` that say something of the run. A try is the task's.
_USAGE = ("finalModel", "browserStepCount", "browserSessionSeconds", "duration_seconds")


def describe_run(submission: Submission, verdict: Verdict | None, link: str = "") -> dict[str, Any]:
    """The run in JSON types, at most some 30 KB. Every name is always there; None is what is not known.

    The names and values are those of the task's XComs.

    Args:
        submission: the record of the run.
        verdict: how the wait for the run ended; None if the task did not wait.
        link: to the run, or "".
    """
    own = own_event(verdict, submission) if verdict is not None else None
    event_id = own.id if own is not None else submission.event_id if verdict is None else None
    candidates = candidate_event_ids(verdict, submission) if verdict is not None else None
    usage = usage_of(own, try_number=0) if own is not None else {}
    return {
        "agent_id": one_line(submission.agent_id, _LONGEST_ID),
        "request_id": _text(submission.request_id),
        "event_id": _text(event_id),
        "candidate_event_ids": [_text(one) for one in candidates[:_MOST_CANDIDATES]] if candidates else None,
        "run_url": link if 0 < len(link) <= _LONGEST_LINK else None,
        **{name: _text(value) if isinstance(value := usage.get(name), str) else value for name in _USAGE},
    }


def add_run(task: BaseOperator, context: Context, submission: Submission | None, verdict: Verdict | None) -> None:
    """Name the run in the asset events of a task that succeeds. Failures are only logged: the run is already paid for.

    What the DAG author has put into `extra` stays as it is, also under our key. An asset alias has the events that the
    author gives it, so there may be none.

    Args:
        task: as it has ended.
        context: Airflow's, of the process that ends the task.
        submission: the record of the run; None if the task knows no run.
        verdict: how the wait for the run ended; None if the task did not wait.
    """
    events: Any = context.get("outlet_events")
    if not task.outlets or events is None or submission is None:
        return
    ti: Any = context["ti"]
    link = AgentRunLink().get_link(task, ti_key=ti)
    run = describe_run(submission, verdict, link)
    for outlet in task.outlets:
        try:
            for extra in _extras_of(outlet, events):
                extra.setdefault(EXTRA_KEY, run)
        except Exception:
            task.log.exception(
                "The asset event of %s does not name the run. The task continues.", one_line(str(outlet))
            )


def _extras_of(outlet: Any, events: Any) -> Iterator[dict[str, Any]]:
    """The `extra` of each event that a task will cause by one of its outlets."""
    accessor = events[outlet]
    if isinstance(outlet, AssetAlias):
        yield from (event.extra for event in accessor.asset_alias_events)
    else:
        yield accessor.extra


def _text(value: str | None) -> str | None:
    return one_line(value, _LONGEST_ID) if value is not None else None
