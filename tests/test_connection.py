"""From an Airflow connection to settings: each form that works, and each that does not is named without its key."""

from __future__ import annotations

import asyncio
import json
import threading
from urllib.parse import quote

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from conftest import connection
from frames import variables
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_agents.api.errors import InvalidConnectionError, MissingConnectionError
from airflow_provider_agents.connection import aread_settings, read_settings
from airflow_provider_agents.hooks import AgentsHook

VARIABLE = "AIRFLOW_CONN_AGENTS_DEFAULT"


@pytest.fixture
def connected(monkeypatch):
    def connect(value, conn_id="agents_default"):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", value)
        return AgentsHook(conn_id)

    return connect


def test_the_shortest_connection_is_the_key_alone(connected):
    settings = connected("agents://:KEY-0123@").settings()
    assert settings.api_key == "KEY-0123"
    assert settings.base_url == "https://api.uragents.ai"
    assert settings.timeout_seconds == 30


def test_a_uri_may_name_a_whole_base_url(connected):
    settings = connected("agents://:KEY@https%3A%2F%2Fgateway.example%2Fagents").settings()
    assert settings.base_url == "https://gateway.example/agents"


def test_a_port_of_its_own_is_part_of_the_base_url(connected):
    value = {"conn_type": "agents", "password": "KEY", "host": "https://gateway.example", "port": 8443}
    assert connected(json.dumps(value)).settings().base_url == "https://gateway.example:8443"
    value["host"] = "https://gateway.example/agents"
    assert connected(json.dumps(value)).settings().base_url == "https://gateway.example:8443/agents"
    value["host"] = ""
    assert connected(json.dumps(value)).settings().base_url == "https://api.uragents.ai:8443"
    value["host"] = "https://gateway.example:8443"
    assert connected(json.dumps(value)).settings().base_url == "https://gateway.example:8443"


def test_two_ports_that_differ_are_refused(connected):
    value = {"conn_type": "agents", "password": "KEY", "host": "https://gateway.example:8443", "port": 443}
    with pytest.raises(InvalidConnectionError, match="Leave one of the two out"):
        connected(json.dumps(value)).settings()


@pytest.mark.parametrize("host", ["gateway.example", "https://gateway.example:port", "https://[::1"])
def test_a_host_that_is_no_url_is_told_whatever_the_port(connected, host):
    value = {"conn_type": "agents", "password": "KEY", "host": host, "port": 443}
    with pytest.raises(InvalidConnectionError, match="no scheme|not a URL"):
        connected(json.dumps(value)).settings()


@pytest.mark.parametrize("field", ["timeout", "max_requests_per_second", "auth_header", "verify", "run_url"])
@pytest.mark.parametrize("separator", ["\\", ";", " ", "&amp;"])
def test_a_value_that_runs_on_into_a_proxy_is_refused_without_its_password(connected, field, separator):
    text = f"agents://:KEY@?{field}=x{separator}proxy={quote('http://user:secret@p.example', safe='')}"
    with pytest.raises(InvalidConnectionError, match=field) as raised:
        connected(text).settings()
    assert "secret" not in str(raised.value)


def test_extras_are_read_as_a_form_or_a_uri_writes_them(connected, tmp_path):
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    value = connection(
        "https://gateway.example", auth_header="X-Api-Key", timeout="12.5", verify=str(bundle), proxy="", run_url=None
    )
    settings = connected(value).settings()
    assert (settings.auth_header, settings.timeout_seconds, settings.verify) == ("X-Api-Key", 12.5, str(bundle))
    assert settings.proxy is None
    assert connected(connection("https://gateway.example", verify="False")).settings().verify is False
    assert connected(connection("http://gateway.example", allow_plain_http="true")).settings().allow_plain_http


