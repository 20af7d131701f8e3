"""Hostile settings: connections, and the environment that a client reads. Ways of `make fuzz`."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from hostile_answers import KEY, check_error, check_frames

from airflow_provider_agents.api.client import Client
from airflow_provider_agents.api.errors import InvalidConnectionError
from airflow_provider_agents.api.settings import Settings

if TYPE_CHECKING:
    import random
    from collections import Counter
    from collections.abc import Generator, Sequence

VARIABLE = "AIRFLOW_CONN_AGENTS_DEFAULT"


def connections(rng: random.Random, tally: Counter[str]) -> Generator[None, None, None]:
    """Connections as URIs and as JSON, through Airflow's own reading of them."""
    from airflow_provider_agents.hooks import AgentsHook

    hosts = [
        "",
        "https://h.example",
        "h.example",
        "http://127.0.0.1:80",
        "ftp://x",
        "https://[::1",
        "https://ü.example",
    ]
    hosts += [
        "https://a:b@h.example",
        "https://h.example/?x",
        "http://h.example",
        "//",
        "https://" + "x" * 300,
        "\0",
        "]",
    ]
    extras: dict[str, list[object]] = {
        "auth_header": ["Authorization", "X-Api-Key", "Cookie", 1, None, []],
        "timeout": [1, "2.5", "x", -1, 0, True, "nan", 1e400, [], "\u0661"],
        "verify": [True, "false", "/no/such", 7, {}, "\0"],
        "proxy": ["http://p.example:1", "nonsense", 7, f"http://u:{KEY}@p.example", "socks5://x", "http://[", "\0"],
        "run_url": ["https://x/{agent_id}", "javascript:x", 7],
        "max_requests_per_second": [1, 0, "many", 1e9, None],
        "allow_plain_http": [True, "true", "perhaps", 3],
        "other": [1],
    }
    before = os.environ.get(VARIABLE)
    try:
        while True:
            extra = {name: rng.choice(values) for name, values in extras.items() if rng.random() < 0.12}
            host = rng.choice(hosts[:4] if rng.random() < 0.6 else hosts)
            if rng.random() < 0.5:
                value: dict[str, object] = {"conn_type": "agents", "password": KEY, "host": host, "extra": extra}
                for name in ("port", "schema", "login", "password", "extra", "host"):
                    if rng.random() < 0.1:
                        value[name] = rng.choice([None, "", 7, "text", [], {}, "***", f"{KEY}\n", 99999, "{", "[1]"])
                text = json.dumps(value)
            else:
                query = "&".join(f"{name}={quote(str(one), safe='')}" for name, one in extra.items())
                text = f"agents://:{quote(KEY, safe='')}@{quote(host, safe='') if rng.random() < 0.7 else host}?{query}"
            if rng.random() < 0.3:
                at = rng.randrange(len(text))
                text = text[:at] + rng.choice(["@", ":", "/", "%", "[", '"', "\\", "?", "#", "é", ""]) + text[at + 1 :]
            os.environ[VARIABLE] = text.replace("\0", "")
            try:
                settings = AgentsHook().settings()
            except InvalidConnectionError as error:
                tally[check_error(error)] += 1
            else:
                tally["usable"] += 1
                assert KEY not in repr(settings)
                settings.headers()[settings.auth_header].encode("ascii")
            yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


PROXY_TEXTS = [
    "", "http://127.0.0.1:1", "https://127.0.0.1:1", "socks5://127.0.0.1:1", "socks4://127.0.0.1:1", "127.0.0.1:1",
    "ftp://127.0.0.1:1", "http://127.0.0.1:port", "http://[::1]:1", "http://[::1", "http://a..b:1", "//", "nonsense",
    "http://user:pass@127.0.0.1:1", "localhost,[::1]", "*", ".example", "10.0.0.0/8", "::1", "http://" + "x" * 300,
]  # fmt: skip
#: Environment variables that a client reads.
NETWORK_VARIABLES = [
    *(f"{kind}_{end}" for kind in ("HTTP", "HTTPS", "ALL", "NO") for end in ("PROXY",)),
    *(f"{kind}_proxy" for kind in ("http", "https", "all", "no")),
    "SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE",
]  # fmt: skip


def environments(rng: random.Random, tally: Counter[str]) -> Generator[None, None, None]:
    """Proxy and TLS settings, of the environment and of a connection, until a client is made of them or refused."""
    before = {name: os.environ.get(name) for name in NETWORK_VARIABLES}
    # A log of TLS keys is a file that is made: wherever a path is changed, it leads here or to no folder at all.
    folder = tempfile.TemporaryDirectory()
    inner = Path(folder.name, "in", "within")
    inner.mkdir(parents=True)
    (inner / "file").write_text("no certificate")
    paths = ["", "/no/such/file", str(inner / "file"), str(inner)]

    def drawn(values: Sequence[str]) -> str:
        text = rng.choice(values)
        if text and rng.random() < 0.3:
            at = rng.randrange(len(text))
            text = (
                text[:at]
                + rng.choice(["@", ":", "/", "%", "[", ",", "\\", "?", "#", "é", " ", "\n", ""])
                + text[at + 1 :]
            )
        return text

    try:
        while True:
            for name in NETWORK_VARIABLES:
                os.environ.pop(name, None)
                if rng.random() < 0.3:
                    os.environ[name] = drawn(paths if name.startswith("SSL") else PROXY_TEXTS)
            try:
                settings = Settings(
                    api_key=KEY,
                    base_url=rng.choice(["https://127.0.0.1:1", "http://127.0.0.1:1"]),
                    proxy=drawn(PROXY_TEXTS[1:]) if rng.random() < 0.3 else None,
                    verify=drawn(paths[1:]) if rng.random() < 0.3 else rng.choice([True, False]),
                    allow_plain_http=rng.random() < 0.5,
                )
            except InvalidConnectionError as error:
                # The caller holds the key here; below, only the package does.
                tally[check_error(error)] += 1
                yield
                continue
            try:
                with Client(settings, attempts=1):
                    tally["a client"] += 1
            except InvalidConnectionError as error:
                tally[check_error(error)] += 1
                check_frames(error)
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        folder.cleanup()
