"""How to reach the API: what a connection can say, checked before anything is sent."""

from __future__ import annotations

import ipaddress
import os
import platform
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from airflow_provider_agents import __version__
from airflow_provider_agents.api import environment
from airflow_provider_agents.api.body import redact
from airflow_provider_agents.api.errors import InvalidConnectionError, one_line, quote_setting

if TYPE_CHECKING:
    import ssl

#: The hosted service (the API's own pages).
DEFAULT_BASE_URL = "https://api.uragents.ai"
#: Seconds for each phase of a request (connect, send, each chunk of the answer). The longest that is accepted is ten
#: minutes: a request that takes longer is no listing.
DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_TIMEOUT_SECONDS = 600.0
#: A request as a whole may take this many times its timeout, so that a server that drips bytes cannot hold it for ever:
#: connect, send, wait and read, each at its slowest.
WHOLE_REQUEST_FACTOR = 4
#: Keys shorter than this are not searched for in answers: they would be found in innocent words.
_SHORTEST_REDACTED_KEY = 8

#: A triggerer asks no more than this for all that wait on a connection, unless the connection says otherwise: enough
#: for 10,000 runs in a cycle of two seconds, at 200 events a request.
DEFAULT_REQUESTS_PER_SECOND = 25.0
MAX_REQUESTS_PER_SECOND = 1000.0

AUTH_HEADERS = ("Authorization", "X-Api-Key")


def user_agent(*products: str) -> str:
    """The `User-Agent` of this package's requests: its version, Python's, and `products` such as `airflow/3.3.2`."""
    return " ".join((f"airflow-provider-agents/{__version__}", f"python/{platform.python_version()}", *products))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to reach the API, checked when it is made.

    Attributes:
        api_key: printable ASCII without white space. Neither `repr` nor any message shows it.
        base_url: `https://…`, perhaps with a path. Plain http only to a loopback address, or with `allow_plain_http`.
        auth_header: `Authorization` (the key is sent as a bearer token) or `X-Api-Key`.
        timeout_seconds: above 0, at most 600; for each phase of a request.
        verify: whether to check the server's certificate, or the path of a CA bundle or directory to check it against.
        proxy: the proxy's URL. Without it, the environment's proxy settings hold.
        allow_plain_http: send the key unencrypted to a host that is not this machine.
        max_requests_per_second: above 0, at most 1,000; for what a triggerer asks on behalf of all that wait. A client
            by itself keeps no count.
        run_url: where a person can look at a run: an http(s) URL with `{agent_id}` and `{event_id}` to be filled in.
            A client only keeps it.

    Raises:
        InvalidConnectionError: from the constructor, naming what is wrong and what to do.
    """

    api_key: str = field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    auth_header: str = "Authorization"
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    verify: bool | str = True
    proxy: str | None = field(default=None, repr=False)
    allow_plain_http: bool = False
    max_requests_per_second: float = DEFAULT_REQUESTS_PER_SECOND
    run_url: str | None = None
    user_agent: str = field(default_factory=user_agent)

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is sent."""
        check_api_key(self.api_key)
        object.__setattr__(self, "base_url", _checked_base_url(self.base_url, allow_plain_http=self.allow_plain_http))
        if self.auth_header not in AUTH_HEADERS:
            raise InvalidConnectionError(
                f"auth_header must be one of {', '.join(AUTH_HEADERS)}, got {quote_setting(self.auth_header, 60)}."
            )
        if (
            isinstance(self.timeout_seconds, bool)
            or not isinstance(self.timeout_seconds, int | float)
            or not 0 < self.timeout_seconds <= MAX_TIMEOUT_SECONDS
        ):
            raise InvalidConnectionError(
                f"timeout must be a number of seconds above 0 and at most {MAX_TIMEOUT_SECONDS:g}, "
                f"got {quote_setting(self.timeout_seconds, 60)}."
            )
        if (
            isinstance(self.max_requests_per_second, bool)
            or not isinstance(self.max_requests_per_second, int | float)
            or not 0 < self.max_requests_per_second <= MAX_REQUESTS_PER_SECOND
        ):
            raise InvalidConnectionError(
                f"max_requests_per_second must be a number above 0 and at most {MAX_REQUESTS_PER_SECOND:g}, "
                f"got {quote_setting(self.max_requests_per_second, 60)}."
            )
        # Not Path.exists: it raises where a directory may not be read.
        if isinstance(self.verify, str) and not os.path.exists(self.verify):  # noqa: PTH110
            raise InvalidConnectionError(
                f"verify names the CA bundle {quote_setting(self.verify, 100)}, which does not exist on this machine."
            )
        if self.proxy is not None:
            _check_proxy(
                environment.read_proxy(self.proxy, environment.OF_CONNECTION),
                sees_key=self.base_url.startswith("http:") and not self.allow_plain_http,
            )
        if self.run_url is not None:
            _check_run_url(self.run_url)

    def headers(self) -> dict[str, str]:
        """The headers of every request, the key among them."""
        value = f"Bearer {self.api_key}" if self.auth_header == "Authorization" else self.api_key
        return {
            self.auth_header: value,
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            "User-Agent": self.user_agent,
        }

    @property
    def whole_request_seconds(self) -> float:
        """The longest that one request may take, from connecting to the last byte of its answer."""
        return self.timeout_seconds * WHOLE_REQUEST_FACTOR

    @property
    def _can_be_found(self) -> bool:
        return len(self.api_key) >= _SHORTEST_REDACTED_KEY

    def redact(self, text: str) -> str:
        """What a server sent, without the key: a server that repeats it must not bring it into a log or an XCom."""
        return text.replace(self.api_key, "***") if self._can_be_found else text

    def redact_json(self, body: bytes) -> bytes:
        """As `redact`, of JSON, however it spells the key."""
        return redact(body, self.api_key) if self._can_be_found else body

    def proxy_in_use(self) -> environment.Proxy | None:
        """The proxy that requests go through now: the connection's, or else the environment's.

        Raises:
            InvalidConnectionError: the environment names one that cannot be used.
        """
        found = environment.find_proxy(
            httpx.URL(self.base_url),
            self.proxy,
            # Plain http is for this machine only: the environment's proxy would be sent the key unencrypted.
            trust_environment=self.allow_plain_http or not self.base_url.startswith("http:"),
        )
        if isinstance(found, InvalidConnectionError):
            raise found
        return found

    def tls_context(self) -> ssl.SSLContext:
        """A TLS context as `verify` wants it. Reads the CA bundle: about 50 ms of CPU, so build it once.

        Raises:
            InvalidConnectionError: the CA bundle cannot be read, or the environment's proxy cannot be used.
        """
        proxy = self.proxy_in_use()
        speaks_no_tls = self.base_url.startswith("http:") and (proxy is None or proxy.url.scheme != "https")
        if self.verify is False or speaks_no_tls:
            return environment.unchecked_tls()
        made = environment.checked_tls(self.verify)
        if isinstance(made, InvalidConnectionError):
            raise made
        return made


