"""The body of a response made safe: its size limited, the key removed, its JSON such that Airflow can store it.

The sender may be a broken gateway or an attacker. A body must cost a limited amount of memory and time, must not bring
the key into a log or an XCom, and must not break the Airflow process or database that receives it. Pure.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from typing import Any

from pydantic_core import from_json

from airflow_provider_agents.api.errors import one_line

#: Bytes of one body, both as sent and decompressed: 200 events with 40 KB of text in each. The largest documented page,
#: 200 events, has about 100 KB.
MAX_BODY_BYTES = 8 * 1024 * 1024
#: JSON values in one body. An event has about 15, so a page of 200 has 3,000.
MAX_VALUES = 500_000
#: Bytes of a Python object for a JSON value, however short its JSON is: eight megabytes of empty lists would take 200.
VALUE_BYTES = 64
#: Rows of one page. We ask for 200 at most; a server that ignores the limit may send some more.
MAX_ROWS = 1000
#: Levels of lists and objects that are kept. A documented event has one.
MAX_DEPTH = 32
#: Error bodies are truncated to this size: enough for a sentence.
MAX_ERROR_BYTES = 65536

_TOO_DEEP = "…"
_LARGEST_INTEGER = 2**63
_ESCAPE = re.compile(rb"\\(?:u00([2-7][0-9A-Fa-f])|.)", re.DOTALL)

#: A pair of surrogates, or a single one: half a character, as JavaScript leaves it where a text is cut.
_SURROGATES = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


class BodyError(ValueError):
    """A body is refused. The text continues the sentence "The response …"."""


#: Members of one gzip body: a body of the largest size in pieces of 8 KiB. Some gateways compress each piece by itself.
MAX_MEMBERS = 1024
#: Bytes that are decompressed at once. The bytes after a member are copied, so the cost of many members grows with the
#: square of this size.
_PIECE_BYTES = 65536
#: The first bytes of a gzip member (RFC 1952); the third one means deflate, the only method that exists.
_GZIP_MEMBER = b"\x1f\x8b\x08"
#: Some encoders write it before UTF-8. RFC 8259 allows a reader to ignore it.
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _Decompressor:
    """Decompresses gzip with one or more members, and deflate with or without the zlib header."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflate: zlib._Decompress | None = None
        self._held = b""
        self._members = 0
        self._has_ended = False

    @property
    def is_whole(self) -> bool:
        """Whether the body so far is complete."""
        return self._members > 0 and self._inflate is None

    def feed(self, data: bytes, most: int) -> bytes:
        """Decompress the next bytes, to at most `most` bytes. Bytes after the last member are ignored.

        Raises:
            zlib.error: the bytes are damaged, or there are too many members.
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
        """The decompressor of the next member; None if no member begins here, or too few bytes are known."""
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
        # RFC 1950: the header names the method, 8, and is a multiple of 31 as a 16-bit number. Old servers omit it.
        has_header = self._held[0] & 15 == zlib.DEFLATED and int.from_bytes(self._held[:2]) % 31 == 0
        return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


class BodyDecoder:
    """Decodes a body chunk by chunk.

    Args:
        content_encoding: the header. Requests ask for gzip; deflate is decoded for servers that ignore this. Any other
            encoding, and two at once, are refused: with them, a few bytes could become megabytes.
        is_success: whether the status is a success. Of an error response, only the beginning is kept, and a damaged
            body does not hide the status.

    Raises:
        BodyError: the encoding is refused.
    """

    def __init__(self, content_encoding: str | None, *, is_success: bool) -> None:
        named = [coding.strip().removeprefix("x-") for coding in (content_encoding or "").lower().split(",")]
        codings = [coding for coding in named if coding not in {"", "identity"}]
        self._decompressor = _Decompressor(codings[0]) if codings in (["gzip"], ["deflate"]) else None
        self._data = bytearray()
        self._received = 0
        self._is_success = is_success
        #: Whether the rest of the body is not needed.
        self.is_full = False
        if codings and self._decompressor is None:
            if is_success:
                raise BodyError(f"came in an encoding that was not asked for ({one_line(', '.join(codings), 40)})")
            self.is_full = True

    def add(self, chunk: bytes) -> None:
        """Add the next bytes.

        Raises:
            BodyError: the body is too large, or cannot be decompressed.
        """
        most = MAX_BODY_BYTES if self._is_success else MAX_ERROR_BYTES
        self._received += len(chunk)
        try:
            for start in range(0, len(chunk), _PIECE_BYTES):
                # One byte more than allowed is enough to know that the body is too large.
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
            BodyError: a compressed body is cut short.
        """
        if self._is_success and self._decompressor is not None and self._received and not self._decompressor.is_whole:
            raise BodyError("has a damaged content encoding: it is cut short")
        return bytes(self._data)


