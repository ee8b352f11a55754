"""Who may come in: a token, the page's own host and origin; and what browsers must refuse."""

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
    # With no-referrer, browsers hide the origin of the page's own forms: Origin would be null.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # So that the back button shows what is, not what was.
    "Cache-Control": "no-store",
}

HOSTS = ["127.0.0.1", "localhost"]
"""What the Host header may name, whatever the port: through a tunnel it is another one. A page
elsewhere whose name was bound to this address sends its own name."""

Refusal = Callable[[Request, str], Response]


class Door:
    """The secrets of one server.

    Parameters
    ----------
    port : int
        Part of the cookie's name: browsers send cookies to every port of a host.
    """

    def __init__(self, port: int) -> None:
        self.cookie = f"starlearn-{port}"
        self.token = secrets.token_urlsafe(32)
        """In the address that is printed."""
        self._ticket: str | None = None

    def ticket(self) -> str:
        """Return a token that opens once: command lines, also a browser's, are seen by others."""
        self._ticket = secrets.token_urlsafe(32)
        return self._ticket

    def opens(self, given: str) -> bool:
        """Tell whether this is the token, or the ticket for the first time."""
        if self._ticket is not None and _same(given, self._ticket):
            self._ticket = None
            return True
        return _same(given, self.token)

    def admits(self, request: Request) -> bool:
        """Tell whether a browser has been let in before."""
        return _same(request.cookies.get(self.cookie, ""), self.token)


class Guard:
    """Lets nobody in but who has the token, and no word in but from the page itself.

    Parameters
    ----------
    app : ASGI application
    door : Door
    refuse : callable
        Makes the answer of a request and a reason.
    """

    def __init__(self, app: ASGIApp, door: Door, refuse: Refusal) -> None:
        self.app, self.door, self.refuse = app, door, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        answer = self._answer(Request(scope))
        await (self.app if answer is None else answer)(scope, receive, send)

    def _answer(self, request: Request) -> Response | None:
        given = request.query_params.get("token")
        if request.method == "GET" and given is not None and self.door.opens(given):
            # Another address at once, so that the token stays in none that people copy or see.
            response = RedirectResponse("/", status_code=303)
            response.set_cookie(
                self.door.cookie, self.door.token, httponly=True, samesite="strict", path="/"
            )
            return response
        # Not request.url: some versions of Starlette build it from the Host that a client names.
        if request.scope["path"].startswith("/static/"):
            return None
        if not self.door.admits(request):
            return self.refuse(
                request,
                "Open the address that starlearn printed in the terminal, with its token: it is "
                "another one each time. If you have just done so, go on.",
            )
        if request.method not in ("GET", "HEAD") and not _from_the_page(request):
            return self.refuse(request, "This was sent from another page. Nothing was saved.")
        return None


class SafeHeaders:
    """Adds to every answer what keeps browsers from running, framing or keeping anything."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and add headers to the answer."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_safely)


def _same(given: str, secret: str) -> bool:
    return secrets.compare_digest(given.encode(errors="replace"), secret.encode())


def _from_the_page(request: Request) -> bool:
    """Tell whether a form was sent by a page of this very server; all browsers send Origin."""
    host = request.headers["host"]
    return request.headers.get("origin") in (f"http://{host}", f"https://{host}")
