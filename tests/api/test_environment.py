"""Proxies and CA certificates of the connection and of the environment: each works, or is refused by its name."""

from __future__ import annotations

import asyncio
import ssl
import sys

import httpx
import pytest
from frames import variables
from hostile import HostileServer, answering, response
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_agents.api import endpoints
from airflow_provider_agents.api.client import AsyncClient, Client
from airflow_provider_agents.api.environment import SOCKS_ERRORS, find_proxy, read_url
from airflow_provider_agents.api.errors import InvalidConnectionError, NotSentError
from airflow_provider_agents.api.settings import Settings

KEY = "sk-0123456789-secret"
READ = endpoints.list_agents(limit=1)
#: Nothing listens there.
NOWHERE = "127.0.0.1:1"
PROXY_VARIABLES = [
    name for kind in ("HTTP", "HTTPS", "ALL", "NO") for name in (f"{kind}_PROXY", f"{kind.lower()}_proxy")
]
VARIABLES = [*PROXY_VARIABLES, "SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE", "REQUEST_METHOD"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Sets the environment's variables; there are none of ours before."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def change(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


@pytest.fixture
def proxy():
    """A proxy that makes no tunnel."""
    server = HostileServer(answering(response(status="407 Proxy Authentication Required")))
    yield server
    server.close()


def send_blocking(made=None, **given):
    with Client(made or Settings(api_key=KEY, **given)) as client:
        return client.send_once(READ)


def send_on_a_loop(made=None, **given):
    async def send():
        async with await AsyncClient.open(made or Settings(api_key=KEY, **given)) as client:
            return await client.send_once(READ)

    return asyncio.run(send())


@pytest.fixture(params=[send_blocking, send_on_a_loop], ids=["sync", "async"])
def send(request):
    """Open one of the two clients and send one call."""
    return request.param


# --- each environment works, or is refused ---

PROXIES = [
    "",
    " ",
    f"http://{NOWHERE}",
    NOWHERE,
    f"https://{NOWHERE}",
    f"http://user:pass-word@{NOWHERE}",
    f"socks5://{NOWHERE}",
    f"socks5h://u:{'p' * 300}@{NOWHERE}",
    f"socks4://{NOWHERE}",
    f"ftp://{NOWHERE}",
    "http://127.0.0.1:port",
    "http://127.0.0.1:99999",
    "http://127.0.0.1:-1",
    "http://",
    "http://[::1",
    "http://[::1]:1",
    "http://a..b:1",
    "http://xn--a",
    f"http://{'x' * 64}.example",
    "http://p\udc80",
    "://",
    "{}",
]
EXEMPT = ["", "*", "localhost,[::1]", "10.0.0.0/8,fd00::/8", "127.0.0.1", "[", "http://[", "::::", ",,", ".", "a b"]
EXEMPT += ["*.", "\udc80", "127.0.0.1:port", "127.0.0.0/99", "http://127.0.0.1:99999", "xn--a"]
PATHS = ["", "FILE", "DIRECTORY", "GARBAGE", "EMPTY", "/missing", "a\udc80", f"/{'x' * 5000}", "/missing:DIRECTORY"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """What stands for a path in the tables above, each as a real one."""
    folder = tmp_path_factory.mktemp("ca")
    directory = folder / "directory"
    directory.mkdir()
    (folder / "empty.pem").touch()
    (folder / "garbage.pem").write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
    good = folder / "good.pem"
    # One certificate is enough, and is read in no time.
    whole = ssl.create_default_context().get_ca_certs(binary_form=True)
    good.write_text("".join(map(ssl.DER_cert_to_PEM_cert, whole[:1])))
    named = {"FILE": good, "DIRECTORY": directory, "GARBAGE": folder / "garbage.pem", "EMPTY": folder / "empty.pem"}

    def replace(text):
        for name, path in named.items():
            text = text.replace(name, str(path))
        return text

    return replace


@pytest.mark.parametrize("send", [send_blocking, send_on_a_loop], ids=["sync", "async"])
@settings(max_examples=100)
@given(data=st.data())
def test_any_environment_gives_a_client_or_an_error_that_names_the_cause(paths, send, data):
    values = st.fixed_dictionaries(
        {},
        optional={
            **{name: st.sampled_from(EXEMPT if "no_" in name.lower() else PROXIES) for name in PROXY_VARIABLES},
            "SSL_CERT_FILE": st.sampled_from(PATHS),
            "SSL_CERT_DIR": st.sampled_from(PATHS),
            "SSLKEYLOGFILE": st.sampled_from(["", "/missing/keys"]),
            "REQUEST_METHOD": st.just("GET"),
        },
    )
    chosen = {name: paths(value) for name, value in data.draw(values).items()}
    base_url = data.draw(st.sampled_from([f"https://{NOWHERE}", f"http://{NOWHERE}"]))
    extra = data.draw(st.none() | st.sampled_from(PROXIES))
    verify = data.draw(st.sampled_from([True, False, *PATHS[1:]]))
    verify = paths(verify) if isinstance(verify, str) else verify
    with pytest.MonkeyPatch.context() as patch:
        for name, value in chosen.items():
            patch.setenv(name, value)
        try:
            made = Settings(api_key=KEY, base_url=base_url, proxy=extra, verify=verify, allow_plain_http=True)
        except InvalidConnectionError:
            return
        with pytest.raises((InvalidConnectionError, NotSentError)) as caught:
            send(made)
    shown = "\n".join(variables(caught.value))
    assert KEY not in shown
    assert "pass-word" not in shown
    assert str(caught.value).isprintable()


REFUSED = [
    ({"HTTPS_PROXY": "http://proxy.corp:port"}, "environment variable HTTPS_PROXY is not the URL of a proxy"),
    ({"https_proxy": "http://proxy.corp:port"}, "environment variable https_proxy is not the URL of a proxy"),
    ({"HTTPS_PROXY": "http://good.example", "https_proxy": "ftp://x"}, "environment variable https_proxy is not"),
    ({"ALL_PROXY": "ftp://proxy.corp:3128"}, "environment variable ALL_PROXY is not the URL of a proxy"),
    ({"SSL_CERT_FILE": "/missing/ca.pem"}, "SSL_CERT_FILE names the CA bundle '/missing/ca.pem', which cannot be read"),
    ({"SSL_CERT_DIR": "/missing"}, "SSL_CERT_DIR names the CA bundle '/missing', which cannot be read"),
    ({"SSL_CERT_FILE": "GARBAGE"}, "environment variable SSL_CERT_FILE names the CA bundle .* cannot be read"),
    ({"SSL_CERT_FILE": "EMPTY"}, "environment variable SSL_CERT_FILE names the CA bundle .* cannot be read"),
    ({"SSLKEYLOGFILE": "/missing/keys"}, "environment variable SSLKEYLOGFILE names a file that cannot be written"),
]


@pytest.mark.parametrize(("chosen", "words"), REFUSED)
def test_a_variable_that_cannot_be_used_is_named_with_what_to_do(environment, paths, send, chosen, words):
    environment({name: paths(value) for name, value in chosen.items()})
    with pytest.raises(InvalidConnectionError, match=words) as caught:
        send(base_url=f"https://{NOWHERE}")
    assert str(caught.value).count(". ") >= 1


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize("by", ["ALL_PROXY", "extra"])
def test_a_socks_proxy_without_its_package_says_what_to_install(environment, monkeypatch, send, scheme, by):
    monkeypatch.setitem(sys.modules, "socksio", None)
    url = f"{scheme}://user:pass-word@127.0.0.1:1080"
    environment({by: url} if by != "extra" else {})
    with pytest.raises(InvalidConnectionError, match=r"pip install 'airflow-provider-agents\[socks\]'") as caught:
        send(base_url=f"https://{NOWHERE}", proxy=url if by == "extra" else None)
    assert by in str(caught.value)
    assert "pass-word" not in str(caught.value)


@pytest.mark.skipif(not SOCKS_ERRORS, reason="needs the package socksio")
def test_a_socks_proxy_that_speaks_something_else_is_no_connection():
    def fail(request):
        raise SOCKS_ERRORS[0]("Malformed reply")

    # Not over a socket: httpcore leaves that open, and a warning is an error here.
    with (
        Client(Settings(api_key=KEY), transport=httpx.MockTransport(fail)) as client,
        pytest.raises(NotSentError, match="Malformed reply"),
    ):
        client.send_once(READ)


# --- a proxy that is in use is named when it fails ---


@pytest.mark.parametrize("base_url", [f"https://{NOWHERE}", f"http://{NOWHERE}"])
@pytest.mark.parametrize("by", ["HTTPS_PROXY", "extra proxy"])
def test_a_proxy_that_wants_a_password_is_named(environment, proxy, send, base_url, by):
    url = f"http://user:pass-word@127.0.0.1:{proxy.port}"
    environment({"HTTPS_PROXY": url, "HTTP_PROXY": url} if by == "HTTPS_PROXY" else {})
    with pytest.raises(NotSentError) as caught:
        send(base_url=base_url, proxy=None if by == "HTTPS_PROXY" else url, allow_plain_http=True)
    message = str(caught.value)
    assert f"No connection to {NOWHERE} through the proxy 127.0.0.1:{proxy.port} (407" in message
    assert by.replace("HTTPS", "HTTPS" if base_url.startswith("https") else "HTTP") in message
    assert f"http://USER:PASSWORD@127.0.0.1:{proxy.port}" in message
    assert "pass-word" not in "\n".join(variables(caught.value))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"HTTPS_PROXY": NOWHERE}, "HTTPS_PROXY names this proxy: check it, or list the API's host in NO_PROXY"),
        ({"all_proxy": f"http://u:pass-word@{NOWHERE}"}, "environment variable all_proxy names this proxy"),
        ({}, "The connection's extra proxy names this proxy: check it"),
    ],
)
def test_a_proxy_that_cannot_be_reached_is_named(environment, send, chosen, words):
    environment(chosen)
    with pytest.raises(NotSentError, match=words) as caught:
        send(base_url="https://api.example", proxy=None if chosen else f"http://u:pass-word@{NOWHERE}")
    assert f"No connection to api.example:443 through the proxy {NOWHERE}" in str(caught.value)
    assert "pass-word" not in "\n".join(variables(caught.value))


