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


def _in_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Timestamp = Annotated[datetime, BeforeValidator(_iso_timestamp), AfterValidator(_in_utc)]
Identifier = Annotated[StrictStr, StringConstraints(min_length=1, max_length=1024)]


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
    createdAt: Timestamp | None = None
    updatedAt: Timestamp | None = None


class ExecutionEvent(Wire):
    """The record of one run.

    Only `id` and `status` are required: they are what a verdict needs. `requestId` is not documented; should it
    appear one day, it decides which run the event belongs to.
    """

    id: Identifier
    status: Annotated[StrictStr, StringConstraints(min_length=1, max_length=256)]
    agentId: str | None = None
    userId: str | None = None
    startedAt: Timestamp | None = None
    completedAt: Timestamp | None = None
    error: Any = None
    finalModel: str | None = None
    browserStepCount: int | float | None = None
    browserSessionSeconds: int | float | None = None
    createdAt: Timestamp | None = None
    updatedAt: Timestamp | None = None
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
        """The event as the API sent it, word for word: its field names, its spelling of timestamps, JSON types."""
        return self.model_dump(mode="json", exclude_unset=True) if self._sent is None else dict(self._sent)


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
    nextToken: Annotated[StrictStr, StringConstraints(max_length=65536)] | None = Field(default=None)
