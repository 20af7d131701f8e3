"""Which settings are taken, and what is said of those that are not."""

from __future__ import annotations

import ssl

import pytest

from airflow_provider_agents.api.errors import InvalidConnectionError
from airflow_provider_agents.api.settings import Settings, is_loopback

KEY = "sk-0123456789-secret"


def test_the_settings_do_not_show_the_key_or_the_proxys_password():
    settings = Settings(api_key=KEY, proxy="http://user:geheim@proxy.example:3128")
    assert KEY not in repr(settings)
    assert "geheim" not in repr(settings)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"api_key": ""}, "no API key"),
        ({"api_key": "***"}, "only asterisks"),
        ({"api_key": "sk-1\n"}, "white space"),
        ({"api_key": "Bearer sk-1"}, "begins with the word Bearer"),
        ({"api_key": "bearer\tsk-1"}, "begins with the word Bearer"),
        ({"api_key": "Bearer:sk-1"}, "begins with the word Bearer"),
        ({"api_key": "schlüssel"}, "no HTTP header"),
        ({"base_url": "api.uragents.ai"}, "has no scheme"),
        ({"base_url": "ftp://api.uragents.ai"}, r"not an http\(s\) URL"),
        ({"base_url": "https://"}, "not an http"),
        ({"base_url": "https://[::1"}, "not a URL"),
        ({"base_url": "https://api.example:99999"}, "not a URL"),
        ({"base_url": f"https://{'x' * 64}.example"}, "not a URL"),
        ({"base_url": "https://a..b"}, "not a URL"),
        ({"base_url": "https://api.example/v1"}, "ends in the path of the API itself, /v1"),
        ({"base_url": "https://api.example/agents/v1//"}, "ends in the path of the API itself, /v1"),
        ({"base_url": "https://api.example/v1/agents/"}, "ends in the path of the API itself, /v1"),
        ({"base_url": "https://api.example/v1/events"}, "ends in the path of the API itself, /v1"),
        ({"base_url": "https://user:pw@api.example"}, "more than scheme"),
        ({"base_url": "https://api.example?key=1"}, "more than scheme"),
        ({"base_url": "http://api.example"}, "unencrypted"),
        ({"base_url": "http://localhost.evil.example"}, "unencrypted"),
        ({"base_url": 7}, "got int"),
        ({"auth_header": "Cookie"}, "auth_header must be one of"),
        ({"timeout_seconds": 0}, "timeout"),
        ({"timeout_seconds": -1}, "timeout"),
        ({"timeout_seconds": float("nan")}, "timeout"),
        ({"timeout_seconds": 601}, "timeout"),
        ({"timeout_seconds": "soon"}, "timeout must be a number"),
        ({"timeout_seconds": True}, "timeout"),
        ({"verify": "/does/not/exist.pem"}, "CA bundle"),
        ({"proxy": "proxy:3128"}, "proxy is not the URL"),
        ({"proxy": "gopher://proxy"}, "proxy is not the URL"),
        ({"proxy": 7}, "proxy is not the URL"),
        ({"run_url": "javascript:alert(1)//{event_id}"}, r"run_url must be an http\(s\) URL"),
        ({"run_url": "data:text/html,x"}, "run_url must be an http"),
        ({"run_url": "app.example/{event_id}"}, "run_url must be an http"),
        ({"run_url": "https://"}, "run_url must be an http"),
        ({"run_url": "https://[/{event_id}"}, "run_url must be an http"),
        ({"run_url": "https://user:pw@app.example"}, "run_url must be an http"),
        ({"run_url": "https://{agent_id}/"}, "ids behind the host"),
        ({"run_url": "https://app.example/\n"}, "run_url must be an http"),
        ({"run_url": 7}, "run_url must be an http"),
        ({"run_url": "https://app.example/{eventId}"}, "nothing else in braces"),
        ({"run_url": "https://app.example/{event_id"}, "nothing else in braces"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_cause(wrong, words):
    with pytest.raises(InvalidConnectionError, match=words) as caught:
        Settings(**{"api_key": KEY, **wrong})
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    "base_url", ["http://127.0.0.1:8099", "http://localhost:8099", "http://[::1]:8099", "http://127.8.8.8"]
)
def test_plain_http_to_this_machine_is_allowed(base_url):
    assert Settings(api_key=KEY, base_url=base_url).base_url == base_url


@pytest.mark.parametrize("path", ["/v1/gateway", "/v10", "/api-v1", "/v1/agents-api"])
def test_a_path_of_a_gateway_is_part_of_the_base_url(path):
    assert Settings(api_key=KEY, base_url=f"https://gateway.example{path}/").base_url.endswith(path)


def test_plain_http_elsewhere_is_allowed_only_when_the_connection_says_so():
    settings = Settings(api_key=KEY, base_url="http://agents.internal", allow_plain_http=True)
    assert settings.base_url == "http://agents.internal"


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "127.0.0.1.example", "2130706433", ""])  # noqa: S104
def test_what_only_looks_like_this_machine_is_not(host):
    assert not is_loopback(host)


def test_a_file_that_is_no_ca_bundle_is_refused(tmp_path):
    bundle = tmp_path / "ca.pem"
    bundle.write_text("no certificate")
    with pytest.raises(InvalidConnectionError, match="cannot be read"):
        Settings(api_key=KEY, verify=str(bundle)).tls_context()


def test_certificates_are_checked_unless_the_connection_says_otherwise():
    assert Settings(api_key=KEY).tls_context().verify_mode == ssl.CERT_REQUIRED
    unchecked = Settings(api_key=KEY, verify=False).tls_context()
    assert unchecked.verify_mode == ssl.CERT_NONE
    assert not unchecked.check_hostname