def redact(body: bytes, secret: str) -> bytes:
    """JSON with the secret replaced, even where it is written with escapes, as some encoders write `/`, `&` and `<`."""
    if rb"\u00" in body or rb"\/" in body:
        body = _ESCAPE.sub(_unescape, body)
    return body.replace(_escaped(secret), b"***")


def _escaped(text: str) -> bytes:
    return json.dumps(text)[1:-1].encode()


def _unescape(escape: re.Match[bytes]) -> bytes:
    if escape[1] is not None:
        return _escaped(chr(int(escape[1], 16)))
    return b"/" if escape[0] == rb"\/" else escape[0]


def size_bytes_of(body: bytes) -> int:
    """An estimate of the bytes that a body takes as Python objects. Cheap, and never far too low."""
    return len(body) + VALUE_BYTES * _most_values(body)


def _most_values(body: bytes) -> int:
    return 1 + body.count(b",") + body.count(b"[") + body.count(b"{")


def read_json(body: bytes) -> Any:
    """Decode a body.

    Raises:
        BodyError: the body holds too many values.
        ValueError: the body is not JSON, or more than 200 levels deep.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK)
    # A value takes at least a byte, so most bodies need no counting.
    if len(body) > MAX_VALUES and _most_values(body) > MAX_VALUES:
        raise BodyError(f"holds more than {MAX_VALUES:,} values and was not read")
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:
        # A text that was cut within a character must not hide a page.
        fixed = _SURROGATES.sub(lambda match: rb"\ufffd" if match[1] else match[0], body)
        if fixed == body:
            raise
        return from_json(fixed, allow_inf_nan=False)


def rows_of(page: Any) -> list[Any]:
    """The rows of a decoded page.

    Raises:
        BodyError: there are too many rows.
        KeyError, TypeError: the page has no list of rows.
    """
    rows = page["data"]
    if not isinstance(rows, list):
        raise TypeError("the rows of a page are a list")
    if len(rows) > MAX_ROWS:
        raise BodyError(f"holds {len(rows):,} rows, more than {MAX_ROWS:,}")
    return rows


def to_storable(value: Any, depth: int = 0) -> Any:
    """A decoded value that Airflow's messages and databases can store, and read only as data.

    NUL characters are replaced (PostgreSQL refuses them). Numbers beyond 64 bits become floats, or None if even a float
    cannot hold them (Airflow's messages cannot). Levels below `MAX_DEPTH` are cut. Fields whose names begin with two
    underscores are left out: Airflow reads some of them as the name of a class to create.
    """
    match value:
        case str():
            return _storable_text(value)
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
                _storable_text(name): to_storable(one, depth + 1)
                for name, one in value.items()
                if not name.startswith("__")
            }
    raise TypeError(f"{type(value).__name__} does not come from JSON")


def _storable_text(value: str) -> str:
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _storable_number(value: float) -> float | None:
    if isinstance(value, int):
        if -_LARGEST_INTEGER <= value < _LARGEST_INTEGER:
            return value
        try:
            value = float(value)
        except OverflowError:
            return None
    return value if math.isfinite(value) else None
