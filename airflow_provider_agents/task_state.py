"""What a task remembers of its run from one try to the next, in Airflow's task state store.

Where a clear of the task discards that store, a copy of the record is kept in an Airflow Variable while a run is or may
be under way. A run costs money and cannot be cancelled, so a task that was cleared must find a run that is still
running. The copies of an agent are also how tasks in several processes tell their runs apart (`shared_starts`).
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_agents import shared_starts
from airflow_provider_agents.clock import now
from airflow_provider_agents.runs.copies import RecordCopy, TaskPlace, key_of
from airflow_provider_agents.runs.outcome import format_ids
from airflow_provider_agents.runs.record import Attempt, Phase, RunRecord
from airflow_provider_agents.version_compat import NEXT_TRY_WAITS, clears_discard_state
from airflow_provider_agents.versioned_json import UnusableDataError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_agents.operators import ExecuteAgentOperator
    from airflow_provider_agents.runs.record import End
    from airflow_provider_agents.runs.submission import Submission
    from airflow_provider_agents.runs.tracker import WaitPolicy

#: The key of the record in the task state store. Public: an operator of Airflow may look it up or delete it.
RECORD_KEY = "agent_run"
#: How long the record outlives the longest wait it may be needed for: tries, pauses between them, clears by hand.
_RECORD_OUTLIVES = timedelta(days=30)
#: The store keeps 64 KB without a complaint; a result beyond this is looked up again rather than stored.
_LARGEST_STORED_RESULT = 48 * 1024
#: Airflow's own name for the method that fails a deferred task on a worker (`TRIGGER_FAIL_REPR`).
_AIRFLOW_FAILS = "__fail__"


class TaskStateRecord:
    """The record of a task in Airflow's task state store, or nothing where there is none."""

    def __init__(self, operator: ExecuteAgentOperator, context: Context) -> None:
        self._operator = operator
        self._store: Any = context.get("task_state_store") if operator.durable else None
        is_copied = self._store is not None and shared_starts.are_copies_kept()
        self._copies = _Copies(context, operator.log) if is_copied else None
        #: Whether the loaded record is the copy: Airflow has discarded the state of this task.
        self.outlived_clear = False
        self._attempt = Attempt(
            try_number=getattr(context["ti"], "try_number", 0),
            max_tries=getattr(context["ti"], "max_tries", 0) or 0,
            clear_number=getattr(context.get("dag_run"), "clear_number", None),
        )

    def is_cleared_since(self, record: RunRecord) -> bool:
        """Whether a user has cleared the task since the record was written."""
        return self._attempt.is_cleared_since(record.attempt, retries=self._operator.retries or 0)

    @property
    def is_kept(self) -> bool:
        """Whether a new try knows what this one did."""
        return self._store is not None

    @property
    def next_try_while_running(self) -> str:
        """What a new try will do about a run that is still running."""
        return NEXT_TRY_WAITS if self._store is not None else "A retry would start a new run."

    @property
    def next_try_after_loss(self) -> str:
        """What a new try will do about a run that may or may not have started."""
        return (
            "A retry looks for it first, and starts a new run only if there is none."
            if self._store is not None
            else "A retry would start a new run: look at the agent's runs first."
        )

    def warn_if_forgetful(self) -> None:
        """Say once per try what a retry will do where nothing is remembered."""
        if self._store is None and self._operator.retries:
            self._operator.log.warning(
                "This task keeps no record of its run (%s), so a retry starts a new run.",
                "durable=False" if not self._operator.durable else "Airflow has a task state store from 3.3 on",
            )

    def load(self, agent_id: str) -> RunRecord | None:
        """The record of an earlier try, or None. A failure to read it is never "none".

        Where a clear has discarded the record, its copy, if there is one.
        """
        if self._store is None:
            return None
        value = self._store.get(RECORD_KEY)
        if value is None:
            return self._load_copy(agent_id)
        record = RunRecord.from_json(value)
        if not record.belongs_to(agent_id, self._operator.agents_conn_id):
            self._operator.log.warning(
                "An earlier try started a run of another agent or over another connection. This run is left alone, and "
                "is still running if it has not ended. connection=%s %s",
                record.agents_conn_id,
                format_ids(record.submission),
            )
            return None
        return record

    def _load_copy(self, agent_id: str) -> RunRecord | None:
        if self._copies is None or not clears_discard_state() or self._attempt.try_number <= 1:
            return None
        record = self._copies.read(self._copies.key(self._operator.agents_conn_id, agent_id))
        self.outlived_clear = record is not None
        return record

    def wait_as(self, policy: WaitPolicy) -> None:
        """Say how this try waits, for the tasks that read its copy."""
        if self._copies is not None:
            self._copies.policy = policy

    def copy_key(self, submission: Submission) -> str | None:
        """The Variable that holds the copy of a run's record; None if no copy is kept."""
        if self._copies is None:
            return None
        return self._copies.key(self._operator.agents_conn_id, submission.agent_id)

    def save(
        self,
        phase: Phase,
        submission: Submission,
        *,
        outcome: End | None = None,
        result: dict[str, Any] | None = None,
        is_own: bool = False,
        candidate_event_ids: tuple[str, ...] = (),
        ends_in_trigger: bool = False,
        deadline_at: datetime | None = None,
        given_event_id: str | None = None,
    ) -> None:
        """Write the record before the step that `phase` names.

        `given_event_id` is the event that an ended task was given, for the copy alone.

        Raises:
            Exception: whatever the store raises, for `submitting` only: then nothing has been paid for yet. Later a
                record that cannot be written must not take down the task whose run is under way.
        """
        if self._store is None:
            return
        if result is not None and len(json.dumps(result)) > _LARGEST_STORED_RESULT:
            result = None
        record = RunRecord(
            phase=phase,
            agents_conn_id=self._operator.agents_conn_id,
            submission=submission,
            attempt=self._attempt,
            outcome=outcome,
            result=result,
            is_own=is_own,
            candidate_event_ids=candidate_event_ids,
            ends_in_trigger=ends_in_trigger,
            deadline_at=deadline_at,
        )
        try:
            self._write(record)
        except Exception:
            if phase == Phase.SUBMITTING:
                raise
            self._operator.log.exception("The record of the run could not be kept. %s", format_ids(submission))
        if self._copies is not None:
            self._copies.update(record, until=now() + self._retention, given_event_id=given_event_id)

    def note_nothing_started(self, submission: Submission) -> None:
        """Record that no run of this submission is wanted or under way: the next try starts one without a search.

        Raises:
            Exception: the record could not be written.
        """
        self.save(Phase.SUBMITTING, submission.changed(sent_at=None))

    def record_resumed(self, next_method: str) -> None:
        """Record that a worker, and not the trigger, ends this try. Log what became of the run if its wait has failed.

        Args:
            next_method: as Airflow resumes the task. Airflow's reason to resume it matters more than the record.
        """
        try:
            record = self._deferred_with()
            if record is not None and record.ends_in_trigger:
                self._write(record.changed(ends_in_trigger=False))
        except Exception:
            self._operator.log.exception(
                "The record of the run could not be brought up to date. If the task is cleared after its run has "
                "COMPLETED, a new run starts."
            )
            return
        if next_method == _AIRFLOW_FAILS:
            self._operator.log.warning("The wait in the triggerer has failed. %s", self._after_failed_deferral(record))

    def _deferred_with(self) -> RunRecord | None:
        """The record that this try has written before it deferred until its run ends; None if there is none."""
        value = self._store.get(RECORD_KEY) if self._store is not None else None
        record = RunRecord.from_json(value) if value is not None else None
        # Any other record is an earlier try's, and this one was deferred until the agent is idle.
        if record is None or record.phase != Phase.DEFERRED or record.attempt.try_number != self._attempt.try_number:
            return None
        return record

    def refuse_another_run(self, submission: Submission, agents_conn_id: str) -> None:
        """Refuse a trigger's report of another run than the one that this try has deferred for.

        Without a record there is nothing to compare with. A record that cannot be read loses no run that is paid for.

        Raises:
            UnusableDataError: it is another run.
        """
        try:
            record = self._deferred_with()
        except Exception:
            self._operator.log.exception("The record of the run could not be read. The trigger's report is believed.")
            return
        if record is not None and (record.submission, record.agents_conn_id) != (submission, agents_conn_id):
            raise UnusableDataError(
                "The trigger has reported another run than the one that this task waits for. The run is left as it is: "
                f"clear the task to wait for it again. {format_ids(record.submission)}; "
                f"reported: {format_ids(submission)}"
            )

    def _after_failed_deferral(self, record: RunRecord | None) -> str:
        if record is not None:
            return (
                f"The run is still running, or has ended unseen. {self.next_try_while_running} "
                f"{format_ids(record.submission)}"
            )
        if self._store is not None:
            return "It was a wait for an idle agent, and this try has started no run. A retry or clear asks again."
        return f"If this try has started a run, that run is still running. {self.next_try_while_running}"

    @property
    def _retention(self) -> timedelta:
        return timedelta(seconds=self._operator.timeout) + _RECORD_OUTLIVES

    def _write(self, record: RunRecord) -> None:
        self._store.set(RECORD_KEY, record.to_json(), retention=self._retention)