def test_what_the_platform_is_like_is_read_and_is_unknown_by_default(connected):
    settings = connected(connection("https://gateway.example", settle="2.5", appear_within=60, exclusive="True"))
    found = settings.settings()
    assert (found.settle, found.appear_within, found.exclusive) == (2.5, 60.0, True)
    plain = connected(connection("https://gateway.example", settle="", exclusive=None)).settings()
    assert (plain.settle, plain.appear_within, plain.exclusive) == (None, None, None)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"timeout": "soon"}, "timeout must be a number"),
        ({"timeout": []}, "timeout must be a number"),
        ({"verify": 7}, "verify must be true, false"),
        ({"verify": "/no/such/file"}, "does not exist"),
        ({"allow_plain_http": "perhaps"}, "allow_plain_http must be true or false"),
        ({"auth_header": "Cookie"}, "auth_header must be one of"),
        ({"auth_header": ["X-Api-Key"]}, "auth_header must be one of"),
        ({"proxy": "nonsense"}, "proxy is not the URL"),
        ({"run_url": "javascript:alert(1)"}, "run_url must be an http"),
        ({"settle": "soon"}, "settle must be a number of seconds above 0 and at most 86400, got 'soon'"),
        ({"settle": 0}, "settle must be a number"),
        ({"settle": True}, "settle must be a number"),
        ({"appear_within": -1}, "appear_within must be a number"),
        ({"appear_within": 1e300}, "appear_within must be a number"),
        ({"exclusive": "perhaps"}, "exclusive must be true or false"),
        ({"settle": 60, "appear_within": 30}, r"appear_within \(30 s\) must be at least its settle \(60 s\)"),
    ],
)
def test_an_extra_that_cannot_work_is_named(connected, extra, words):
    with pytest.raises(InvalidConnectionError, match=words):
        connected(connection("https://gateway.example", **extra)).settings()


@pytest.mark.parametrize("extra", ["[]", "{", '"text"', "7"])
def test_an_extra_that_is_no_object_is_not_taken_for_an_empty_one(connected, extra):
    value = json.dumps({"conn_type": "agents", "password": "KEY", "extra": extra})
    with pytest.raises(InvalidConnectionError, match="extra is not a JSON object|cannot be read"):
        connected(value).settings()


def test_a_schema_is_refused_rather_than_ignored(connected):
    with pytest.raises(InvalidConnectionError, match="Put a path into the host itself"):
        connected("agents://:KEY@gateway.example/path").settings()


def test_a_connection_that_is_not_there_says_how_to_make_one():
    with pytest.raises(InvalidConnectionError, match="AIRFLOW_CONN_NOT_THERE='agents://:KEY@'"):
        AgentsHook("not_there").settings()


def test_a_uri_that_airflow_cannot_read_does_not_bring_its_key_into_the_message(connected):
    with pytest.raises(InvalidConnectionError) as caught:
        connected("agents://:sk-geheim@https://a://b").settings()
    assert "geheim" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


# --- a connection that Airflow cannot read ---

#: Keys that a URI cannot hold as they are; each of them is one in JSON, and percent-encoded in a URI.
RESERVED = [
    "sk/0123456789",
    "sk?0123456789",
    "sk#0123456789",
    "sk[0123456789",
    "123/sk456789",
    "123?sk456789",
    "123#sk456789",
]
RESERVED += ["/sk0123456789", "?sk0123456789", "#sk0123456789", "sk@01/23456789", "sk@01?23456789", "sk@01#23456789"]
RESERVED += ["sk@/01?x=23456789", "sk@?xyzzy=23456789"]


