"""The wire: what the API sends, field by field, in its own spelling.

A row never fails its page. An invalid value in a field that no verdict needs counts as absent. A row with an invalid
value in a field that a verdict needs becomes a stand-in, which says why (`unreadable`). Unknown fields are kept. An
unknown `status` is a string like any other: only `runs.status` decides what it means. Timestamps are aware and in UTC;
one without an offset is read as UTC.
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
    PrivateAttr,
    StrictStr,
    StringConstraints,
    ValidationError,
)
from pydantic_core import core_schema

from airflow_provider_agents.api.body import rows_of, to_storable
from airflow_provider_agents.api.errors import first_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydantic import GetCoreSchemaHandler

T = TypeVar("T")


class Status(StrEnum):
    """The documented statuses. Others may appear; `runs.status` decides what they mean."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


def _iso_timestamp(value: object) -> object:
    # pydantic would also read numbers as Unix times, and guess the unit from their size.
    if value is None or isinstance(value, str | datetime):
        return value
    raise ValueError("a timestamp must be ISO 8601 text")


#: Far enough from the ends of the calendar that no sum or difference of two moments in between leaves it.
FIRST_MOMENT, END_OF_TIME = datetime(1970, 1, 1, tzinfo=UTC), datetime(3000, 1, 1, tzinfo=UTC)


def is_plausible(moment: datetime) -> bool:
    """Whether an event can have this time. Some languages write the years 1 and 9999 for "never".

    A time without an offset is UTC. The year in UTC counts: an offset can move a time into another year.
    """
    return FIRST_MOMENT <= (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) < END_OF_TIME


def _in_utc(value: datetime | None) -> datetime | None:
    if value is None:
        return None
    try:
        moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:  # at an end of the calendar
        return None
    return moment if is_plausible(moment) else None


def _printable(value: str) -> str:
    # Names appear in logs, errors and URLs unchanged.
    if not value.isprintable():
        raise ValueError("a name must be printable")
    return value


class _NoneIfUnreadable:
    """Marks a field whose invalid value counts as absent."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_default_schema(handler(source), default=None, on_error="default")


def _usable_number(value: object) -> object:
    # A number that Airflow could not store counts as absent: it must not hide how a run ended.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 2**63 else None


def _token(value: object) -> object:
    # A token is only sent back, so a number may be sent as text. An empty value of any type means no next page.
    if not value:
        return None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Timestamp = Annotated[datetime | None, BeforeValidator(_iso_timestamp), AfterValidator(_in_utc)]
#: Characters of an id. A longer one has no place in a URL.
LONGEST_ID = 1024
Identifier = Annotated[StrictStr, StringConstraints(min_length=1, max_length=LONGEST_ID), AfterValidator(_printable)]
#: The types below are for fields that no verdict needs: an invalid value counts as absent.
OptionalTimestamp = Annotated[Timestamp, _NoneIfUnreadable()]
OptionalIdentifier = Annotated[Identifier | None, _NoneIfUnreadable()]
OptionalText = Annotated[StrictStr | None, _NoneIfUnreadable()]
Number = Annotated[int | float | None, BeforeValidator(_usable_number)]
#: A token becomes part of the next URL: gateways refuse longer URLs.
Token = Annotated[Annotated[StrictStr, StringConstraints(max_length=4096)] | None, BeforeValidator(_token)]


#: In place of the set, of 700 bytes, in which pydantic notes which fields of a model were given. Thousands of models
#: are held in memory at once, and their JSON does not depend on it.
_NOT_NOTED: set[str] = set()


def without_given_fields(model: BaseModel) -> None:
    """Let a model forget which of its fields were given: pydantic's `exclude_unset` then leaves all of them out.

    Its values stay. May be repeated.
    """
    object.__setattr__(model, "__pydantic_fields_set__", _NOT_NOTED)


class Wire(BaseModel):
    """Base of the wire models: immutable, unknown fields kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @classmethod
    def read(cls, value: object) -> Self:
        """Read decoded JSON.

        Raises:
            ValidationError: it is unreadable.
        """
        return cls.model_validate(value)

    def to_json(self) -> dict[str, Any]:
        """The fields that were sent, under the API's names, as JSON types that a task may return to XCom.

        What Airflow could not store, or would not read as data, is changed or left out (`body.to_storable`).
        """
        return to_storable(self.model_dump(mode="json", exclude_unset=True))  # type: ignore[no-any-return]  # of an object, an object