class _Copies:
    """The copy of a task's record in an Airflow Variable: one for each agent and connection that the task has run.

    A safety net beside the task state store. So no failure here fails a task: it is logged, with what it means.
    """

    def __init__(self, context: Context, log: Any) -> None:
        ti: Any = context["ti"]
        loop: Any = context.get("loop")
        self.log = log
        self.policy: WaitPolicy | None = None
        self._place = TaskPlace(
            dag_id=ti.dag_id,
            run_id=ti.run_id,
            task_id=ti.task_id,
            map_index=-1 if ti.map_index is None else ti.map_index,
            loop_index=loop.index if loop is not None else None,
        )

    def key(self, agents_conn_id: str, agent_id: str) -> str:
        """The Variable's key."""
        return key_of(agents_conn_id, agent_id, self._place)

    def read(self, key: str) -> RunRecord | None:
        """The record of a run that may be under way, or None."""
        from airflow.sdk import Variable

        try:
            text = Variable.get(key, default=None)
            record = RecordCopy.kept_under(key, text).record if text is not None else None
        except Exception:
            self.log.exception(
                "The copy of this task's record could not be read. If an earlier try has started a run that is still "
                "running, the task starts another run beside it. variable=%s",
                key,
            )
            return None
        return record if record is not None and record.phase != Phase.ENDED else None

    def update(self, record: RunRecord, *, until: datetime, given_event_id: str | None) -> None:
        """Bring the copy up to date with a record that was written.

        Args:
            record: the record.
            until: when the record of the store expires.
            given_event_id: the event that an ended task was given.
        """
        match record.phase:
            case Phase.ACCEPTED:
                self._write(record, until)
                self._delete_old(record)
            case Phase.SUBMITTING if record.submission.sent_at is not None:
                self._write(record, until)
            case Phase.SUBMITTING | Phase.ENDED:
                self._finish(record, given_event_id)
            # Between its acceptance and its end, nothing changes of what a cleared task needs to find the run.

    def _write(self, record: RunRecord, until: datetime) -> None:
        from airflow.sdk import Variable

        key, policy = self.key(record.agents_conn_id, record.submission.agent_id), self.policy
        try:
            # A try that resumes at the end does not know how it waits.
            waits: WaitPolicy | RecordCopy | None = policy or shared_starts.read_copy(key)
            copy = RecordCopy(
                place=self._place,
                record=record,
                written_at=now(),
                until=until,
                settle=waits.settle if waits is not None else None,
                appear_within=waits.appear_within if waits is not None else None,
            )
            Variable.set(
                key,
                copy.to_text(),
                description=(
                    f"Agent {record.submission.agent_id} may be running for task {self._place.name} of DAG run "
                    f"{self._place.run_id}. The task changes this when the run has ended. Without this, a clear of the "
                    "task may start a second run."
                ),
            )
        except Exception:
            self.log.exception(
                "The copy of this task's record could not be written. If the task is cleared while its run is still "
                "running, a second run starts. variable=%s %s",
                key,
                format_ids(record.submission),
            )

    def _finish(self, record: RunRecord, given_event_id: str | None) -> None:
        """No run is under way: none was started, or it has ended."""
        from airflow.sdk import Variable

        key = self.key(record.agents_conn_id, record.submission.agent_id)
        try:
            if record.phase == Phase.ENDED:
                shared_starts.end_copy(key, given_event_id)
            else:
                Variable.delete(key)
        except Exception:
            self.log.exception(
                "The copy of this task's record could not be changed. A try that finds the copy sees that the run has "
                "ended. `airflow agents forget` deletes the copy later. variable=%s",
                key,
            )

    def _delete_old(self, record: RunRecord) -> None:
        """Delete what earlier tasks have left of the same agent."""
        try:
            agents_conn_id, agent_id = record.agents_conn_id, record.submission.agent_id
            shared_starts.delete_old_copies(agents_conn_id, agent_id, but=self.key(agents_conn_id, agent_id))
        except Exception as error:  # noqa: BLE001 - a later start does it
            self.log.warning("Old copies of records were not deleted (%s). The next start tries it.", error)
