"""What an answer may be made of: bounded, without the key, and nothing that Airflow cannot keep."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
import zlib

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic_core import from_json

from airflow_provider_agents.api.body import (
    MAX_BODY_BYTES,
    MAX_DEPTH,
    MAX_ERROR_BYTES,
    MAX_MEMBERS,
    MAX_ROWS,
    MAX_VALUES,
    BodyDecoder,
    BodyError,
    read_json,
    redact,
    rows_of,
    size_bytes_of,
    to_storable,
)

try:
    from airflow.sdk import serde
except ImportError:  # Airflow before 3.2
    from airflow.serialization import serde


def take(data, encoding=None, *, is_success=True, chunk=65536):
    decoder = BodyDecoder(encoding, is_success=is_success)
    for start in range(0, len(data), chunk):
        decoder.add(data[start : start + chunk])
        if decoder.is_full:
            break
    return decoder.finish()


def without_zlibs_header(data):
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(data) + deflate.flush()


#: What a header says, and how a server makes what it says so.
CODINGS = [(encoding, bytes) for encoding in (None, "", "identity", " Identity ,", ",")]
CODINGS += [(encoding, gzip.compress) for encoding in ("gzip", "X-GZIP", "gzip, identity", "identity,gzip", "gzip,")]
CODINGS += [(encoding, zlib.compress) for encoding in ("deflate", "Deflate, identity")]
CODINGS += [("deflate", without_zlibs_header)]


@given(st.binary(max_size=3000), st.sampled_from(CODINGS), st.integers(1, 500))
def test_a_body_comes_out_as_it_was_whatever_its_chunks(data, coding, chunk):
    encoding, encode = coding
    assert take(encode(data), encoding, chunk=chunk) == data


@given(st.lists(st.binary(max_size=300), min_size=1), st.binary(max_size=20), st.integers(1, 100))
def test_gzip_in_several_members_comes_out_as_one_body_whatever_follows_the_last(parts, rest, chunk):
    assume(not rest.startswith(b"\x1f\x8b\x08"))
    assert take(b"".join(map(gzip.compress, parts)) + rest, "gzip", chunk=chunk) == b"".join(parts)


@pytest.mark.parametrize("rest", [b"\x1f", b"\x1f\x8b", b"\0\0\0", b"\r\n"])
def test_what_only_looks_like_another_member_is_ignored(rest):
    assert take(gzip.compress(b"{}") + rest, "gzip") == b"{}"


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_second_member_that_is_cut_short_is_a_damaged_body(cut):
    with pytest.raises(BodyError, match="damaged content encoding"):
        take(gzip.compress(b"{}") + gzip.compress(b" " * 1000)[:-cut], "gzip")


@pytest.mark.parametrize("chunk", [1000, 65536, 10**9])
def test_several_members_count_against_the_same_bound(chunk):
    part = gzip.compress(bytes(MAX_BODY_BYTES // 4))
    assert len(take(part * 4, "gzip", chunk=chunk)) == MAX_BODY_BYTES
    with pytest.raises(BodyError, match="larger than"):
        take(part * 4 + gzip.compress(b"x"), "gzip", chunk=chunk)
    assert len(take(part * 5, "gzip", chunk=chunk, is_success=False)) == MAX_ERROR_BYTES + 1


def test_members_without_end_are_refused_before_they_cost_much_time():
    empty = gzip.compress(b"")
    assert take(empty * MAX_MEMBERS, "gzip") == b""
    began_at = time.process_time()
    with pytest.raises(BodyError, match="damaged content encoding"):
        take(empty * (MAX_BODY_BYTES // len(empty)), "gzip", chunk=10**9)
    # The time of one answer that is stated for hostile ones.
    assert time.process_time() - began_at < 2.0


def test_a_body_of_the_stated_size_is_taken_and_one_byte_more_is_not():
    assert len(take(bytes(MAX_BODY_BYTES))) == MAX_BODY_BYTES
    with pytest.raises(BodyError, match="larger than"):
        take(bytes(MAX_BODY_BYTES + 1))


@pytest.mark.parametrize("chunk", [100, 10**9])
def test_a_gzip_bomb_costs_no_more_memory_than_the_bound(chunk):
    bomb = gzip.compress(bytes(16 * MAX_BODY_BYTES), 1)
    tracemalloc.start()
    try:
        with pytest.raises(BodyError, match="larger than"):
            take(bomb, "gzip", chunk=chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MAX_BODY_BYTES


def test_compressed_bytes_that_come_to_nothing_are_bounded_too():
    nothing = zlib.compressobj(wbits=31)
    empty_blocks = nothing.flush(zlib.Z_FULL_FLUSH) + b"\0\0\0\xff\xff" * (MAX_BODY_BYTES // 5)
    with pytest.raises(BodyError, match="larger than"):
        take(empty_blocks, "gzip")


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, deflate", "\x1b[31m"])
def test_an_encoding_that_was_not_asked_for_is_refused(encoding):
    with pytest.raises(BodyError, match="not asked for"):
        take(b"{}", encoding)


# With names: gzip's bytes hold the time, and the processes in which the tests run must see the same tests.
@pytest.mark.parametrize("damaged", [b"no gzip", gzip.compress(b"x" * 1000)[:-10]], ids=["not gzip", "cut short"])
def test_a_damaged_encoding_is_refused(damaged):
    with pytest.raises(BodyError, match="damaged content encoding"):
        take(damaged, "gzip")


@pytest.mark.parametrize("encoding", ["br", "gzip", "deflate", "gzip, gzip", None])
def test_no_damage_of_an_error_body_hides_the_status_and_only_its_beginning_is_read(encoding):
    assert len(take(b"<" * 10**7, encoding, is_success=False)) <= MAX_ERROR_BYTES + 1


# --- the key ---

# Not with a digit at first: some of that could be the last ones of an escape before it.
KEYS = st.builds(
    "{}{}".format,
    st.sampled_from("sk-_/+=~<&"),
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="*"), min_size=7, max_size=20),
)


@st.composite
def spelled(draw, text):
    """A text as JSON, each of its characters in any of the ways that JSON allows."""
    ways = []
    for character in text:
        plain = json.dumps(character)[1:-1]
        choices = [plain, f"\\u{ord(character):04x}", f"\\u{ord(character):04X}"]
        ways.append(draw(st.sampled_from([*choices, r"\/"] if character == "/" else choices)))
    return "".join(ways)


@given(st.data(), KEYS, st.text(max_size=10), st.text(max_size=10))
def test_no_spelling_brings_the_key_through(data, key, before, after):
    sent = f'{{"error": {json.dumps(before)[:-1]}{data.draw(spelled(key))}{json.dumps(after)[1:]}}}'
    assert key in from_json(sent.encode())["error"]
    assert key not in from_json(redact(sent.encode(), key))["error"]


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=10), KEYS)
def test_what_does_not_hold_the_key_means_the_same_afterwards(value, key):
    assume(json.dumps(key)[1:-1] not in json.dumps(value))
    for sent in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert from_json(redact(sent.encode(), key)) == value


# --- JSON ---


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (rb'"cut \ud83d"', "cut \ufffd"),
        (rb'"\uDE00 cut"', "\ufffd cut"),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"\ud83d\ud83d\ude00\ude00"', "\ufffd\U0001f600\ufffd"),
        (rb'"\\ud83d \ud83d"', "\\ud83d \ufffd"),
        (rb'{"\ud83d": "\ud83dx"}', {"\ufffd": "\ufffdx"}),
    ],
)
def test_half_a_character_does_not_hide_a_page(sent, read):
    assert read_json(sent) == read


def test_a_byte_order_mark_before_json_is_no_part_of_it():
    assert read_json(b"\xef\xbb\xbf" + b'{"data": "\\ud83d"}') == {"data": "\ufffd"}
    assert read_json(b'"\xef\xbb\xbf"') == "\ufeff"


@pytest.mark.parametrize("damaged", [rb'"\ud83d', rb'["\ud83d",]', rb"\ud83d", rb'"\ud8'])
def test_what_is_damaged_otherwise_stays_unreadable(damaged):
    with pytest.raises(ValueError, match="line 1"):
        read_json(damaged)


@pytest.mark.parametrize("dense", [b"[]", b"{}", b"0", b'""'])
def test_more_values_than_stated_are_not_decoded(dense):
    with pytest.raises(BodyError, match="more than 500,000 values"):
        read_json(b"[" + b",".join([dense] * MAX_VALUES) + b"]")


@given(
    st.recursive(st.none() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_a_weight_is_about_what_a_value_takes(value):
    def count(value):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + sum(map(count, inner))

    assert size_bytes_of(json.dumps(value).encode()) >= 64 * count(value)


def test_a_page_of_more_rows_than_stated_is_refused():
    assert len(rows_of({"data": [{}] * MAX_ROWS})) == MAX_ROWS
    with pytest.raises(BodyError, match="1,001 rows"):
        rows_of({"data": [{}] * (MAX_ROWS + 1)})


# --- what Airflow keeps ---

NAMES = st.text(max_size=5) | st.sampled_from(["__type", "__var", "__classname__", "__version__", "__data__", "__id__"])
SENT = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["\0", 10**400, -(2**63) - 1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=15,
)


@given(SENT)
def test_whatever_was_sent_passes_airflows_messages_and_databases(sent):
    kept = to_storable(sent)
    assert b"\\u0000" not in json.dumps(kept, allow_nan=False).encode()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(kept)) == kept
    assert serde.deserialize(serde.serialize(kept)) == kept
    assert to_storable(kept) == kept


@pytest.mark.parametrize(
    "sent",
    [
        {"__type": "airflow.sdk.definitions.connection.Connection", "__var": {"conn_id": "x"}},
        {"__classname__": "airflow.sdk.definitions.connection.Connection", "__version__": 0, "__data__": {}},
    ],
)
def test_an_answer_makes_no_object_of_a_class_that_it_names(sent):
    assert serde.deserialize(serde.serialize(to_storable({"error": sent}))) == {"error": {}}


def test_an_ordinary_value_is_kept_as_it_is():
    sent = {"id": "evt-1", "n": [1, 2.5, -3, True, None, 2**63 - 1], "nested": {"text": "ä\n\x1b[0m"}}
    assert to_storable(sent) == sent


def test_what_is_nested_too_deeply_is_cut():
    value = 1
    for _ in range(190):
        value = [value]
    kept, depth = to_storable(value), 0
    while isinstance(kept, list):
        (kept,), depth = kept, depth + 1
    assert (kept, depth) == ("…", MAX_DEPTH)