class Row(Wire):
    """A row of a listing, with the JSON object that was sent."""

    id: Identifier

    _sent: dict[str, Any] | None = PrivateAttr(default=None)

    @classmethod
    def read(cls, value: object) -> Self:
        """Read a row of decoded JSON, and keep it as it was sent.

        Raises:
            ValidationError: it is unreadable.
        """
        row = super().read(value)
        if isinstance(value, dict):
            row._sent = value  # noqa: SLF001 - our own, in our own class method
            without_given_fields(row)
        return row

    @property
    def unreadable(self) -> str | None:
        """Why the row cannot be read; None for a readable row."""
        return None

    @property
    def lacks_id(self) -> bool:
        """Whether the row has no readable id, so that `id` is derived from its content."""
        return False

    def was_sent_as(self, row: object) -> bool:
        """Whether `row` is equal to the JSON that was sent. Much cheaper than reading it again."""
        return self._sent == row

    def to_json(self) -> dict[str, Any]:
        """The row as the API sent it: same field names, same spelling of timestamps.

        Only what Airflow could not store, or would not read as data, is changed or left out (`body.to_storable`).
        """
        sent = self._sent
        return super().to_json() if sent is None else to_storable(sent)


class Agent(Row):
    """An agent of the account."""

    name: OptionalText = None
    baseUrl: OptionalText = None
    status: OptionalText = None
    schedule: OptionalText = None
    createdAt: OptionalTimestamp = None
    updatedAt: OptionalTimestamp = None


def schedule_in_words(schedule: str | None) -> str:
    """When the platform runs an agent by itself, or the schedule as it is, if it is not in the documented form."""
    if not schedule:
        return ""
    try:
        plan = json.loads(schedule)
    except (ValueError, RecursionError):
        return schedule
    match plan:
        case {"tasksPerDay": int(count), "times": [*times]} if all(isinstance(time, str) for time in times):
            pass
        case {"tasksPerDay": int(count)}:
            times = []
        case None:
            return ""
        case _:
            return schedule
    often = "once a day" if count == 1 else f"{count} times a day"
    return f"{often} at {', '.join(times)}" if times else often


