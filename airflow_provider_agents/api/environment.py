"""How a request reaches the API: through which proxy, and checked against which CA certificates.

Both come from the connection, or else from the environment of the process. This module reads the environment, not
httpx: so an error can name the variable that holds a bad value, and the proxy in use is known when a request fails.
Errors are returned, not raised: a traceback shows the variables of its frames, and a proxy's URL can hold a password.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import getproxies

import httpx

from airflow_provider_agents.api.errors import InvalidConnectionError, one_line

try:
    from socksio import SOCKSError
except ImportError:
    SOCKS_ERRORS: tuple[type[Exception], ...] = ()
else:
    #: Raised if a SOCKS proxy sends something else, for example because it is an HTTP proxy. httpx does not map it.
    SOCKS_ERRORS = (SOCKSError,)

_DEFAULT_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
#: The source of a connection's own proxy, for messages.
CONNECTION_PROXY = "the connection's extra proxy"
_SOCKS = frozenset({"socks5", "socks5h"})
#: RFC 1929: the length of a user name or a password is sent in one byte.
_MAX_SOCKS_CREDENTIAL_BYTES = 255
_LARGEST_PORT = 65535


def read_url(text: object) -> httpx.URL | None:
    """A URL; None if `text` is not a URL, or its host can never be reached. The host can be empty."""
    if not isinstance(text, str):
        return None
    try:
        url = httpx.URL(text)
        # Sockets encode the host like this for the name server, and raise a bare UnicodeError if that fails.
        url.raw_host.decode("ascii").encode("idna")
        is_plain = not set(url.host) & set("%\\ ")
    except (httpx.InvalidURL, ValueError):
        return None
    # In an IP address, a percent sign precedes the name of a network interface.
    return url if (is_plain or is_address(url.host)) and 0 <= port_of(url) <= _LARGEST_PORT else None


def is_address(host: str) -> bool:
    """Whether a host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def port_of(url: httpx.URL) -> int:
    """The port of a URL, or the default of its scheme; 0 without either."""
    return url.port if url.port is not None else _DEFAULT_PORTS.get(url.scheme, 0)


def address_of(url: httpx.URL) -> str:
    """`host:port`, for messages."""
    return f"[{url.host}]:{port_of(url)}" if ":" in url.host else f"{url.host}:{port_of(url)}"


# --- proxies --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and where it is set.

    Attributes:
        url: with the user name and the password.
        source: the extra or the environment variable, for messages.
    """

    url: httpx.URL = field(repr=False)
    source: str

    @property
    def address(self) -> str:
        """Host and port."""
        return address_of(self.url)

    def for_httpx(self, tls: ssl.SSLContext) -> httpx.Proxy:
        """The proxy for httpx. The certificate of an https proxy is checked like the API's."""
        return httpx.Proxy(self.url, ssl_context=tls if self.url.scheme == "https" else None)


def as_subject(source: str) -> str:
    """The source, as the first words of a sentence."""
    return source[0].upper() + source[1:]


def read_proxy(text: object, source: str) -> Proxy | InvalidConnectionError:
    """The proxy of a URL, or the error. The error holds no part of `text`."""
    url = read_url(text.strip() if isinstance(text, str) else text)
    if url is None or not url.host or url.scheme not in _DEFAULT_PORTS:
        return InvalidConnectionError(
            f"{as_subject(source)} is not the URL of a proxy. "
            "Write it like http://proxy.example:3128 (http, https, socks5)."
        )
    if url.scheme in _SOCKS:
        try:
            import socksio  # noqa: F401 - to find out whether it can be imported
        except ImportError:
            return InvalidConnectionError(
                f"{as_subject(source)} names a SOCKS proxy, and the package for it is not installed. "
                "Install it on every Airflow machine: pip install 'airflow-provider-agents[socks]'."
            )
        if max(len(url.username.encode()), len(url.password.encode())) > _MAX_SOCKS_CREDENTIAL_BYTES:
            return InvalidConnectionError(
                f"{as_subject(source)} has a user name or password that is too long for a SOCKS proxy. "
                f"Each may have {_MAX_SOCKS_CREDENTIAL_BYTES} bytes."
            )
    return Proxy(url, source)


