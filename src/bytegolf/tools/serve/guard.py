"""What comes before any route: who may ask at all, and that whatever goes wrong is said in one form.

A page that the user visits elsewhere can have a browser send requests to this server. It is kept out three times over:

- **DNS rebinding.** A name of the attacker's that resolves to 127.0.0.1 makes the server look like the attacker's own
  site, whose answers its scripts may read. The browser still sends that name as Host, so Host must be one of ours.
  Behind an address that is not loopback nobody knows all of the server's names: numeric addresses pass (rebinding needs
  a name), and names that were allowed.
- **Cross-site requests.** A form or a script elsewhere may send, though not read. The browser says where it comes from
  (Origin, Sec-Fetch-Site), and only our own page passes.
- **The token.** Anything but loopback needs it for all but the page's own files, which hold nothing of the models.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bytegolf.analyze.page import live_page
from bytegolf.errors import BytegolfError
from bytegolf.tools.serve.refusals import RefusedError
from bytegolf.tools.serve.worker import ClientLeftError

_LOG = logging.getLogger(__name__)

OPEN = frozenset(("/openapi.json", "/health", *live_page()))
"""What needs no token."""

SAFE = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Lets requests through to ``app``; ``listens`` is the address that the server listens at."""

    def __init__(self, app: ASGIApp, listens: str, token: str = "", names: Iterable[str] = ()) -> None:
        self.app, self.token = app, token
        self.local = is_loopback(listens)
        self.names = {"localhost", listens.lower(), *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def safe(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((k, v) for k, v in SAFE.items() if k not in own)]
            await send(message)

        try:
            self.check(Headers(scope=scope), scope["path"])
            await self.app(scope, receive, safe)
        except RefusedError as refusal:
            await refusal.response()(scope, receive, safe)
        except BytegolfError as error:
            await RefusedError(400, str(error)).response()(scope, receive, safe)
        except ClientLeftError:
            if not begun:  # the server stops, or the client has left and will not see it
                await RefusedError(503, "the request was cancelled").response()(scope, receive, safe)
        except Exception:
            _LOG.exception("%s %s", scope["method"], scope["path"])
            if begun:
                raise
            said = "the server made a mistake: its log says which; please report it"
            await RefusedError(500, said).response()(scope, receive, safe)

    def check(self, headers: Headers, path: str) -> None:
        """Raise RefusedError unless the request may be answered."""
        host = headers.get("host", "")
        if not self.knows(host):
            raise RefusedError(403, f"this server is not called {host!r}: start it with --allow-host for that name")
        origin = headers.get("origin")
        if origin is not None and _place(origin) != host.lower():
            raise RefusedError(403, f"a page of {origin} may not ask this server")
        if headers.get("sec-fetch-site") == "cross-site" and path not in OPEN:
            raise RefusedError(403, "a page of another site may not ask this server")
        if self.token and path not in OPEN and not self._proved(headers):
            said = "a token is needed: open the address that the server printed, or send Authorization: Bearer TOKEN"
            raise RefusedError(401, said, code="invalid_api_key")

    def knows(self, host: str) -> bool:
        """Whether ``host``, of a Host header, is this server."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self.local

    def _proved(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token.encode())


def _place(origin: str) -> str:
    """Host and port of an Origin header; nothing of one that is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
