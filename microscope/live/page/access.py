"""Who may look: where the server listens, which names it answers to, and the token of those from elsewhere.

A server on the loopback is reached by every page that a browser has open: another site may let its own name
point to 127.0.0.1 (DNS rebinding) or open a WebSocket across origins. So the Host header has to be an address
or a name of this machine, which no other site is known by, and the Origin header, where there is one, that
same host. A WebSocket without an Origin comes from no browser, and is refused.
"""

from __future__ import annotations

import errno
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from ....errors import InputError, reason_of

PORT = 8420
"""Where the page is by default."""

LOOPBACK = "127.0.0.1"
_ELSEWHERE = ("192.0.2.1", 9)  # of a network for examples (RFC 5737): asks for the way there, sends nothing


@dataclass(frozen=True)
class Address:
    """Where the page is to be.

    Attributes:
        port: 0 for any that is free.
        host: a name or address of this machine to listen on, behind a token; None for the loopback.
    """

    port: int = PORT
    host: str | None = None


class Refusal(NamedTuple):
    """Why a request is not answered."""

    status: int
    reason: str


@dataclass(frozen=True)
class Access:
    """What a request has to bring.

    Attributes:
        names: the hosts that the server answers to beside addresses, lower case.
        port: where it listens.
        token: what browsers have to know; None where it is for this machine only.
    """

    names: frozenset[str]
    port: int
    token: str | None = field(repr=False)

    @property
    def cookie(self) -> str:
        """The name of the cookie with the token; browsers do not tell the ports of a host apart."""
        return f"mmdeploy-live-{self.port}"

    def refusal(self, headers: Mapping[str, str], *, is_socket: bool) -> Refusal | None:
        """Why a request is not answered whoever sends it; None where it may be.

        Args:
            headers: by their names in lower case.
            is_socket: whether it asks for a WebSocket.
        """
        host = headers.get("host", "")
        name = _name_of(host)
        if name is None or not (_is_address(name) or name in self.names):
            return Refusal(421, f"this server is not '{host[:100]}': open the address that mmdeploy printed")
        origin = headers.get("origin")
        if is_socket and origin is None:
            return Refusal(403, "a WebSocket needs an Origin header, as browsers send it")
        if origin is not None and _place_of(origin) != host.lower():
            return Refusal(403, "the request comes from another site's page")
        return None

    def knows(self, token: str | None) -> bool:
        """Whether whoever has this token may look."""
        return self.token is None or hmac.compare_digest((token or "").encode(), self.token.encode())


def listen(address: Address) -> tuple[socket.socket, Access]:
    """Takes the port, before anything else is begun.

    Raises:
        InputError: it is taken, or the host is none of this machine's.
    """
    host = LOOPBACK if address.host is None else address.host
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(_no_host(host, error)) from error
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where the other would share a port in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen()
    except OSError as error:
        listener.close()
        raise InputError(_why_not(host, address.port, error)) from error
    names = {"localhost", socket.gethostname().lower(), f"{socket.gethostname().lower()}.local", host.lower()}
    token = None if address.host is None else secrets.token_urlsafe(32)
    return listener, Access(frozenset(names), listener.getsockname()[1], token)


def url_of(address: Address, access: Access) -> str:
    """What to open in a browser."""
    host = LOOPBACK if address.host is None else address.host
    if _is_address(host):
        number = ipaddress.ip_address(host)
        if number.is_unspecified:
            number = ipaddress.ip_address(_own_address())
        host = f"[{number}]" if number.version == 6 else str(number)
    token = "" if access.token is None else f"?token={access.token}"
    return f"http://{host}:{access.port}/{token}"


def _no_host(host: str, error: Exception) -> str:
    if getattr(error, "errno", None) == socket.EAI_AGAIN:
        found = f"the name '{host}' cannot be looked up now, for want of a name server"
    else:
        found = f"'{host}' is no name or address of this machine"
    return (
        f"{found}: expected one without http:// and without a port, which is --port's, such as "
        f"{socket.gethostname()}, or 0.0.0.0 for all of its addresses"
    )


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is taken, perhaps by another session: choose another with --port, or "
            "--port 0 for one that is free"
        )
    if error.errno == errno.EACCES:
        where = "one above 1023" if port < 1024 else "another"
        return f"port {port} of {host} needs more rights: choose {where} with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"'{host}' is no address of this machine: give one of its own, or 0.0.0.0 for all of them"
    return f"cannot listen on port {port} of {host}: {reason_of(error)}"


def _name_of(host: str) -> str | None:
    """The host of a Host header, in lower case and without its port; None where it is none."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018  # raises where it is no number
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None


def _place_of(origin: str) -> str | None:
    """The host and port of an Origin header, in lower case; None where it makes no sense."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _own_address() -> str:
    """The address by which others reach this machine; the loopback where it is in no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
        except OSError:
            return LOOPBACK
        return str(probe.getsockname()[0])
