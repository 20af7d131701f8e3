"""The wire: what the API sends, field by field, in its own spelling.

A row of a listing never fails its page. An odd value in a field that no verdict needs counts as absent. A row with an
odd value in a field that one needs becomes a stand-in, which says why (`unreadable`). Unknown fields are kept and
handed on. An unknown `status` is a string like any other: what it means is decided in `runs.verdict`, nowhere else.
Timestamps are aware and in UTC; one without an offset is taken as UTC.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Generic, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StrictStr,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from airflow_provider_agents.api.body import rows_of, to_storable
from airflow_provider_agents.api.errors import first_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")


class Status(StrEnum):
    """The statuses that the API's page documents. Others may appear; `runs.verdict` says what they mean."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


def _iso_timestamp(value: object) -> object:
    # pydantic would also read numbers as Unix times, in seconds or milliseconds by size. A guess at a unit is no
    # timestamp, so only text passes.
    if value is None or isinstance(value, str | datetime):
        return value
    raise ValueError("a timestamp must be ISO 8601 text")


def is_plausible(moment: datetime) -> bool:
    """Whether something can have happened then. The years 1 and 9999 are what some languages write for "never"."""
    return 1970 <= moment.year < 3000  # noqa: PLR2004 - so far apart that no sum or difference of two leaves the calendar


def _in_utc(value: datetime | None) -> datetime | None:
    if value is None or not is_plausible(value):
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _printable(value: str) -> str:
    # Names stand in log lines, error messages and URLs as they are.
    if not value.isprintable():
        raise ValueError("a name must be printable")
    return value


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


