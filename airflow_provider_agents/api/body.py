"""An answer's body made harmless: its bytes within bounds and without the key, its JSON such that Airflow can keep it.

Whoever answers may be a broken gateway, or somebody between. What they send must cost a bounded amount of memory and
time, must not carry the key into a log or an XCom, and must not break the Airflow process or database that it ends in.
Pure.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from typing import Any

from pydantic_core import from_json

from airflow_provider_agents.api.errors import one_line

#: Bytes of one answer, as sent and decompressed. The largest documented page, 200 events, is about 100 KB; this is 200
#: events with 40 KB of text in each.
MAX_BODY_BYTES = 8 * 1024 * 1024
#: Values in one answer. An event has about 15, a page of them 3,000. Each takes some 64 bytes as an object, however
#: short its JSON is: eight megabytes of empty lists would be two hundred.
MAX_VALUES = 500_000
VALUE_BYTES = 64
#: Rows of one page. 200 is the most that is ever asked for; a server that ignores that may send some more.
MAX_ROWS = 1000
#: Levels of lists and objects in what is handed on. An event that the API documents has one.
MAX_DEPTH = 32
#: Of an answer that is no success, only so many bytes are read: enough for the sentence in it.
MAX_ERROR_BYTES = 65536

_TOO_DEEP = "…"
_LARGEST_INTEGER = 2**63
_ESCAPE = re.compile(rb"\\(?:u00([2-7][0-9A-Fa-f])|.)", re.DOTALL)

#: A pair of surrogates, or one alone: half of a character, as is left where JavaScript cuts a text.
_SURROGATES = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


class BodyError(ValueError):
    """A body is refused. Its text goes on from "the answer …"."""


#: Members of one gzip body. A gateway that compresses piece by piece makes one of each: this is a body of the largest
#: size in pieces of 8 KiB.
MAX_MEMBERS = 1024
#: Bytes that are decompressed at once. What follows a member is copied, so with many members in a larger piece the cost
#: would grow with the square of its size.
_PIECE_BYTES = 65536
#: How a member of a gzip body begins (RFC 1952); the third byte stands for deflate, the only method there is.
_GZIP_MEMBER = b"\x1f\x8b\x08"
#: Some encoders put it before UTF-8. RFC 8259 lets a reader ignore it.
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _Decompressor:
    """Undoes gzip, of one member or several, or deflate, with or without the header of zlib."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflate: zlib._Decompress | None = None
        self._held = b""
        self._members = 0
        self._has_ended = False

    @property
    def is_whole(self) -> bool:
        """Whether what was fed so far is a whole body."""
        return self._members > 0 and self._inflate is None

    def feed(self, data: bytes, most: int) -> bytes:
        """What the next bytes decompress to, at most `most` bytes of it. What follows the last member is ignored.

        Raises:
            zlib.error: they are damaged, or there are too many members.
        """
        out = bytearray()
        self._held += data
        while self._held and len(out) < most:
            if self._inflate is None:
                self._inflate = self._next_member()
            if self._inflate is None:
                break
            out += self._inflate.decompress(self._held, most - len(out))
            self._held = self._inflate.unused_data
            if self._inflate.eof:
                self._inflate = None
        return bytes(out)

    def _next_member(self) -> zlib._Decompress | None:
        """What decompresses the member that the held bytes begin, or None if they begin none, or are too few to say."""
        if self._members and (self._coding != "gzip" or self._held[:3] != _GZIP_MEMBER[: len(self._held)]):
            self._has_ended = True
        if self._has_ended:
            self._held = b""
            return None
        if len(self._held) < (3 if self._members else 2):
            return None
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise zlib.error("too many members")
        return zlib.decompressobj(wbits=self._window_bits())

    def _window_bits(self) -> int:
        if self._coding == "gzip":
            return zlib.MAX_WBITS | 16
        # RFC 1950: the header names the method, 8, and as a number of 16 bits it is a multiple of 31. Servers that
        # leave it out are as old as deflate itself.
        has_header = self._held[0] & 15 == zlib.DEFLATED and int.from_bytes(self._held[:2]) % 31 == 0
        return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


