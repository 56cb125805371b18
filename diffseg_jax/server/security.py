"""Who may ask a server of this package, and what every response says to the browser.

A server listens on 127.0.0.1, where every program and every web page of the user can reach it. So
each request must know a random token, from the address that the command prints; a cookie keeps it.
A page of another site cannot use that cookie (SameSite, Host and Origin are checked), and cannot
reach the server under a name of its own (DNS rebinding), since only the bound address is accepted.
"""

import contextlib
import errno
import ipaddress
import json
import secrets
import socket
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Router

from diffseg_jax.errors import UserError, visible

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")  # --host that means all addresses of the machine
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors {frames}"
)
MAX_BODY = 64 * 2**10  # bytes of a request for which the route names no other limit
MAX_QUOTED = 200  # characters of a request that an error repeats


class RequestRefused(Exception):
    """A request whose response has a status of 4xx and {"error": sentence, **more}."""

    def __init__(self, status: int, sentence: str, **more):
        super().__init__(sentence)
        self.status, self.content = status, {"error": sentence, **more}


class NotStored(UserError):
    """A file of a server that cannot be written now; the same request may succeed later."""


@contextlib.contextmanager
def storing(path: Path):
    """Within it, an OSError becomes NotStored: what cannot be written, why, and what to do."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "Make room on its disk" if is_full else "Make its folder writable"
        reason = f"{visible(str(path))} cannot be written ({error.strerror or error})"
        raise NotStored(f"{reason}. {advice}.") from None


@dataclass(frozen=True)
class Access:
    """Who may ask.

    token    of the server; "" where none is needed
    host     the address that the server is bound to;  port  likewise
    in_path  whether the token is the first part of every path, as in the frame of a notebook, where
             browsers keep no cookies; then neither cookies, Host nor Origin count
    """

    token: str
    host: str
    port: int
    in_path: bool = False

    @property
    def url(self) -> str:
        """The address to open, with the token."""
        shown = "127.0.0.1" if self.host in EVERYWHERE else self.host
        shown = f"[{shown}]" if ":" in shown else shown
        end = f"{self.token}/" if self.in_path else f"?token={self.token}" if self.token else ""
        return f"http://{shown}:{self.port}/{end}"

    @property
    def cookie(self) -> str:
        """The name of the cookie; all ports of a host share their cookies."""
        return f"diffseg_jax_{self.port}"

    def fits(self, token: str | None) -> bool:
        """Whether it is the token, compared in constant time."""
        given = (token or "").encode(errors="surrogateescape")
        return secrets.compare_digest(given, self.token.encode())

    def allows_host(self, name: str) -> bool:
        """Whether a Host or the address of an Origin is one under which the server was started."""
        try:
            parts = urlsplit(f"//{name}")
            host, port = (parts.hostname or "").lower(), parts.port or 80
        except ValueError:
            return False
        if port != self.port or parts.path or parts.query or parts.username is not None:
            return False
        if self.host not in EVERYWHERE:
            return host == self.host.lower() or (self.host in LOOPBACK and host in LOOPBACK)
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(host))  # a number cannot be rebound to another one
        return host in {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}


def new_token() -> str:
    """A random token that fits into an address."""
    return secrets.token_urlsafe(24)


class Guarded:
    """The ASGI application of some routes behind the checks.

    Whatever goes wrong, the response is one sentence in JSON: see `refusal_of`.
    """

    def __init__(self, routes: Sequence[BaseRoute], access: Access):
        async def refuse(request, error):
            return refusal_of(error, request.method)

        router = Router(routes, redirect_slashes=False)
        handlers = dict.fromkeys((RequestRefused, UserError, HTTPException, Exception), refuse)
        self.app, self.access = ExceptionMiddleware(router, handlers), access

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # no route speaks WebSocket
            return await send({"type": "websocket.close", "code": 1008})

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": self._headers(message["headers"])}
            await send(message)

        try:
            response = self._opening(Request(scope))
        except RequestRefused as error:
            response = refusal_of(error)
        app, scope = (response, scope) if response else (self.app, self._inner(scope))
        await app(scope, receive, send_with_headers)

    def _opening(self, request) -> Response | None:
        """The response to a request that opens the page; RequestRefused to one without access."""
        access = self.access
        if access.in_path:
            if not access.fits(request.scope["path"].removeprefix("/").partition("/")[0]):
                raise RequestRefused(403, "the address lacks the token of this notebook's page.")
            return None
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not access.allows_host(host):
            raise RequestRefused(
                403, f"Host is {host[:MAX_QUOTED]!r}, but this server is {access.host}:"
                f"{access.port}. Open the address that the command printed."
            )  # fmt: skip
        if origin is not None and origin.lower() != f"http://{host.lower()}":
            raise RequestRefused(
                403, f"Origin is {origin[:MAX_QUOTED]!r}, which is another page."
            )
        if not access.token:
            return None
        if request.scope["path"] == "/" and (given := _tokens_in(request)):
            if not access.fits(given[0]):
                raise RequestRefused(403, "the token in the address is not the one of this server.")
            return self._with_cookie(request)
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and access.fits(bearer.strip()):
            return None
        if access.fits(_cookie_of(request, access.cookie)):
            return None
        raise RequestRefused(
            403, "a token is needed. Open the address that the command printed, or send the header "
            "Authorization: Bearer TOKEN."
        )  # fmt: skip

    def _with_cookie(self, request) -> Response:
        """Sets the cookie and goes to the address without the token.

        A browser that comes from a link of another site sends no such cookie after a redirect, but
        does so after this page has loaded.
        """
        if request.headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
            response = RedirectResponse("/", 303)
        else:
            response = HTMLResponse('<!doctype html><meta http-equiv="refresh" content="0;url=/">')
        response.set_cookie(self.access.cookie, self.access.token, httponly=True, samesite="strict")
        return response

    def _inner(self, scope):
        """The scope of the routes, whose paths begin after the token."""
        scope = {**scope, "app": self}  # else the router responds in plain text
        if self.access.in_path:
            scope["root_path"] = f"{scope.get('root_path', '')}/{self.access.token}"
        return scope

    def _headers(self, headers):
        """The headers of a response with those for safety; Cache-Control unless it has its own."""
        frames = "*" if self.access.in_path else "'none'"
        added = {
            "content-security-policy": POLICY.format(frames=frames),
            "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
            "cross-origin-resource-policy": "same-origin", "cache-control": "no-store",
        }  # fmt: skip
        known = {name.lower() for name, _ in headers}
        pairs = [(name.encode(), value.encode()) for name, value in added.items()]
        return [*headers, *(pair for pair in pairs if pair[0] not in known)]


def _tokens_in(request):
    try:
        query = request.scope["query_string"].decode("latin-1")
        return parse_qs(query, max_num_fields=10).get("token", [])
    except ValueError:
        raise RequestRefused(400, "the address has more than 10 parameters.") from None


def _cookie_of(request, name):
    try:
        cookies = SimpleCookie(request.headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""


def refusal_of(error: Exception, method: str = "GET") -> Response:
    """The response that says in one sentence why a request failed.

    RequestRefused has its own status, NotStored 507, any other UserError 422; other errors have
    500, and their traceback is printed on stderr.
    """
    if isinstance(error, RequestRefused):
        return json_response(error.content, error.status)
    if isinstance(error, NotStored):
        return json_response({"error": str(error)}, 507)
    if isinstance(error, UserError):
        return json_response({"error": str(error)}, 422)
    if isinstance(error, HTTPException):  # of the router
        is_method = error.status_code == 405
        sentence = f"this address takes no {method[:20]}." if is_method else "no such address."
        response = json_response({"error": sentence}, error.status_code)
        response.headers.update(error.headers or {})  # Allow
        return response
    traceback.print_exception(error, file=sys.stderr)
    return json_response({"error": f"the server failed: {type(error).__name__}."}, 500)


def json_response(content, status: int = 200) -> Response:
    """JSON in ASCII, so that names of files that are no text can be sent, too."""
    return Response(json.dumps(content), status, media_type="application/json")


async def read_body(request: Request, limit: int = MAX_BODY) -> bytes:
    """The body of a request; RequestRefused with 413 beyond `limit` bytes, which are not kept."""
    announced = request.headers.get("content-length", "0")
    sentence = f"the body is longer than {limit:,} bytes, the most that this address takes."
    if not (announced.isdecimal() and len(announced) < 20 and int(announced) <= limit):
        raise RequestRefused(413, sentence)
    parts, length = [], 0
    try:
        async for part in request.stream():
            length += len(part)
            if length > limit:
                raise RequestRefused(413, sentence)
            parts.append(part)
    except ClientDisconnect:
        raise RequestRefused(400, "the connection ended within the body.") from None
    return b"".join(parts)


async def object_in_body(request: Request, keys: dict[str, type]) -> dict:
    """The values of the JSON object in a body; RequestRefused unless it has these keys."""
    body = await read_body(request)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestRefused(400, "the body is not JSON.") from None
    if not isinstance(content, dict) or any(type(content.get(k)) is not t for k, t in keys.items()):
        wanted = ", ".join(f'"{key}": {kind.__name__}' for key, kind in keys.items())
        raise RequestRefused(422, f"the body must be a JSON object {{{wanted}}}.")
    return content