def _none_if_unreadable(value: object, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        return None


def _usable_number(value: object) -> object:
    # What a run has used must not hide how it ended: a number that nothing could keep is none.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 2**63 else None


def _token(value: object) -> object:
    # A token is only sent back, so a number is as good as its text. An empty value of any type names no page.
    if not value:
        return None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Timestamp = Annotated[datetime | None, BeforeValidator(_iso_timestamp), AfterValidator(_in_utc)]
Identifier = Annotated[StrictStr, StringConstraints(min_length=1, max_length=1024), AfterValidator(_printable)]
#: The types below are of fields that no verdict needs: what cannot be read counts as absent.
OptionalTimestamp = Annotated[Timestamp, WrapValidator(_none_if_unreadable)]
OptionalIdentifier = Annotated[Identifier | None, WrapValidator(_none_if_unreadable)]
OptionalText = Annotated[StrictStr | None, WrapValidator(_none_if_unreadable)]
Number = Annotated[int | float | None, BeforeValidator(_usable_number)]
#: Part of the next URL: no gateway takes a longer one.
Token = Annotated[Annotated[StrictStr, StringConstraints(max_length=4096)] | None, BeforeValidator(_token)]


class Wire(BaseModel):
    """Base of the wire models: immutable, unknown fields kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def to_json(self) -> dict[str, Any]:
        """The fields that were sent, under the API's names, as JSON types: what a task may return to XCom.

        Fields that Airflow could not keep, or would not take for data, are left out (`body.to_storable`).
        """
        return to_storable(self.model_dump(mode="json", exclude_unset=True))  # type: ignore[no-any-return]  # of an object, an object


class Row(Wire):
    """A row of a listing, with the JSON object that was sent."""

    id: Identifier

    _sent: dict[str, Any] | None = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _keep_what_was_sent(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        row = handler(value)
        if isinstance(value, dict):
            row._sent = value  # noqa: SLF001 - our own, in our own class method
        return row

    @property
    def unreadable(self) -> str | None:
        """Why the row cannot be read, if this is a stand-in for one; else None."""
        return None

    @property
    def lacks_id(self) -> bool:
        """Whether the row has no readable id, so that `id` is made up."""
        return False

    def was_sent_as(self, row: object) -> bool:
        """Whether `row` is what was sent, word for word. Much cheaper than to read it again."""
        return self._sent == row

    def to_json(self) -> dict[str, Any]:
        """The row as the API sent it: its field names, its spelling of timestamps, JSON types.

        Word for word, but for what Airflow could not keep or would not take for data (`body.to_storable`).
        """
        return super().to_json() if self._sent is None else to_storable(self._sent)


class Agent(Row):
    """An agent of the account."""

    name: OptionalText = None
    baseUrl: OptionalText = None
    status: OptionalText = None
    schedule: OptionalText = None
    createdAt: OptionalTimestamp = None
    updatedAt: OptionalTimestamp = None


class ExecutionEvent(Row):
    """The record of one run.

    A verdict needs `id`, `status`, `createdAt`, `startedAt` and `completedAt`: a row in which one of them is odd cannot
    be read. Any other odd field counts as absent. `requestId` is not documented; should it appear one day, it decides
    which run the event belongs to.
    """

    status: Annotated[StrictStr, StringConstraints(min_length=1, max_length=256), AfterValidator(_printable)]
    agentId: OptionalIdentifier = None
    userId: OptionalText = None
    startedAt: Timestamp = None
    completedAt: Timestamp = None
    error: Any = None
    finalModel: OptionalText = None
    browserStepCount: Number = None
    browserSessionSeconds: Number = None
    createdAt: Timestamp = None
    #: Orders two states of one event, no more.
    updatedAt: OptionalTimestamp = None
    requestId: OptionalIdentifier = None

    @property
    def changed_at(self) -> datetime | None:
        """When the record changed last, as far as it says."""
        return self.updatedAt or self.completedAt

    @property
    def created_by(self) -> datetime | None:
        """When the event was created, or else a moment by which it was."""
        return self.createdAt or self.startedAt or self.completedAt or self.updatedAt


class _StandIn(Row):
    """Stands in for a row that cannot be read, with every field that can be read."""

    _reason: str = PrivateAttr(default="")
    _lacks_id: bool = PrivateAttr(default=False)

    @classmethod
    def of(cls, value: object, error: ValidationError) -> Self:
        """Read what can be read of a row.

        Args:
            value: the row, decoded.
            error: why it cannot be read.
        """
        # A row that is no object becomes one, so that it can be handed on and read again.
        sent: dict[str, Any] = value if isinstance(value, dict) else {"row": value}
        odd = {fault["loc"][0] for fault in error.errors(include_url=False) if fault["loc"]}
        readable = {name: field for name, field in sent.items() if name not in odd}
        lacks_id = "id" not in readable
        row = cls.model_validate(readable | {"id": _made_up_id(sent)} if lacks_id else readable)
        row._sent, row._reason, row._lacks_id = sent, first_error(error), lacks_id  # noqa: SLF001 - our own
        return row

    @property
    def unreadable(self) -> str:
        return self._reason

    @property
    def lacks_id(self) -> bool:
        return self._lacks_id


def _made_up_id(sent: dict[str, Any]) -> str:
    # The same for the same run: a submission must know the rows without an id that were there before its POST. While a
    # run is under way, all but its creation time may change.
    created = sent.get("createdAt")
    same = json.dumps(to_storable(sent if created is None else created), sort_keys=True)
    return f"no-id-{hashlib.blake2b(same.encode(), digest_size=6).hexdigest()}"


class UnreadableAgent(_StandIn, Agent):
    """Stands in for an agent whose row has no readable id."""


class UnreadableEvent(_StandIn, ExecutionEvent):
    """Stands in for an event whose row cannot be read, as a run that is still running, whatever the row says."""

    status: Annotated[str, BeforeValidator(lambda _: Status.RUNNING)] = Status.RUNNING

    _created_by: datetime | None = PrivateAttr(default=None)

    @property
    def created_by(self) -> datetime | None:
        """As of any event; of a row that names no time, as its place in a listing says."""
        return super().created_by or self._created_by

    def dated(self, created_by: datetime | None) -> Self:
        """The same, with a moment by which the event was created, for a row that names no time."""
        copy = self.model_copy()
        copy._created_by = created_by  # noqa: SLF001 - our own
        return copy

    def after(self, earlier: ExecutionEvent) -> Self:
        """The same state, with what only an earlier state of the event says, and what never changes."""
        missing = {
            name: getattr(earlier, name)
            for name in ("agentId", "createdAt", "startedAt", "requestId")
            if getattr(self, name) is None and getattr(earlier, name) is not None
        }
        later = self.model_copy(update=missing) if missing else self
        # A listing in which the row stands behind old ones may have put it there for want of a begin.
        return later.dated(None) if earlier.unreadable is not None and earlier.created_by is None else later


def read_agent(row: object) -> Agent:
    """Read a row of decoded JSON; a stand-in for one that cannot be read. Raises nothing."""
    try:
        return Agent.model_validate(row)
    except ValidationError as error:
        return UnreadableAgent.of(row, error)


def read_event(row: object) -> ExecutionEvent:
    """Read a row of decoded JSON; a stand-in for one that cannot be read. Raises nothing."""
    try:
        return ExecutionEvent.model_validate(row)
    except ValidationError as error:
        return UnreadableEvent.of(row, error)


class Accepted(Wire):
    """What a 202 to an execute says.

    Any field may be missing or unreadable: a run that was accepted must not be lost over the words of the answer.
    """

    requestId: OptionalIdentifier = None
    agentId: OptionalText = None
    message: OptionalText = None


class Page(Wire, Generic[T]):
    """One page of a listing. It may hold fewer rows than asked for, or none, and still have a `nextToken`."""

    data: tuple[T, ...]
    nextToken: Token = None

    @classmethod
    def of(cls, value: Any, read_row: Callable[[Any], T]) -> Self:
        """Read a page of decoded JSON; `read_row` raises nothing.

        Raises:
            BodyError: it holds too many rows.
            KeyError, TypeError, ValidationError: it is no page.
        """
        rows = rows_of(value)
        page = cls.model_validate({**value, "data": ()})
        return page.model_copy(update={"data": _told_apart(map(read_row, rows))})


def _told_apart(rows: Iterable[T]) -> tuple[T, ...]:
    """The rows of a page, in which those that are the same and have no id are numbered: one of them may be new."""
    made_up: Counter[str] = Counter()
    told_apart: list[T] = []
    for row in rows:
        if isinstance(row, _StandIn) and row.lacks_id:
            made_up[row.id] += 1
            if made_up[row.id] > 1:
                told_apart.append(row.model_copy(update={"id": f"{row.id}-{made_up[row.id]}"}))
                continue
        told_apart.append(row)
    return tuple(told_apart)
