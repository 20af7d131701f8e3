"""What an earlier try of a task has left: the result of its run, a run to wait for, or nothing.

A run costs money and cannot be cancelled. So a new try reads the record of the last one before it starts a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.clock import now
from airflow_provider_agents.payloads import RunEnded
from airflow_provider_agents.polling.blocking import run_flow_until
from airflow_provider_agents.runs.outcome import Outcome, Verdict, format_ids, to_error
from airflow_provider_agents.runs.record import Phase
from airflow_provider_agents.runs.status import is_active
from airflow_provider_agents.runs.submission import adopted_run_warning, find_unconfirmed, interrupted, search_seconds
from airflow_provider_agents.runs.tracker import RunTracker
from airflow_provider_agents.tasks import deadline_of

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_provider_agents.api.client import Client
    from airflow_provider_agents.operators import ExecuteAgentOperator
    from airflow_provider_agents.runs.record import RunRecord
    from airflow_provider_agents.runs.submission import Submission
    from airflow_provider_agents.runs.tracker import WaitPolicy
    from airflow_provider_agents.task_state import TaskStateRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierTry:
    """A try that has left a record.

    Attributes:
        task: the task, in its new try.
        record: what the earlier try has left.
        task_state: where the record is kept.
        client: of the task's connection.
        policy: how the new try waits.
        began_at: when the new try began.
        request_seconds: how long a request of the earlier try can have been under way.
    """

    task: ExecuteAgentOperator
    record: RunRecord
    task_state: TaskStateRecord
    client: Client
    policy: WaitPolicy
    began_at: datetime
    request_seconds: float

    def resume_previous(self) -> Submission | dict[str, Any] | None:
        """The result of the earlier try, the run to wait for again, or None for "start a new run"."""
        record, task_state, log = self.record, self.task_state, self.task.log
        submission: Submission | None = record.submission
        if record.phase == Phase.ENDED:
            return self._repeat()
        if record.phase == Phase.SUBMITTING:
            submission = self._find()
        if submission is None:
            return None
        if task_state.outlived_clear:
            return self._resume_cleared(submission)
        if record.phase == Phase.SUBMITTING:
            log.warning("%s", adopted_run_warning(self.task.agent_id))
            return submission
        if not self.task.wait_for_completion:
            return submission
        # The worker polls once: a run that has failed meanwhile wants a new one, and one that has ended needs no
        # trigger.
        _, verdict = self._poll_once(submission)
        if verdict is not None and not self._is_still_wanted(verdict):
            return None
        log.info("Waiting again for the run that an earlier try started. %s", format_ids(submission))
        return submission

    def verdict(self) -> Verdict | None:
        """How the run ended, if the record holds the end of a run that COMPLETED."""
        record = self.record
        if record.outcome != Outcome.COMPLETED or record.result is None:
            return None
        return RunEnded(
            agents_conn_id=record.agents_conn_id,
            submission=record.submission,
            outcome=Outcome.COMPLETED,
            events=(record.result,),
        ).verdict()

    def _repeat(self) -> Submission | dict[str, Any] | None:
        """After an end that the earlier try has seen: its result, the run to wait for, or None for a new run."""
        record = self.record
        if self.task_state.is_cleared_since(record) or record.outcome not in {Outcome.COMPLETED, "submitted"}:
            return None  # cleared by a user, or the run failed: either way a new run is wanted
        self.task.log.info("An earlier try has seen the end of its run already; nothing new is started.")
        # The DAG may have changed between the tries: what was not waited for then is waited for now.
        if record.result is None or (record.outcome == "submitted") == self.task.wait_for_completion:
            return record.submission
        return record.result

    def _find(self) -> Submission | None:
        """The run of a try that died around its POST; None if no run has appeared."""
        submission, log = self.record.submission, self.task.log
        if submission.sent_at is None:
            return None  # what was asked for was refused, or never left
        log.warning(
            "An earlier try died while it was starting a run of agent %s. Searching for that run first, for at most "
            "%.0f seconds.",
            self.task.agent_id,
            self.request_seconds + search_seconds(self.policy.settle),
        )
        lost = interrupted(submission, request_seconds=self.request_seconds)
        found = self.client.run_flow(find_unconfirmed(lost, settle=self.policy.settle, under_way=self.request_seconds))
        if found is None:
            # Else the next try would search again, and take a run that another party has started meanwhile.
            self.task_state.note_nothing_started(submission)
            log.info("No run has appeared, so none was started.")
        return found

    def _poll_once(self, submission: Submission) -> tuple[RunTracker, Verdict | None]:
        tracker = RunTracker(submission, self.policy)
        began_at = now()
        listing = run_flow_until(self.client, tracker.read_listing(), deadline_of(self.task, self.began_at))
        return tracker, tracker.apply_listing(listing, began_at)

    def _resume_cleared(self, submission: Submission) -> Submission | None:
        """The run of a task whose record was discarded by a clear; None unless that run is still running."""
        log = self.task.log
        tracker, verdict = self._poll_once(submission)
        if verdict is not None and not tracker.active:
            # A clear asks for a new run, and says so by discarding the record.
            self.task_state.note_nothing_started(submission)
            log.info(
                "This task was cleared, and its earlier run is not running any more (%s). %s",
                verdict.outcome,
                format_ids(submission, verdict.events),
            )
            return None
        log.warning(
            "This task was cleared, and Airflow discarded its state. Its run %s still running and cannot be cancelled, "
            "so the task waits for that run again. To start another run instead, delete the Variable %s and clear the "
            "task. %s",
            "is" if any(map(is_active, tracker.events)) else "may be",
            self.task_state.copy_key(submission),
            format_ids(submission, tracker.events if tracker.is_known else ()),
        )
        if submission.in_doubt:
            log.warning("%s", adopted_run_warning(self.task.agent_id))
        return submission

    def _is_still_wanted(self, verdict: Verdict) -> bool:
        """Whether a run whose end is known is this task's; else a new one is started."""
        submission, log = self.record.submission, self.task.log
        match verdict.outcome:
            case Outcome.FAILED | Outcome.NOT_FOUND:
                log.warning("%s", to_error(verdict, submission, what_now="A new run is started."))
                return False
            case Outcome.COMPLETED if self.record.ends_in_trigger and self.task_state.is_cleared_since(self.record):
                # A trigger cannot write the record, so nothing else shows that the task had ended. It looks the same
                # if the run ended after a user had cleared the waiting task.
                log.info("The earlier run COMPLETED, and the task was cleared since. %s", format_ids(submission))
                return False
        return True