@pytest.mark.parametrize("key", RESERVED)
def test_a_key_that_a_uri_cannot_hold_is_explained_and_not_shown(connected, key):
    with pytest.raises(InvalidConnectionError, match="percent-encode|not known|has no scheme") as caught:
        connected(f"agents://:{key}@").settings()
    assert not isinstance(caught.value, MissingConnectionError)
    for piece in ("0123456789", "23456789", "456789", "xyzzy"):
        assert piece not in str(caught.value)
    assert connected(f"agents://:{quote(key, safe='')}@").settings().api_key == key
    assert connected(json.dumps({"conn_type": "agents", "password": key})).settings().api_key == key


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("agents://:KEY@https://gateway.example", "AIRFLOW_CONN_AGENTS_DEFAULT: it is not a URI"),
        ("agents://:KEY@https%3A%2F%2Fgateway.example:port", "a port is a number"),
        ("agents://:KEY@?run_url=https://app.example", "percent-encode"),
        ("//[", "it is not a URI"),
        ("{", "it is not JSON at line 1, column 2"),
        (
            '{"conn_type": "agents",\n"password": "KEY",}',
            "it is not JSON at line 2, column 2",
        ),  # Python versions differ by one
        ("{'password': 'KEY'}", "it is not JSON at line 1, column 2"),
        ("{" + '"a":[' * 100_000, "it is not JSON"),
        (
            '{"conn_type": "agents", "passwrod": "KEY"}',
            r"a field 'passwrod' that is not known .did you mean 'password'",
        ),
        ('{"conn_type": "agents", "api_key": "KEY"}', "a field 'api_key' that is not known"),
        ('{"conn_type": "agents", "sk-0123456789": "x"}', "has a field that is not known"),
        ('{"conn_type": "agents", "password": 1234567890}', "its password is not text"),
        ('{"conn_type": "agents", "password": "KEY", "host": ["x"]}', "its host is not text"),
        ('{"conn_type": 7, "password": "KEY"}', "its conn_type is not text"),
        ('{"conn_type": "agents", "password": "KEY", "port": "abc"}', "its port is not a number"),
    ],
)
def test_a_variable_that_airflow_cannot_read_is_named_with_the_right_form(connected, value, words):
    value = value.replace("KEY", "sk-0123456789")
    with pytest.raises(InvalidConnectionError, match=words) as caught:
        connected(value).settings()
    assert not isinstance(caught.value, MissingConnectionError)
    assert "cannot be read from the environment variable" in str(caught.value)
    assert '{"conn_type": "agents", "password": "KEY"}' in str(caught.value)
    assert "0123456789" not in "\n".join(variables(caught.value))


def test_a_variable_in_lower_case_is_found(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_my_agents", "agents://:sk-0123456789@")
    with pytest.raises(InvalidConnectionError, match="Rename it to AIRFLOW_CONN_MY_AGENTS"):
        AgentsHook("my_agents").settings()


@pytest.mark.parametrize(
    "value",
    [
        "agents://:sk-0123456789@",
        "agents://https://:sk-0123456789@gateway.example:8443",
        "agents://:sk-0123456789@https%3A%2F%2Fgateway.example:8443?timeout=3",
        connection("https://gateway.example", "sk-0123456789"),
        '{"password": "sk-0123456789", "port": "8443"}',
    ],
)
def test_a_variable_in_order_is_not_blamed_for_a_look_up_that_fails(connected, monkeypatch, value):
    def not_found(conn_id):
        raise AirflowNotFoundException(value)

    hook = connected(value)
    assert hook.settings().api_key == "sk-0123456789"
    hook = AgentsHook()
    monkeypatch.setattr(hook, "get_connection", not_found, raising=False)
    with pytest.raises(MissingConnectionError, match="does not exist, or cannot be read"):
        hook.settings()


def test_a_look_up_that_fails_otherwise_may_pass(monkeypatch):
    class DeniedError(PermissionError):
        pass

    def deny(conn_id):
        secret = "sk-0123456789"
        raise DeniedError(secret)

    hook = AgentsHook("not_there")
    monkeypatch.setattr(hook, "get_connection", deny, raising=False)
    with pytest.raises(
        MissingConnectionError, match=r"failed to look up the connection 'not_there' \(DeniedError\)"
    ) as caught:
        hook.settings()
    assert "sk-0123456789" not in "\n".join(variables(caught.value))


# --- a connection that means something else ---


@pytest.mark.parametrize("conn_type", ["http", "generic", "Agents", "agent"])
def test_another_type_is_refused_by_its_name(connected, conn_type):
    value = {"conn_type": conn_type, "password": "sk-0123456789", "host": "https://gateway.example"}
    with pytest.raises(InvalidConnectionError, match=f"another type, '{conn_type}'. Set its type to Agents"):
        connected(json.dumps(value)).settings()


def test_a_type_that_can_be_the_beginning_of_a_bare_key_is_not_shown(connected):
    with pytest.raises(InvalidConnectionError, match="another type") as caught:
        connected("sk0123456789:secret").settings()
    assert "sk0123456789" not in "\n".join(variables(caught.value))


def test_a_connection_without_a_type_is_taken(connected):
    assert connected('{"password": "sk-0123456789"}').settings().api_key == "sk-0123456789"


@pytest.mark.parametrize("port", [-5, 65536, 99999999])
def test_a_port_that_is_none_is_named(connected, port):
    value = {"conn_type": "agents", "password": "sk-0123456789", "port": port}
    with pytest.raises(InvalidConnectionError, match=f"port must be from 1 to 65535, got {port}"):
        connected(json.dumps(value)).settings()


# --- extras that are not known ---


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run_ulr", "a field 'run_ulr' that is not known .did you mean 'run_url'"),
        ("Timeout", "did you mean 'timeout'"),
        ("allow_plain_htpp", "did you mean 'allow_plain_http'"),
        ("proxies", "did you mean 'proxy'"),
        ("extra__agents__verfiy", "did you mean 'verify'"),
        ("region", "a field 'region' that is not known"),
        ("sk-0123456789", "has a field that is not known"),
        ("x" * 1000, "has a field that is not known"),
    ],
)
def test_an_extra_that_is_not_known_is_refused(connected, name, words):
    with pytest.raises(InvalidConnectionError, match=words) as caught:
        connected(connection("https://gateway.example", **{name: "x"})).settings()
    assert "Its fields are auth_header, timeout" in str(caught.value)
    assert "sk-0123456789" not in str(caught.value)


