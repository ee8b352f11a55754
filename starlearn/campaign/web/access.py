"""Access to the page: a token, checks of host and origin, and security headers."""

import secrets
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # With no-referrer, browsers would send "Origin: null" with the page's own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The back button must show the current state, not an old page.
    "Cache-Control": "no-store",
}

HOSTS = ["127.0.0.1", "localhost"]
"""Allowed hosts of the Host header, at any port, because a tunnel changes the port. A foreign page
whose domain was rebound to this address sends its own host and is refused."""

Refusal = Callable[[Request, str], Response]


class AccessTokens:
    """The secrets of one server.

    The port is part of the cookie's name, because browsers send a cookie to every port of a host.
    """

    def __init__(self, port: int) -> None:
        self.cookie = f"starlearn-{port}"
        self.token = secrets.token_urlsafe(32)
        """The token in the printed address, and the value of the cookie."""

    def accepts(self, given: str) -> bool:
        """Whether this is the token."""
        return _equal(given, self.token)

    def has_cookie(self, request: Request) -> bool:
        """Whether the browser has the cookie with the token."""
        return _equal(request.cookies.get(self.cookie, ""), self.token)


class AccessMiddleware:
    """Middleware that requires the token, and forms from the page itself.

    `refuse` makes the response to a refused request from the request and a reason.
    """

    def __init__(self, app: ASGIApp, tokens: AccessTokens, refuse: Refusal) -> None:
        self.app, self.tokens, self.refuse = app, tokens, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request, or pass it on."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        response = self._response(Request(scope))
        await (self.app if response is None else response)(scope, receive, send)

    def _response(self, request: Request) -> Response | None:
        given = request.query_params.get("token")
        if request.method == "GET" and given is not None and self.tokens.accepts(given):
            # Redirect at once, so that the token is not in an address that people copy or see.
            response = RedirectResponse("/", status_code=303)
            # Lax, because the browser comes from a file, and a strict cookie would not go with the
            # redirection. Forms of other pages are refused by their origin.
            response.set_cookie(
                self.tokens.cookie, self.tokens.token, httponly=True, samesite="lax", path="/"
            )
            return response
        # Not request.url: some versions of Starlette build it from the client's Host header.
        if request.scope["path"].startswith("/static/"):
            return None
        if not self.tokens.has_cookie(request):
            return self.refuse(
                request,
                "Open the address with its token that starlearn printed in the terminal. The "
                "token is new each time. If you have just opened it, press Continue.",
            )
        if request.method not in ("GET", "HEAD") and not _is_same_origin(request):
            return self.refuse(request, "This was sent from another page. Nothing was saved.")
        return None


class SecurityHeaders:
    """Middleware that adds `HEADERS` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add headers to its response."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _equal(given: str, secret: str) -> bool:
    return secrets.compare_digest(given.encode(errors="replace"), secret.encode())


def _is_same_origin(request: Request) -> bool:
    """Whether a page of this server has sent the form; all browsers send Origin with forms."""
    host = request.headers["host"]
    return request.headers.get("origin") in (f"http://{host}", f"https://{host}")