class BodyDecoder:
    """Takes in a body, chunk by chunk.

    Args:
        content_encoding: the header. Only gzip is asked for; deflate is undone for servers that do not look. Nothing
            else is undone, and no two codings at once: each is a way to make megabytes of a few bytes.
        is_success: whether the status is a success; of any other answer only the beginning is kept, and no damage
            of it hides the status.

    Raises:
        BodyError: the coding is another one.
    """

    def __init__(self, content_encoding: str | None, *, is_success: bool) -> None:
        named = [coding.strip().removeprefix("x-") for coding in (content_encoding or "").lower().split(",")]
        codings = [coding for coding in named if coding not in {"", "identity"}]
        self._decompressor = _Decompressor(codings[0]) if codings in (["gzip"], ["deflate"]) else None
        self._data = bytearray()
        self._received = 0
        self._is_success = is_success
        #: Whether the rest need not be read.
        self.is_full = False
        if codings and self._decompressor is None:
            if is_success:
                raise BodyError(f"came in an encoding that was not asked for ({one_line(', '.join(codings), 40)})")
            self.is_full = True

    def add(self, chunk: bytes) -> None:
        """The next bytes.

        Raises:
            BodyError: they are too many, or cannot be decompressed.
        """
        most = MAX_BODY_BYTES if self._is_success else MAX_ERROR_BYTES
        self._received += len(chunk)
        try:
            for start in range(0, len(chunk), _PIECE_BYTES):
                # Never more than is allowed: the one byte too many tells that there would have been more.
                left = most + 1 - len(self._data)
                piece = chunk[start : start + _PIECE_BYTES]
                if left > 0:
                    self._data += piece[:left] if self._decompressor is None else self._decompressor.feed(piece, left)
        except zlib.error:
            if self._is_success:
                raise BodyError("has a damaged content encoding") from None
            self.is_full = True
        if len(self._data) <= most and self._received <= most:
            return
        if self._is_success:
            raise BodyError(f"is larger than {most:,} bytes and was not read to its end")
        self.is_full = True

    def finish(self) -> bytes:
        """The whole body.

        Raises:
            BodyError: it was compressed and is cut short.
        """
        if self._is_success and self._decompressor is not None and self._received and not self._decompressor.is_whole:
            raise BodyError("has a damaged content encoding: it is cut short")
        return bytes(self._data)


def redact(body: bytes, secret: str) -> bytes:
    """JSON without a secret, also where it is spelled with escapes, as some encoders do with `/`, `&` or `<`."""
    if rb"\u00" in body or rb"\/" in body:
        body = _ESCAPE.sub(_spelled_plainly, body)
    return body.replace(_spelled(secret), b"***")


def _spelled(text: str) -> bytes:
    return json.dumps(text)[1:-1].encode()


def _spelled_plainly(escape: re.Match[bytes]) -> bytes:
    if escape[1] is not None:
        return _spelled(chr(int(escape[1], 16)))
    return b"/" if escape[0] == rb"\/" else escape[0]


def size_bytes_of(body: bytes) -> int:
    """About how many bytes a body takes as Python objects. Cheap, and never far too little."""
    return len(body) + VALUE_BYTES * _most_values(body)


def _most_values(body: bytes) -> int:
    return 1 + body.count(b",") + body.count(b"[") + body.count(b"{")


def read_json(body: bytes) -> Any:
    """Decode a body.

    Raises:
        BodyError: it holds too many values.
        ValueError: it is not JSON, or nested more than 200 deep.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK)
    # A value takes a byte, so most bodies need no counting.
    if len(body) > MAX_VALUES and _most_values(body) > MAX_VALUES:
        raise BodyError(f"holds more than {MAX_VALUES:,} values and was not read")
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:
        # One text that is cut within a character must not hide a page.
        mended = _SURROGATES.sub(lambda match: rb"\ufffd" if match[1] else match[0], body)
        if mended == body:
            raise
        return from_json(mended, allow_inf_nan=False)


def rows_of(page: Any) -> list[Any]:
    """The rows of a decoded page.

    Raises:
        BodyError: they are too many.
        KeyError, TypeError: there are none.
    """
    rows = page["data"]
    if not isinstance(rows, list):
        raise TypeError("the rows of a page are a list")
    if len(rows) > MAX_ROWS:
        raise BodyError(f"holds {len(rows):,} rows, more than {MAX_ROWS:,}")
    return rows


def to_storable(value: Any, depth: int = 0) -> Any:
    """A decoded value such that Airflow's messages and databases can carry it, and take it for nothing but data.

    What is changed: NUL characters (PostgreSQL refuses them) are replaced; numbers beyond 64 bits (Airflow's messages
    cannot hold them) become floats, or None if they are none; what is nested too deeply is cut; and fields whose names
    begin with two underscores are left out, because Airflow takes some of them for the name of a class to be made.
    """
    match value:
        case str():
            return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        case bool() | None:
            return value
        case int() | float():
            return _storable_number(value)
        case list() | dict() if depth >= MAX_DEPTH:
            return _TOO_DEEP
        case list():
            return [to_storable(one, depth + 1) for one in value]
        case dict():
            return {
                to_storable(name): to_storable(one, depth + 1)
                for name, one in value.items()
                if not name.startswith("__")
            }
    raise TypeError(f"{type(value).__name__} does not come from JSON")


def _storable_number(value: float) -> float | None:
    if isinstance(value, int):
        if -_LARGEST_INTEGER <= value < _LARGEST_INTEGER:
            return value
        try:
            value = float(value)
        except OverflowError:
            return None
    return value if math.isfinite(value) else None
