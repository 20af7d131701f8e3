"""How `airflow agents probe` starts runs and polls them. What it sees is kept in `observations`."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_agents.api import retry
from airflow_provider_agents.api.endpoints import execute_agent, list_agent_events, list_events
from airflow_provider_agents.api.errors import AgentsError, PermanentError, UnreadableAnswerError
from airflow_provider_agents.api.flow import MAX_LIMIT, paginate
from airflow_provider_agents.api.models import Status
from airflow_provider_agents.cli.check import compare_clocks
from airflow_provider_agents.cli.observations import BOUND_OFFSETS, Poll, ProbedRun, SeenListing
from airflow_provider_agents.clock import now, sleep
from airflow_provider_agents.hooks import check_connection_budget
from airflow_provider_agents.runs.listing import PAGE_ROWS
from airflow_provider_agents.runs.matching import is_young
from airflow_provider_agents.runs.status import is_terminal
from airflow_provider_agents.runs.submission import Submission, find_unconfirmed, interrupted, search_seconds
from airflow_provider_agents.runs.tracker import WaitPolicy

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from airflow_provider_agents.api.client import Client
    from airflow_provider_agents.api.flow import ApiCall, Response
    from airflow_provider_agents.api.models import ExecutionEvent, Page
    from airflow_provider_agents.cli.observations import Bound, Observations

#: Seconds until the next poll, while fewer seconds than this have passed since the 202. The first minute shows how soon
#: an event appears, to half a second; after that only the end of the run is awaited.
_PACE = ((60.0, 0.5), (300.0, 2.0), (float("inf"), 5.0))
#: Seconds of polls after the end of a run, for listings that fall back to an older state.
_AFTER_END_SECONDS = 5.0
#: No further run is started if no event has appeared for this long: twice the default of `appear_within`.
_EVENT_SECONDS = 600.0
#: The same for a run that does not end.
_END_SECONDS = 3600.0
#: A page may hold a single row, and others none.
_MOST_PAGES = 2 * PAGE_ROWS
_ACCEPTED = 202
#: Before any run of this command, whatever clocks differ by.
_LONG_AGO = timedelta(days=1)


def observe(client: Client, seen: Observations, *, say: Callable[[str], None]) -> None:
    """Start `seen.wanted` runs one after the other, and record what happens.

    Args:
        client: its `on_response` is `seen.record_response`.
        seen: what is known. It is kept up to date, so that nothing is lost if this raises.
        say: called with a sentence about the progress.

    Raises:
        BudgetExceededError: the connection's budget leaves no room for another run.
        AgentsError: the API refuses, or cannot be used for some time.
    """
    _Probe(client, seen, say).run()


class _Probe:
    def __init__(self, client: Client, seen: Observations, say: Callable[[str], None]) -> None:
        self._client, self._seen, self._say = client, seen, say
        self._settle = client.settings.settle or WaitPolicy().settle
        self._known_ids: set[str] = set()
        # The last request with `startedAfter` left it out.
        self._left_out: ProbedRun | None = None
        self._window = retry.RetryWindow(retry.START_PATIENCE_SECONDS, warn=say)

    def run(self) -> None:
        self._read_account()
        for number in range(1, self._seen.wanted + 1):
            self._client.run_flow(check_connection_budget(self._client.settings, self._seen.agent_id))
            run = self._start(f"{number} of {self._seen.wanted}")
            self._watch(run, f"{number} of {self._seen.wanted}")
            if not run.is_over:
                self._seen.stopped_by = "The run was not seen to its end in time, so no further run was started."
                break
        last = next(reversed(self._seen.known), None)
        if last is not None and last.event is not None and last.event.startedAt is not None:
            self._try_bounds(last.event.id, last.event.startedAt)
        self._read_account()

    def _read_account(self) -> None:
        """Other agents' runs, which overlap, show what listings are sorted by."""
        # The key may not list the account.
        with contextlib.suppress(PermanentError):
            self._read(list_events(limit=MAX_LIMIT))

    def _read(self, call: ApiCall[Page[ExecutionEvent]]) -> tuple[list[ExecutionEvent], datetime | None, bool]:
        """The first rows of a listing, the server's clock, and whether more rows follow."""
        limit = int(dict(call.params)["limit"])
        count, has_more = 0, False

        def stop(page: Response[Page[ExecutionEvent]]) -> bool:
            nonlocal count, has_more
            rows = page.value.data
            # Page by page: two pages may be of two replicas.
            self._seen.traits.record(rows)
            count, has_more = count + len(rows), page.value.nextToken is not None
            self._seen.traits.short_pages += has_more and len(rows) < limit
            return count >= limit

        listed = self._client.run_flow(paginate(call, stop, max_pages=_MOST_PAGES))
        return listed.value, listed.server_time, has_more

    def _start(self, name: str) -> ProbedRun:
        """Start a run, and once only."""
        while True:
            agent_id = self._seen.agent_id
            pending, _, _ = self._read(list_agent_events(agent_id, status=Status.PENDING, limit=PAGE_ROWS))
            rows, server_before, _ = self._read(list_agent_events(agent_id, limit=PAGE_ROWS))
            listed = {event.id: event for event in (*pending, *rows)}
            if self._seen.runs:
                # An old row may move onto the page.
                since = self._seen.runs[0].server_before
                new = (event for name, event in listed.items() if name not in self._known_ids)
                self._seen.record_between(event for event in new if is_young(event, since))
            self._known_ids.update(listed)
            run = ProbedRun(server_before=server_before, sent_at=now())
            self._seen.runs.append(run)
            began_at = now()
            try:
                response = self._client.send_once(execute_agent(agent_id))
            except AgentsError as error:
                if isinstance(error, UnreadableAnswerError) and error.status_code == _ACCEPTED:
                    run.answered_at = now()
                    self._say(f"Run {name} was accepted, and the 202 cannot be read. {error}")
                    return run
                if not retry.started_nothing(error):
                    self._look_for(run)
                    raise
                self._seen.runs.remove(run)
                if not error.is_retryable:
                    raise
                sleep(self._window.pause_after(error, "This request started nothing."))
                continue
            self._window.succeeded()
            run.answered_at, run.server_after = now(), response.server_time
            run.request_id = response.value.requestId
            self._seen.clock = compare_clocks(response.server_time, began_at, run.answered_at)
            self._say(f"Run {name} was accepted. agent={agent_id} request_id={run.request_id or '-'}")
            return run

    def _look_for(self, run: ProbedRun) -> None:
        """Look for the run of a POST without an answer, as a task does. No further run is started then."""
        agent_id, sent_at = self._seen.agent_id, run.sent_at or now()
        self._say(
            f"The POST has no answer, so a run may have started. Looking for it for {search_seconds(self._settle):g} "
            f"seconds. agent={agent_id}"
        )
        intent = Submission(
            agent_id=agent_id,
            known_event_ids=tuple(self._known_ids),
            taken_at=sent_at,
            sent_at=sent_at,
            server_before=run.server_before,
        )
        unconfirmed = interrupted(intent, request_seconds=(now() - sent_at).total_seconds())
        try:
            found = self._client.run_flow(find_unconfirmed(unconfirmed, settle=self._settle))
            if found is None:
                self._say("No run has appeared, so most likely none was started. Start the probe again.")
                return
            run.record(self._poll(run))
        except AgentsError as error:
            self._say(f"The run could not be looked for. {error}")
            return
        self._say(
            "A run has appeared since. It is most likely the one that was asked for. Wait for its end before you start "
            f"the probe again. agent={agent_id} event={','.join(run.candidate_ids)}"
        )

    def _watch(self, run: ProbedRun, name: str) -> None:
        """Poll a run until some seconds after its end."""
        agent_id, began_at, reported = self._seen.agent_id, now(), None
        over_since: datetime | None = None
        while True:
            poll = self._poll(run)
            run.record(poll)
            event = run.event
            if event is not None and event.status != reported:
                reported = event.status
                self._say(f"Run {name} is {reported}. agent={agent_id} event={event.id}")
            self._try_start_filter(run)
            passed = (poll.answered_at - began_at).total_seconds()
            if run.is_over:
                over_since = over_since or poll.answered_at
                if (poll.answered_at - over_since).total_seconds() >= _AFTER_END_SECONDS:
                    break
            elif passed >= (_END_SECONDS if run.candidate_ids else _EVENT_SECONDS):
                break
            pace = 0.5 if over_since is not None else next(pause for until, pause in _PACE if passed < until)
            sleep(pace)
        for poll in run.polls:
            self._known_ids.update(poll.event_ids)

    def _poll(self, run: ProbedRun) -> Poll:
        asked_at, pending = now(), None
        event = run.event
        if event is None or event.status == Status.PENDING:
            rows, _, has_more = self._read(
                list_agent_events(self._seen.agent_id, status=Status.PENDING, limit=PAGE_ROWS)
            )
            pending = SeenListing.of(rows, self._known_ids, has_more=has_more)
        rows, server_time, has_more = self._read(list_agent_events(self._seen.agent_id, limit=PAGE_ROWS))
        listed = SeenListing.of(rows, self._known_ids, has_more=has_more)
        return Poll(asked_at, now(), server_time, pending, listed)

    def _try_start_filter(self, run: ProbedRun) -> None:
        """Ask with `startedAfter` for a run that has not begun, until it is known what happens."""
        event = run.event
        if run.kept_by_start_filter is not None or event is None or event.startedAt is not None or is_terminal(event):
            return
        if self._left_out is run:
            # The run had no start in the poll before that request, and has none in the one after it.
            run.kept_by_start_filter = False
            return
        after = (run.server_before or now()) - _LONG_AGO
        rows, _, _ = self._read(list_agent_events(self._seen.agent_id, started_after=after, limit=PAGE_ROWS))
        row = next((row for row in rows if row.id == event.id), None)
        if row is None:
            self._left_out = run
        elif row.startedAt is None:
            run.kept_by_start_filter = True

    def _try_bounds(self, event_id: str, started_at: datetime) -> None:
        """Ask with bounds at and around the `startedAt` of a run that has ended."""
        if started_at.microsecond % 1000:
            # Bounds are sent in milliseconds.
            return
        bounds: tuple[Bound, ...] = ("startedAfter", "startedBefore")
        for bound in bounds:
            for offset in BOUND_OFFSETS:
                at = started_at + offset
                after, before = (at, None) if bound == "startedAfter" else (None, at)
                call = list_agent_events(
                    self._seen.agent_id, started_after=after, started_before=before, limit=PAGE_ROWS
                )
                rows, _, _ = self._read(call)
                self._seen.bounds[bound, offset] = any(event.id == event_id for event in rows)