def test_a_name_that_was_meant_otherwise_is_reported_before_what_comes_of_it(connected):
    with pytest.raises(InvalidConnectionError, match="did you mean 'allow_plain_http'"):
        connected(connection("http://gateway.example", allow_plain_htpp=True)).settings()


@pytest.mark.parametrize(
    "extra",
    [
        {"region": None},
        {"run_ulr": None},
        {"timeout": ""},
        {"_note": "of the platform team"},
        {"__meta": {"made_by": "a tool"}},
        {"extra__agents__proxy": ""},
    ],
)
def test_what_says_nothing_or_is_a_note_is_left_alone(connected, extra):
    assert connected(connection("https://gateway.example", **extra)).settings().timeout_seconds == 30


def test_the_names_of_older_forms_are_read_as_the_plain_ones(connected):
    assert connected(connection("https://gateway.example", extra__agents__timeout="7")).settings().timeout_seconds == 7
    twice = {"timeout": 7, "extra__agents__timeout": 7}
    assert connected(connection("https://gateway.example", **twice)).settings().timeout_seconds == 7
    twice["timeout"] = 8
    with pytest.raises(InvalidConnectionError, match="both timeout and extra__agents__timeout"):
        connected(connection("https://gateway.example", **twice)).settings()


# --- whatever it is ---

KEY = "sk-0123456789-secret"
PIECES = st.sampled_from(
    ["agents", ":", "/", "//", "://", "@", "?", "#", "[", "]", "%", "%2F", "=", "&", "{", '"', KEY, "h"]
)


@given(
    st.lists(PIECES, max_size=12).map("".join)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
)
def test_no_text_is_anything_but_settings_or_an_error_without_the_key(value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, value)
        blocking, on_a_loop = outcome(AgentsHook().settings), asyncio.run(aread_settings("agents_default"))
    assert type(blocking) is type(on_a_loop)
    if isinstance(blocking, InvalidConnectionError):
        assert str(blocking) == str(on_a_loop)
        assert KEY not in "\n".join([*variables(blocking), *variables(on_a_loop)])
        assert str(blocking).isprintable()


def outcome(read):
    try:
        return read()
    except InvalidConnectionError as error:
        return error


def test_a_look_up_that_hangs_on_a_worker_is_given_up_and_can_be_repeated():
    answered = threading.Event()

    def hang(_conn_id):
        answered.wait()
        raise AssertionError("nobody reads this")

    try:
        found = read_settings("agents_default", hang, within_seconds=0.01)
    finally:
        answered.set()
    assert isinstance(found, MissingConnectionError)
    assert found.is_retryable
    assert "(TimeoutError)" in str(found)
