"""Where the NATS servers are and how to prove who we are."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from evsync.errors import ConfigurationError

DEFAULT_PORT = 4222
_EXAMPLE = "such as nats://127.0.0.1:4222, tls://nats.example.org or nats://user:password@one:4222,nats://two:4222"


@dataclass(frozen=True, slots=True)
class NatsSettings:
    """The servers' addresses and the client's credentials. Checked when made; `repr` shows no secret."""

    url: str
    """One URL or several of one cluster, separated by commas. `user:password@` or `token@` may stand in any of them and
    serves for all; characters such as '@' are percent-encoded. `tls://` refuses a server that does not use TLS."""
    credentials: Path | None = None
    """A `.creds` file (JWT and seed)."""
    ca: Path | None = None
    """Certificates to trust instead of the system's."""
    certificate: Path | None = None
    """The client's own certificate, with `key`."""
    key: Path | None = None

    def __post_init__(self) -> None:
        """Raise ConfigurationError for what could never work."""
        if len({(u.username, u.password) for u in self._split() if u.username is not None}) > 1:
            raise ConfigurationError(f"the URLs {self.shown} name different users: state one, in one of them")
        for name in ("credentials", "ca", "certificate", "key"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ConfigurationError(
                    f"{name}={str(path)!r} is not a file (from the environment: EVSYNC_NATS_{name.upper()})"
                )
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError("certificate and key belong together: give both or neither")

    @property
    def servers(self) -> list[str]:
        """The URLs without user and password: what may be shown, and what the client library is given."""
        return [f"{u.scheme}://{_address(u)}" for u in self._split()]

    @property
    def shown(self) -> str:
        """The servers as text for logs and errors, without user and password."""
        return ",".join(self.servers)

    @property
    def login(self) -> dict[str, Any]:
        """`user` and `password` as the URL has them; or its `token`, what stands before '@' when there is no colon."""
        found = next((u for u in self._split() if u.username is not None), None)
        if found is None:
            return {}
        name = unquote(found.username or "")
        return {"token": name} if found.password is None else {"user": name, "password": unquote(found.password)}

    @property
    def uses_tls(self) -> bool:
        """Whether a server without TLS is refused."""
        return self.ca is not None or self.certificate is not None or any(u.scheme == "tls" for u in self._split())

    def tls_context(self) -> ssl.SSLContext:
        """What the TLS handshake verifies. Raises ConfigurationError when the files cannot be read as certificates."""
        try:
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
            if self.certificate and self.key:
                context.load_cert_chain(self.certificate, self.key)
        except (ssl.SSLError, OSError) as e:
            files = ", ".join(str(path) for path in (self.ca, self.certificate, self.key) if path)
            raise ConfigurationError(f"certificates or keys cannot be used ({files}): {e}") from e
        return context

    def __repr__(self) -> str:
        return f"NatsSettings({self.shown!r})"

    def _split(self) -> list[SplitResult]:
        return [_parse(part.strip()) for part in self.url.split(",")]


def _parse(url: str) -> SplitResult:
    """The parts of one URL, its scheme added if it has none. No error shows what stands before '@'."""
    text = url if "://" in url else f"nats://{url}"
    scheme, _, rest = text.partition("://")
    shown = f"{scheme}://{rest.rpartition('@')[2]}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as e:
        raise ConfigurationError(f"{shown!r} is not the URL of a NATS server ({e}): use one {_EXAMPLE}") from None
    bad = any(c.isspace() or not c.isprintable() for c in url)
    if parts.scheme not in {"nats", "tls"}:
        raise ConfigurationError(f"{shown!r} has the scheme {parts.scheme!r}: use nats:// or tls://, {_EXAMPLE}")
    if bad or not parts.hostname or port == 0 or parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigurationError(f"{shown!r} is not the URL of a NATS server: use one {_EXAMPLE}")
    return parts


def _address(parts: SplitResult) -> str:
    host = parts.hostname or ""
    return f"{f'[{host}]' if ':' in host else host}:{parts.port or DEFAULT_PORT}"
