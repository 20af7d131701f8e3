"""JSON that one process writes and another one reads, perhaps with another version of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from airflow_provider_agents.api.errors import AgentsError, first_error
from airflow_provider_agents.api.models import END_OF_TIME, FIRST_MOMENT, without_given_fields

if TYPE_CHECKING:
    from collections.abc import Callable

#: A hundred years, in seconds. A deadline some thousands of years away has no place in the calendar.
MAX_SECONDS = 100 * 365.25 * 86400


#: A moment and a length of time that can be added and compared without leaving the calendar.
Moment = Annotated[AwareDatetime, Field(ge=FIRST_MOMENT, lt=END_OF_TIME)]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]


class UnusableDataError(AgentsError):
    """Data of another process cannot be used: it is unreadable, of an unknown version, or about another run."""

    is_retryable = False


class VersionedJson(BaseModel):
    """Base of everything that is written as JSON and read again.

    Fields that a newer version has added are ignored. Everything else that does not fit is refused, never guessed at.
    A subclass sets two texts for the error: `_called` (the data) and `_what_to_do` (whole sentences).
    """

    model_config = ConfigDict(frozen=True)
    _called: ClassVar[str]
    _what_to_do: ClassVar[str] = ""

    version: Literal[1] = 1

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what `to_json` returned.

        Raises:
            UnusableDataError: it is something else.
        """
        return cls._read(cls.model_validate, value)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read the same as text.

        Raises:
            UnusableDataError: it is something else.
        """
        return cls._read(cls.model_validate_json, text)

    @classmethod
    def _read(cls, read: Callable[..., Self], value: object) -> Self:
        try:
            data = read(value)
        except ValidationError as error:
            words = f"{cls._called} cannot be read by this version of the provider ({first_error(error)})."
            raise UnusableDataError(f"{words} {cls._what_to_do}".rstrip()) from None
        without_given_fields(data)
        return data

    def changed(self, **fields: Any) -> Self:
        """A copy with other values."""
        return self.model_copy(update=fields)