def test_without_a_proxy_the_port_that_nothing_listens_at_is_named(send):
    with pytest.raises(NotSentError, match=r"No connection to 127.0.0.1:1 .*host and port"):
        send(base_url=f"http://{NOWHERE}")


# --- which hosts go without the environment's proxy ---


@pytest.mark.parametrize(
    ("no_proxy", "base_url", "direct"),
    [
        ("*", "https://api.example", True),
        ("other.example, *", "https://api.example", True),
        ("api.example", "https://api.example", True),
        ("API.example", "https://api.Example", True),
        ("example", "https://api.example", True),
        (".example", "https://api.example", True),
        ("*.example", "https://api.example", True),
        (".api.example", "https://api.example", True),
        ("pi.example", "https://api.example", False),
        ("api.example.org", "https://api.example", False),
        ("api.example:443", "https://api.example", True),
        ("api.example:8443", "https://api.example", False),
        ("https://api.example", "https://api.example", True),
        ("http://api.example", "https://api.example", False),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.1.2.3/8", "https://10.9.9.9", True),
        ("10.1.2.3", "https://10.1.2.3:8443", True),
        ("fd00::/8", "https://[fd12::1]", True),
        ("::1", "https://[::1]", True),
        ("[::1]", "https://[::1]:8443", True),
        ("[::1]:8443", "https://[::1]:8443", True),
        ("[::1]:443", "https://[::1]:8443", False),
        ("localhost,[::1]", "https://api.example", False),
        ("localhost 127.0.0.1", "https://127.0.0.1", True),
        ("", "https://api.example", False),
    ],
)
@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_no_proxy_lists_names_addresses_and_networks(environment, no_proxy, base_url, direct, variable):
    environment({"HTTPS_PROXY": "http://proxy.example:3128", variable: no_proxy})
    found = find_proxy(httpx.URL(base_url), None, trust_environment=True)
    assert (found is None) == direct


