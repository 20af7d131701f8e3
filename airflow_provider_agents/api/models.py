"""The wire: what the API sends, field by field, in its own spelling.

Unknown fields are kept and handed on. An unknown `status` is a string like any other: what it means is decided in
`runs.verdict`, nowhere else. Timestamps are aware and in UTC; one without an offset is taken as UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StrictStr,
    StringConstraints,
    model_validator,
)

from airflow_provider_agents.api.bodies import storable

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


def _usable_number(value: object) -> object:
    # What a run has used must not hide how it ended: a number that nothing could keep is none.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 2**63 else None


Timestamp = Annotated[datetime | None, BeforeValidator(_iso_timestamp), AfterValidator(_in_utc)]
Identifier = Annotated[StrictStr, StringConstraints(min_length=1, max_length=1024), AfterValidator(_printable)]
Owner = Annotated[Identifier | None, BeforeValidator(_none_if_empty)]
Number = Annotated[int | float | None, BeforeValidator(_usable_number)]


class Wire(BaseModel):
    """Base of the wire models: immutable, unknown fields kept."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Agent(Wire):
    """An agent of the account."""

    id: Identifier
    name: str | None = None
    baseUrl: str | None = None
    status: str | None = None
    schedule: str | None = None
    createdAt: Timestamp = None
    updatedAt: Timestamp = None


class ExecutionEvent(Wire):
    """The record of one run.

    Only `id` and `status` are required: they are what a verdict needs. `requestId` is not documented; should it
    appear one day, it decides which run the event belongs to.
    """

    id: Identifier
    status: Annotated[StrictStr, StringConstraints(min_length=1, max_length=256), AfterValidator(_printable)]
    agentId: Owner = None
    userId: str | None = None
    startedAt: Timestamp = None
    completedAt: Timestamp = None
    error: Any = None
    finalModel: str | None = None
    browserStepCount: Number = None
    browserSessionSeconds: Number = None
    createdAt: Timestamp = None
    updatedAt: Timestamp = None
    requestId: str | None = None

    _sent: dict[str, Any] | None = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _keep_what_was_sent(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        event = handler(value)
        if isinstance(value, dict):
            event._sent = value  # noqa: SLF001 - our own, in our own class method
        return event

    def was_sent_as(self, row: object) -> bool:
        """Whether `row` is what was sent, word for word. Much cheaper than to read it again."""
        return self._sent == row

    def to_json(self) -> dict[str, Any]:
        """The event as the API sent it: its field names, its spelling of timestamps, JSON types.

        Word for word, but for what Airflow could not keep or would not take for data (`bodies.storable`).
        """
        sent = self.model_dump(mode="json", exclude_unset=True) if self._sent is None else self._sent
        return storable(sent)  # type: ignore[no-any-return]  # of an object, an object


class Accepted(Wire):
    """What a 202 to an execute says.

    `requestId` may be missing only because a run that was accepted must not be lost over its name.
    """

    requestId: Identifier | None = None
    agentId: str | None = None
    message: str | None = None


class Page(Wire, Generic[T]):
    """One page of a listing. It may hold fewer rows than asked for, or none, and still have a `nextToken`."""

    data: tuple[T, ...]
    #: Part of the next URL: no gateway takes a longer one.
    nextToken: Annotated[StrictStr, StringConstraints(max_length=4096)] | None = Field(default=None)
