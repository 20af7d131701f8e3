"""How to reach the API: what a connection can say, checked before anything is sent."""

from __future__ import annotations

import ipaddress
import os
import platform
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import httpx
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    StrictBool,
    StrictStr,
    ValidationError,
    model_validator,
)

from airflow_provider_agents import __version__
from airflow_provider_agents.api import environment
from airflow_provider_agents.api.body import redact
from airflow_provider_agents.api.errors import (
    InvalidArgumentError,
    InvalidConnectionError,
    one_line,
    quote_setting,
    without_frames,
)
from airflow_provider_agents.budget import Budget

if TYPE_CHECKING:
    import ssl

#: The hosted service (the API's own pages).
DEFAULT_BASE_URL = "https://api.uragents.ai"
#: Seconds. No listing takes ten minutes.
MAX_TIMEOUT_SECONDS = 600.0
#: A whole request may take this many times the timeout of a phase: its phases are connect, send, wait and read. Without
#: this limit, a server that sends byte by byte could hold a request forever.
WHOLE_REQUEST_FACTOR = 4
#: Shorter keys are not redacted: they occur in innocent words.
_SHORTEST_REDACTED_KEY = 8
MAX_REQUESTS_PER_SECOND = 1000.0
#: Seconds. A day is the operator's default `timeout`: with more, each such task would fail.
MAX_SETTLE_SECONDS = 86400.0
AuthHeader = Literal["Authorization", "X-Api-Key"]

#: What a setting must be, for the error message.
_FORMS = {
    "auth_header": f"one of {', '.join(get_args(AuthHeader))}",
    "timeout_seconds": f"a number of seconds above 0 and at most {MAX_TIMEOUT_SECONDS:g}",
    "max_requests_per_second": f"a number above 0 and at most {MAX_REQUESTS_PER_SECOND:g}",
    "verify": "true, false or the path of a CA bundle",
    "allow_plain_http": "true or false",
    "settle": f"a number of seconds above 0 and at most {MAX_SETTLE_SECONDS:g}",
    "appear_within": f"a number of seconds above 0 and at most {MAX_SETTLE_SECONDS:g}",
    "exclusive": "true or false",
}


def user_agent(*products: str) -> str:
    """The `User-Agent` of this package's requests: its version, Python's, and `products` such as `airflow/3.3.2`."""
    return " ".join((f"airflow-provider-agents/{__version__}", f"python/{platform.python_version()}", *products))


def _read_switch(value: object) -> object:
    # Forms and URIs write a boolean as text.
    return {"true": True, "false": False}.get(value.strip().lower(), value) if isinstance(value, str) else value


def _not_a_boolean(value: object) -> object:
    # pydantic would read true as 1.
    if isinstance(value, bool):
        raise ValueError("a boolean is not a number")  # noqa: TRY004 - pydantic expects this class
    return value


def _check_ca_bundle(verify: bool | str) -> bool | str:
    # Not Path.exists: it raises where a directory may not be read.
    if isinstance(verify, str) and not os.path.exists(verify):  # noqa: PTH110
        raise InvalidConnectionError(
            f"verify names the CA bundle {quote_setting(verify, 100)}, which does not exist on this machine."
        )
    return verify