@pytest.mark.parametrize(
    ("chosen", "address"),
    [
        ({"HTTPS_PROXY": "http://a:1", "ALL_PROXY": "http://b:2"}, "a:1"),
        ({"HTTP_PROXY": "http://a:1", "ALL_PROXY": "http://b:2"}, "b:2"),
        ({"HTTP_PROXY": "http://a:1"}, None),
        ({"HTTPS_PROXY": "a"}, "a:80"),
        ({"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:2"}, "b:2"),
        ({"HTTPS_PROXY": "http://a:1", "https_proxy": ""}, None),
        ({"HTTPS_PROXY": " "}, None),
        ({"HTTPS_PROXY": "http://[::1]:3128"}, "[::1]:3128"),
    ],
)
def test_the_environments_proxy_is_the_one_for_the_scheme_or_for_all(environment, chosen, address):
    environment(chosen)
    found = find_proxy(httpx.URL("https://api.example"), None, trust_environment=True)
    assert (found.address if found is not None else None) == address


def test_the_connections_own_proxy_comes_before_the_environments(environment):
    environment({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "*"})
    found = find_proxy(httpx.URL("https://api.example"), "http://b:2", trust_environment=True)
    assert found.address == "b:2"


# --- CA certificates ---


@pytest.mark.parametrize(
    "chosen",
    [
        {"SSL_CERT_FILE": "FILE"},
        {"SSL_CERT_FILE": "DIRECTORY"},
        {"SSL_CERT_DIR": "DIRECTORY"},
        {"SSL_CERT_DIR": "/missing:DIRECTORY"},
    ],
)
def test_the_environments_ca_certificates_are_used(environment, paths, chosen):
    environment({name: paths(value) for name, value in chosen.items()})
    context = Settings(api_key=KEY).tls_context()
    assert context.verify_mode == ssl.CERT_REQUIRED
    # Those of a directory are read when they are needed.
    assert len(context.get_ca_certs()) == (1 if chosen == {"SSL_CERT_FILE": "FILE"} else 0)