class ExecutionEvent(Row):
    """The record of one run.

    A verdict needs `id`, `status`, `createdAt`, `startedAt` and `completedAt`: a row in which one of them is invalid is
    unreadable. Any other invalid field counts as absent. `requestId` is not documented; if an event has one, it decides
    to which execute the event belongs.
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
    #: Only orders two states of one event.
    updatedAt: OptionalTimestamp = None
    requestId: OptionalIdentifier = None

    @property
    def changed_at(self) -> datetime | None:
        """When the record was last changed; None if unknown."""
        return self.updatedAt or self.completedAt

    @property
    def created_by(self) -> datetime | None:
        """When the event was created, or else the earliest known time by which it was."""
        return self.createdAt or self.startedAt or self.completedAt or self.updatedAt


class _StandIn(Row):
    """Stands in for an unreadable row, with every field that can be read."""

    _reason: str = PrivateAttr(default="")
    _lacks_id: bool = PrivateAttr(default=False)

    @classmethod
    def of(cls, value: object, error: ValidationError) -> Self:
        """Read all valid fields of a row.

        Args:
            value: the row, decoded.
            error: why the row is unreadable.
        """
        # A row that is not an object becomes one, so that it can be stored and read again.
        sent: dict[str, Any] = value if isinstance(value, dict) else {"row": value}
        invalid = {each["loc"][0] for each in error.errors(include_url=False) if each["loc"]}
        readable = {name: field for name, field in sent.items() if name not in invalid}
        lacks_id = "id" not in readable
        row = cls.model_validate(readable | {"id": _derived_id(sent)} if lacks_id else readable)
        row._sent, row._reason, row._lacks_id = sent, first_error(error), lacks_id  # noqa: SLF001 - our own
        return row

    @property
    def unreadable(self) -> str:
        return self._reason

    @property
    def lacks_id(self) -> bool:
        return self._lacks_id


def _derived_id(sent: dict[str, Any]) -> str:
    # A submission must recognise rows without an id that were there before its POST, so the id is stable for a run. All
    # fields but the creation time may change while a run is active.
    created = sent.get("createdAt")
    same = json.dumps(to_storable(sent if created is None else created), sort_keys=True)
    return f"no-id-{hashlib.blake2b(same.encode(), digest_size=6).hexdigest()}"


class UnreadableAgent(_StandIn, Agent):
    """Stands in for an agent whose row is unreadable."""


class UnreadableEvent(_StandIn, ExecutionEvent):
    """Stands in for an event whose row is unreadable. It counts as RUNNING, whatever the row says."""

    status: Annotated[str, BeforeValidator(lambda _: Status.RUNNING)] = Status.RUNNING

    _created_by: datetime | None = PrivateAttr(default=None)

    @property
    def created_by(self) -> datetime | None:
        """As in any event; a row without a time gets one from its place in a listing."""
        return super().created_by or self._created_by

    def dated(self, created_by: datetime | None) -> Self:
        """The same event with a time by which it was created, for a row without a time."""
        copy = self.model_copy()
        copy._created_by = created_by  # noqa: SLF001 - our own
        return copy

    def after(self, earlier: ExecutionEvent) -> Self:
        """The same state, with the unchanging fields that only an earlier state of the event has."""
        missing = {
            name: getattr(earlier, name)
            for name in ("agentId", "createdAt", "startedAt", "requestId")
            if getattr(self, name) is None and getattr(earlier, name) is not None
        }
        later = self.model_copy(update=missing) if missing else self
        # Without a start time, a row may stand behind older rows, so its place in that listing says nothing.
        return later.dated(None) if earlier.unreadable is not None and earlier.created_by is None else later


def read_agent(row: object) -> Agent:
    """Read a row of decoded JSON; a stand-in if it is unreadable. Raises nothing."""
    try:
        return Agent.read(row)
    except ValidationError as error:
        return UnreadableAgent.of(row, error)


def read_event(row: object) -> ExecutionEvent:
    """Read a row of decoded JSON; a stand-in if it is unreadable. Raises nothing."""
    try:
        return ExecutionEvent.read(row)
    except ValidationError as error:
        return UnreadableEvent.of(row, error)


class Accepted(Wire):
    """The body of a 202 to an execute.

    Any field may be missing or invalid: an accepted run must not be lost because of the body.
    """

    requestId: OptionalIdentifier = None
    agentId: OptionalText = None
    message: OptionalText = None


class Page(Wire, Generic[T]):
    """One page of a listing. It may hold fewer rows than `limit`, or none, and still have a `nextToken`."""

    data: tuple[T, ...]
    nextToken: Token = None

    @classmethod
    def of(cls, value: Any, read_row: Callable[[Any], T]) -> Self:
        """Read a page of decoded JSON; `read_row` raises nothing.

        Raises:
            BodyError: the page holds too many rows.
            KeyError, TypeError, ValidationError: the value is not a page.
        """
        rows = rows_of(value)
        page = cls.model_validate({**value, "data": ()})
        return page.model_copy(update={"data": _number_duplicates(map(read_row, rows))})


def _number_duplicates(rows: Iterable[T]) -> tuple[T, ...]:
    """The rows of a page. Equal rows without an id are numbered, because one of them may be new."""
    derived: Counter[str] = Counter()
    numbered: list[T] = []
    for row in rows:
        if isinstance(row, _StandIn) and row.lacks_id:
            derived[row.id] += 1
            if derived[row.id] > 1:
                numbered.append(row.model_copy(update={"id": f"{row.id}-{derived[row.id]}"}))
                continue
        numbered.append(row)
    return tuple(numbered)