def check_api_key(key: object) -> str:
    """Return `key` if it can be a key.

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
    return key


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine; no name server is asked."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_base_url(text: object) -> str:
    if not isinstance(text, str):
        raise InvalidConnectionError(f"The host must be the API's base URL, got {type(text).__name__}.")
    # Not shown: in a URI that is written wrongly, the host can hold the key.
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
    if re.search(r"/v1(/agents|/events)?/*$", url.path):
        raise InvalidConnectionError(
            f"The base URL on {shown!r} ends in the path of the API itself, /v1, which is added to every request. "
            "Put the base URL without it into the host."
        )
    return str(url).rstrip("/")


def _read_proxy(text: object) -> str:
    proxy = environment.read_proxy(text, environment.CONNECTION_PROXY)
    if isinstance(proxy, InvalidConnectionError):
        raise proxy
    return str(text).strip()


def _check_run_url(template: object) -> object:
    # An id must not lead the link to another host.
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
    return template


def _read_budget(value: object) -> Budget:
    try:
        return value if isinstance(value, Budget) else Budget.from_json(value)
    except InvalidArgumentError as error:
        raise InvalidConnectionError(f"The connection's extra budget cannot be used: {error}") from None


def _to_connection_error(error: ValidationError) -> InvalidConnectionError:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidConnectionError):
        return without_frames(cause)
    name = str(first["loc"][0])
    value = quote_setting(first["input"], 60)
    return InvalidConnectionError(
        f"{name.removesuffix('_seconds')} must be {_FORMS.get(name, 'of the documented form')}, got {value}."
    )


_Seconds = Annotated[float, BeforeValidator(_not_a_boolean), Field(gt=0, le=MAX_SETTLE_SECONDS, allow_inf_nan=False)]


class Settings(BaseModel):
    """How to reach the API, checked when it is made. Numbers and booleans may be text, as in a form or a URI.

    Attributes:
        api_key: printable ASCII without white space. Neither `repr` nor any message shows it.
        base_url: `https://…`, perhaps with a path. Plain http only to a loopback address, or with `allow_plain_http`.
        auth_header: `Authorization` (the key is sent as a bearer token) or `X-Api-Key`.
        timeout_seconds: above 0, at most 600; for each phase of a request: connect, send, each read.
        verify: whether to check the server's certificate, or the path of a CA bundle or directory to check it against.
        proxy: the proxy's URL. Without it, the environment's proxy settings hold.
        allow_plain_http: whether the key may be sent unencrypted to another machine.
        max_requests_per_second: above 0, at most 1,000; the limit of one triggerer for all that wait on a connection.
            25 requests a second poll 10,000 runs in two seconds, at 200 events a request. A client itself has no limit.
        run_url: where a person can look at a run: an http(s) URL in which `{agent_id}` and `{event_id}` are filled in.
            A client does not use it.
        settle: seconds above 0, at most a day, within which the event of an accepted run appears on this platform.
            What tasks use unless they say otherwise, as the two below; None for the tasks' default.
        appear_within: seconds above 0, at most a day, at least `settle`, after which a run without an event is lost.
        exclusive: whether nothing else starts an agent while a task waits for its run.
        budget: what runs may use before no task of the connection starts another. A client does not ask it.

    Raises:
        InvalidConnectionError: from the constructor; the message says what is wrong and what to do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_key: Annotated[str, BeforeValidator(check_api_key)] = Field(repr=False)
    base_url: Annotated[str, BeforeValidator(_read_base_url)] = DEFAULT_BASE_URL
    auth_header: AuthHeader = "Authorization"
    timeout_seconds: Annotated[float, BeforeValidator(_not_a_boolean)] = Field(
        default=30.0, gt=0, le=MAX_TIMEOUT_SECONDS, allow_inf_nan=False
    )
    verify: Annotated[StrictBool | StrictStr, BeforeValidator(_read_switch), AfterValidator(_check_ca_bundle)] = True
    proxy: Annotated[str, BeforeValidator(_read_proxy)] | None = Field(default=None, repr=False)
    allow_plain_http: Annotated[StrictBool, BeforeValidator(_read_switch)] = False
    max_requests_per_second: Annotated[float, BeforeValidator(_not_a_boolean)] = Field(
        default=25.0, gt=0, le=MAX_REQUESTS_PER_SECOND, allow_inf_nan=False
    )
    run_url: Annotated[str, BeforeValidator(_check_run_url)] | None = None
    settle: _Seconds | None = None
    appear_within: _Seconds | None = None
    exclusive: Annotated[StrictBool, BeforeValidator(_read_switch)] | None = None
    budget: Annotated[InstanceOf[Budget], BeforeValidator(_read_budget)] | None = None
    user_agent: str = Field(default_factory=user_agent)

    if not TYPE_CHECKING:  # a type checker derives the arguments from the fields

        def __init__(self, **given: Any) -> None:
            try:
                super().__init__(**given)
            except ValidationError as error:
                failure = _to_connection_error(error)
            else:
                return
            # Outside the handler: pydantic's error holds the key.
            raise failure

    @model_validator(mode="after")
    def _send_no_key_unencrypted(self) -> Settings:
        if self.base_url.startswith("https:") or self.allow_plain_http:
            return self
        host = httpx.URL(self.base_url).host
        if not is_loopback(host):
            raise InvalidConnectionError(
                f"The host {one_line(host, 100)!r} would send the API key unencrypted. Use https, or set the "
                "connection's extra allow_plain_http to true if the network between is trusted."
            )
        if self.proxy is not None and not is_loopback(httpx.URL(self.proxy).host):
            raise InvalidConnectionError(
                "The host is plain http, so the proxy would be sent the API key unencrypted. Use https, leave out the "
                "proxy, or set the connection's extra allow_plain_http to true if the network between is trusted."
            )
        return self

    @model_validator(mode="after")
    def _lose_no_run_before_it_has_settled(self) -> Settings:
        if self.settle is not None and self.appear_within is not None and self.appear_within < self.settle:
            raise InvalidConnectionError(
                f"The connection's extra appear_within ({self.appear_within:g} s) must be at least its settle "
                f"({self.settle:g} s): until a run has settled, nothing can be said about it."
            )
        return self

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
        """The most seconds for one request, from connecting to the last byte of the response."""
        return self.timeout_seconds * WHOLE_REQUEST_FACTOR

    @property
    def _can_be_redacted(self) -> bool:
        return len(self.api_key) >= _SHORTEST_REDACTED_KEY

    def redact(self, text: str) -> str:
        """Text from a server without the key: a server that repeats the key must not bring it into a log or an XCom."""
        return text.replace(self.api_key, "***") if self._can_be_redacted else text

    def redact_json(self, body: bytes) -> bytes:
        """As `redact`, for JSON, which can spell the key with escapes."""
        return redact(body, self.api_key) if self._can_be_redacted else body

    def proxy_in_use(self) -> environment.Proxy | None:
        """The proxy of requests: the connection's, or else the environment's as it is now.

        Raises:
            InvalidConnectionError: the environment's proxy cannot be used.
        """
        found = environment.find_proxy(
            httpx.URL(self.base_url),
            self.proxy,
            # Plain http is for this machine only: a proxy would be sent the key unencrypted.
            trust_environment=self.allow_plain_http or not self.base_url.startswith("http:"),
        )
        if isinstance(found, InvalidConnectionError):
            raise found
        return found

    def tls_context(self) -> ssl.SSLContext:
        """A TLS context as `verify` says. Build it once: reading the CA bundle takes about 50 ms of CPU.

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