def test_the_connections_ca_bundle_comes_before_the_environments(environment, paths):
    environment({"SSL_CERT_FILE": "/missing"})
    assert len(Settings(api_key=KEY, verify=paths("FILE")).tls_context().get_ca_certs()) == 1


def test_without_tls_no_ca_bundle_is_read(environment):
    environment({"SSL_CERT_FILE": "/missing"})
    assert Settings(api_key=KEY, base_url="http://127.0.0.1").tls_context().verify_mode == ssl.CERT_NONE
    assert Settings(api_key=KEY, verify=False).tls_context().verify_mode == ssl.CERT_NONE


@pytest.mark.parametrize("text", ["", "https:", "https://h", "https://h:65535", "https://[::1]:1", "https://a_b.c."])
def test_a_url_that_a_connection_can_be_made_to_is_read(text):
    assert str(read_url(text)) == text


NO_URLS = [None, 7, b"https://h", "https://[::1", "https://h:99999", "https://h:-1", "https://h:port", "https://a..b"]
NO_URLS += ["https://" + "x" * 64, "https://xn--a", "https://a b", "https://a%41", "https://a\\b", "https://\udc80"]


@pytest.mark.parametrize("text", NO_URLS)
def test_a_url_that_no_connection_can_be_made_to_is_none(text):
    assert read_url(text) is None