def find_proxy(
    target: httpx.URL, connection_proxy: str | None, *, trust_environment: bool
) -> Proxy | InvalidConnectionError | None:
    """The proxy of requests to `target`, None for a direct connection, or the error.

    Args:
        target: the API's base URL.
        connection_proxy: the connection's own proxy. With one, the environment is not read.
        trust_environment: whether the environment's proxies are used.
    """
    if connection_proxy is not None:
        return read_proxy(connection_proxy, CONNECTION_PROXY)
    proxies = getproxies() if trust_environment else {}
    kind = target.scheme if proxies.get(target.scheme) else "all"
    text = proxies.get(kind, "").strip()
    if not text or _is_exempt(target, proxies.get("no", "")):
        return None
    # The names are valid in upper and in lower case, and `getproxies` does not report which one it used.
    names = (name for name, value in os.environ.items() if value.strip() == text)
    variable = next((name for name in names if name.lower() == f"{kind}_proxy"), f"{kind.upper()}_PROXY")
    return read_proxy(text if "://" in text else f"http://{text}", f"the environment variable {variable}")


def _is_exempt(target: httpx.URL, no_proxy: str) -> bool:
    """Whether `NO_PROXY` lists a host. An entry that is not a name, an address or a network matches nothing."""
    return any(_matches(target, entry) for entry in no_proxy.lower().replace(",", " ").split())


def _matches(target: httpx.URL, entry: str) -> bool:
    if entry == "*":
        return True
    scheme, _, entry = entry.rpartition("://")
    if scheme not in {"", "all", target.scheme}:
        return False
    name, colon, port = entry.rpartition(":")
    # The colons of `::1`, without brackets, belong to the address.
    if colon and port.isdecimal() and (":" not in name or name.endswith("]")):
        if int(port) != port_of(target):
            return False
        entry = name
    host = target.host.lower()
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        domain = entry.removeprefix("*").removeprefix(".")
        return bool(domain) and (host == domain or host.endswith(f".{domain}"))


# --- TLS ------------------------------------------------------------------------------------------------------------


def ca_source(verify: bool | str) -> tuple[str, str | None]:
    """Where the CA certificates are set, and their path; the path is None for the package certifi."""
    if isinstance(verify, str):
        return "verify", verify
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        if os.environ.get(variable):
            return variable, os.environ[variable]
    return "certifi", None


def unchecked_tls() -> ssl.SSLContext:
    """A TLS context that accepts every certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def checked_tls(verify: bool | str) -> ssl.SSLContext | InvalidConnectionError:
    """A TLS context with the CA certificates of `ca_source`, or the error."""
    source, path = ca_source(verify)
    try:
        if path is None:
            return httpx.create_ssl_context(trust_env=False)
        if source == "SSL_CERT_DIR" or Path(path).is_dir():
            _check_directories(path)
            return ssl.create_default_context(capath=path)
        return ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:
        reason = one_line(str(error), 80)
        key_log = os.environ.get("SSLKEYLOGFILE")
        if key_log and getattr(error, "filename", None) == key_log:
            return InvalidConnectionError(
                f"The environment variable SSLKEYLOGFILE names a file that cannot be written ({reason}). Unset it."
            )
        if path is None:
            return InvalidConnectionError(f"The CA bundle of the package certifi cannot be read ({reason}).")
    named = source if source == "verify" else f"The environment variable {source}"
    return InvalidConnectionError(
        f"{named} names the CA bundle {one_line(path, 100)!r}, which cannot be read ({reason}). Put a file with PEM "
        "certificates there, or correct the path."
    )


def _check_directories(path: str) -> None:
    """Raise an OSError unless one of the directories can be read. OpenSSL skips unreadable directories silently."""
    failure: OSError | None = None
    for directory in path.split(os.pathsep):
        try:
            next(Path(directory).iterdir(), None)
        except OSError as error:
            failure = error
        else:
            return
    if failure is not None:
        raise failure