def check_api_key(key: object) -> None:
    """Refuse what cannot be a key.

    Raises:
        InvalidConnectionError: naming what is wrong, without the key.
    """
    if not isinstance(key, str) or not key:
        raise InvalidConnectionError(
            "The connection has no API key. Put it in the connection's password (API key). "
            "In a URI the key stands between a colon and an @, percent-encoded: agents://:KEY@"
        )
    if set(key) == {"*"}:
        raise InvalidConnectionError(
            "The API key is only asterisks: a form or an export has saved the mask in place of the key. "
            "Type the key into the connection's password (API key) again."
        )
    if re.match(r"bearer[\s:]", key, re.IGNORECASE):
        raise InvalidConnectionError(
            "The API key begins with the word Bearer, which the provider adds by itself. Put the bare key, without the "
            "word and the white space, into the connection's password (API key)."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidConnectionError(
            "The API key holds white space or characters that no HTTP header can carry, perhaps a line break from "
            "copying. Put the bare key into the connection's password (API key)."
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine, told from its text alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _checked_base_url(text: object, *, allow_plain_http: bool) -> str:
    if not isinstance(text, str):
        raise InvalidConnectionError(f"The host must be the API's base URL, got {type(text).__name__}.")
    # What is no URL is not shown: in a URI that is written wrongly, the key can stand in the place of the host.
    if "://" not in text:
        raise InvalidConnectionError(
            "The host has no scheme. Write the whole base URL, for example https://gateway.example, or leave the host "
            f"empty for {DEFAULT_BASE_URL}. In a URI, the key stands between a colon and an @: agents://:KEY@"
        )
    url = environment.read_url(text)
    if url is None:
        raise InvalidConnectionError(f"The host is not a URL. Write it like {DEFAULT_BASE_URL}.")
    if url.scheme not in {"http", "https"} or not url.host:
        raise InvalidConnectionError(f"The host is not an http(s) URL. Write it like {DEFAULT_BASE_URL}.")
    shown = one_line(url.host, 100)
    if url.userinfo or url.query or url.fragment:
        raise InvalidConnectionError(
            f"The host {shown!r} holds more than scheme, host, port and path. "
            "The key belongs in the password field, and nothing in a query."
        )
    if url.scheme == "http" and not is_loopback(url.host) and not allow_plain_http:
        raise InvalidConnectionError(
            f"The host {shown!r} would send the API key unencrypted. Use https, or set the connection's extra "
            "allow_plain_http to true if the network between is trusted."
        )
    if re.search(r"/v1(/agents|/events)?/*$", url.path):
        raise InvalidConnectionError(
            f"The base URL on {shown!r} ends in the path of the API itself, /v1, which is added to every request. "
            "Put the base URL without it into the host."
        )
    return str(url).rstrip("/")


def _check_proxy(proxy: environment.Proxy | InvalidConnectionError, *, sees_key: bool) -> None:
    if isinstance(proxy, InvalidConnectionError):
        raise proxy
    if sees_key and not is_loopback(proxy.url.host):
        raise InvalidConnectionError(
            "The host is plain http, so the proxy would be sent the API key unencrypted. Use https, leave out the "
            "proxy, or set the connection's extra allow_plain_http to true if the network between is trusted."
        )


def _check_run_url(template: object) -> None:
    """Refuse what would be no link, or one that an id can lead to another host. Whoever clicks it trusts it."""
    text = template if isinstance(template, str) else repr(template)
    try:
        url = urlsplit(text)
        good = url.scheme in {"http", "https"} and url.hostname is not None and text.isprintable() and " " not in text
    except ValueError:
        good = False
    if not good or "{" in url.netloc or "@" in url.netloc:
        raise InvalidConnectionError(
            "run_url must be an http(s) URL with its ids behind the host, got "
            f"{one_line(text.rsplit('@', 1)[-1], 100)!r}. "
            "Write it like https://app.example/agents/{agent_id}/runs/{event_id}."
        )
    unknown = re.sub(r"\{(?:agent_id|event_id)\}", "", text)
    if "{" in unknown or "}" in unknown:
        raise InvalidConnectionError(
            f"run_url knows {{agent_id}} and {{event_id}} and nothing else in braces, got {quote_setting(text, 100)}."
        )
