"""What a task reports to OpenLineage about its run.

This module needs Airflow's OpenLineage provider (the extra `openlineage`) and is imported only when that asks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from airflow.providers.openlineage.extractors import OperatorLineage
from attrs import define
from openlineage.client.facet_v2 import RunFacet, external_query_run

from airflow_provider_agents import __version__
from airflow_provider_agents.api.errors import one_line
from airflow_provider_agents.runs.status import duration_of

if TYPE_CHECKING:
    from airflow_provider_agents.runs.outcome import Verdict
    from airflow_provider_agents.runs.submission import Submission

#: The facet's key in an event. Public, as the facet's fields are.
FACET = "agents_run"
#: At most this many candidates are named: an event is no place for a listing.
_MOST_CANDIDATES = 20
_LONGEST_ID = 1024


@define
class AgentRunFacet(RunFacet):
    """One agent run. What is not known is None, and missing from the event.

    Its `_schemaURL` is the one of all run facets, which allows any further field: `version` defines how to read these.
    A new field keeps the version; a field that changes its meaning or goes raises it.

    Attributes:
        agentId: the agent.
        requestId: what the API answered to the execute.
        eventId: the run's event, if it is known.
        candidateEventIds: the events that the run may be, if it is not known which; at most twenty.
        outcome: a `outcome.Outcome`; None if the task has not seen the run's end.
        error: why the run failed, as the API gives it: one line, at most 200 characters.
        finalModel: the model that was used last.
        browserStepCount: steps in the browser.
        browserSessionSeconds: seconds of the browser's session.
        durationSeconds: from the run's start to its end, on the platform's clock.
        providerVersion: of this package.
        version: of this facet.
    """

    agentId: str
    requestId: str | None = None
    eventId: str | None = None
    candidateEventIds: list[str] | None = None
    outcome: str | None = None
    error: str | None = None
    finalModel: str | None = None
    browserStepCount: float | None = None
    browserSessionSeconds: float | None = None
    durationSeconds: float | None = None
    providerVersion: str = __version__
    version: int = 1


def lineage_of_run(
    agent_id: str, submission: Submission | None, verdict: Verdict | None, base_url: str | None
) -> OperatorLineage[Any, Any]:
    """The run facets of a task.

    Args:
        agent_id: the agent.
        submission: the record of its run, as far as there is one.
        verdict: how the wait ended, if it did.
        base_url: where the run is.
    """
    facet = AgentRunFacet(agentId=one_line(agent_id, _LONGEST_ID))
    event_ids: list[str] = []
    if submission is not None:
        facet.requestId = _quoted(submission.request_id, _LONGEST_ID)
        event_ids = [submission.event_id] if submission.event_id is not None else []
    if verdict is not None:
        facet.outcome = verdict.outcome.value
        event_ids = [event.id for event in verdict.events if not event.lacks_id] or event_ids
    # Of several candidates none is known to be the run, so the usage of each is left out.
    if verdict is not None and len(verdict.events) == 1:
        (event,) = verdict.events
        facet.error = _quoted(event.error)
        facet.finalModel = _quoted(event.finalModel)
        facet.browserStepCount = _finite(event.browserStepCount)
        facet.browserSessionSeconds = _finite(event.browserSessionSeconds)
        facet.durationSeconds = duration_of(event)
    facets: dict[str, Any] = {FACET: facet}
    if len(event_ids) == 1:
        facet.eventId = one_line(event_ids[0], _LONGEST_ID)
        facets["externalQuery"] = external_query_run.ExternalQueryRunFacet(
            externalQueryId=facet.eventId, source=base_url or "agents"
        )
    elif event_ids:
        facet.candidateEventIds = [one_line(event_id, _LONGEST_ID) for event_id in event_ids[:_MOST_CANDIDATES]]
    return OperatorLineage(run_facets=facets)


def _quoted(value: object, *limit: int) -> str | None:
    return one_line(str(value), *limit) if value is not None else None


def _finite(value: float | None) -> float | None:
    # JSON has no word for infinity, and a catalog would refuse the whole event for it.
    return value if value is not None and math.isfinite(value) else None
