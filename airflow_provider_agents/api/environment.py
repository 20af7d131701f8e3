"""How a request gets to the API: through which proxy, and checked against which CA certificates.

Both come from the connection, or else from the environment of the process. The environment is read here and not by
httpx: a value that cannot be used is then refused by the name of the variable that holds it, and the proxy in use is
known when it fails. What is wrong is returned, not raised: a traceback shows the variables of its frames, and a proxy's
URL can hold a password.
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
    #: Raised for a SOCKS proxy that answers with something else, as an HTTP proxy does. Httpx does not translate it.
    SOCKS_ERRORS = (SOCKSError,)

_DEFAULT_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
#: The source of a connection's own proxy, as a message names it.
OF_CONNECTION = "the connection's extra proxy"
_SOCKS = frozenset({"socks5", "socks5h"})
#: RFC 1929: the lengths of a SOCKS proxy's user name and password are sent in one byte each.
_MAX_SOCKS_CREDENTIAL_BYTES = 255
_LARGEST_PORT = 65535


def read_url(text: object) -> httpx.URL | None:
    """A URL, or None if `text` is none, or no connection can be made to its host. The host can be empty."""
    if not isinstance(text, str):
        return None
    try:
        url = httpx.URL(text)
        # Name servers are asked in this form; sockets raise a bare UnicodeError for a host that has none.
        url.raw_host.decode("ascii").encode("idna")
        is_plain = not set(url.host) & set("%\\ ")
    except (httpx.InvalidURL, ValueError):
        return None
    # In an address, a percent sign stands before the name of a network interface.
    return url if (is_plain or is_address(url.host)) and 0 <= port_of(url) <= _LARGEST_PORT else None


def is_address(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def port_of(url: httpx.URL) -> int:
    """The port that a URL names or implies; 0 if it does neither."""
    return url.port if url.port is not None else _DEFAULT_PORTS.get(url.scheme, 0)


def address_of(url: httpx.URL) -> str:
    """`host:port`, as a message names it."""
    return f"[{url.host}]:{port_of(url)}" if ":" in url.host else f"{url.host}:{port_of(url)}"


# --- proxies --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and what names it.

    Attributes:
        url: with the user name and the password.
        source: the extra or the environment variable, as a message names it.
    """

    url: httpx.URL = field(repr=False)
    source: str

    @property
    def address(self) -> str:
        """Host and port."""
        return address_of(self.url)

    def for_httpx(self, tls: ssl.SSLContext) -> httpx.Proxy:
        """As httpx takes it. An https proxy is checked as the API is."""
        return httpx.Proxy(self.url, ssl_context=tls if self.url.scheme == "https" else None)


def as_subject(source: str) -> str:
    """A source at the beginning of a sentence."""
    return source[0].upper() + source[1:]


def read_proxy(text: object, source: str) -> Proxy | InvalidConnectionError:
    """The proxy that `text` names, or what is wrong with it. The words hold no part of `text`."""
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
    target: httpx.URL, of_connection: str | None, *, trust_environment: bool
) -> Proxy | InvalidConnectionError | None:
    """The proxy of requests to `target`, None for a direct connection, or what is wrong with the one to be used.

    Args:
        target: the API's base URL.
        of_connection: the connection's own proxy. The environment is then not asked.
        trust_environment: whether the environment's proxies hold.
    """
    if of_connection is not None:
        return read_proxy(of_connection, OF_CONNECTION)
    proxies = getproxies() if trust_environment else {}
    kind = target.scheme if proxies.get(target.scheme) else "all"
    text = proxies.get(kind, "").strip()
    if not text or _is_exempt(target, proxies.get("no", "")):
        return None
    # Either case is valid, and `getproxies` does not report which one it has used.
    names = (name for name, value in os.environ.items() if value.strip() == text)
    variable = next((name for name in names if name.lower() == f"{kind}_proxy"), f"{kind.upper()}_PROXY")
    return read_proxy(text if "://" in text else f"http://{text}", f"the environment variable {variable}")


def _is_exempt(target: httpx.URL, no_proxy: str) -> bool:
    """Whether `NO_PROXY` lists a host. An entry that is neither a name, an address nor a network matches nothing."""
    return any(_matches(target, entry) for entry in no_proxy.lower().replace(",", " ").split())


def _matches(target: httpx.URL, entry: str) -> bool:
    if entry == "*":
        return True
    scheme, _, entry = entry.rpartition("://")
    if scheme not in {"", "all", target.scheme}:
        return False
    name, colon, port = entry.rpartition(":")
    # Without brackets, the colons of `::1` are the address's own.
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
    """What names the CA certificates, and their path; no path for those of the package certifi."""
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
    """A TLS context with the CA certificates that `ca_source` names, or why there is none."""
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
    """Raise an OSError unless one of the directories can be read. OpenSSL skips those that cannot, without a word."""
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
