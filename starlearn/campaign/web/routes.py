"""Routes of the page: each request becomes a call of the annotation service."""

from collections.abc import Callable
from functools import partial
from urllib.parse import quote, unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from starlearn.campaign.annotation import Action
from starlearn.campaign.responses import checked_name
from starlearn.campaign.web.access import HOSTS, AccessMiddleware, AccessTokens, SecurityHeaders
from starlearn.campaign.web.pages import STATIC, Pages
from starlearn.campaign.web.service import AnnotationService, OutOfDateError
from starlearn.errors import InputError, StarlearnError

MAX_FIELDS = 20
MAX_FIELD_BYTES = 16 * 2**20
"""Room for the longest answer with every character escaped in a form."""

NAME = "starlearn-name"
"""The cookie with the annotator's name."""


class Site:
    """Handlers of requests; `suggested` is initially in the form for the annotator's name."""

    def __init__(self, service: AnnotationService, suggested: str) -> None:
        self.service, self.suggested = service, suggested
        self.pages = Pages()

    def home(self, request: Request) -> Response:
        """Show the item that waits for this browser's annotator."""
        name = _name_of(request)
        if name is None:
            return HTMLResponse(self.pages.name(self.suggested, self.service.names()))
        view = self.service.view(name, request.query_params.get("item"))
        return HTMLResponse(self.pages.item(view))

    def name_form(self, request: Request) -> Response:
        """Show the form for the annotator's name."""
        suggested = _name_of(request) or self.suggested
        return HTMLResponse(self.pages.name(suggested, self.service.names()))

    async def set_name(self, request: Request) -> Response:
        """Store the annotator's name in a cookie."""
        given = (await _form(request)).get("name", "")
        try:
            name = checked_name(given)
        except InputError as error:
            names = await run_in_threadpool(self.service.names)
            return HTMLResponse(self.pages.name(given, names, str(error)), status_code=400)
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(NAME, quote(name), httponly=True, samesite="strict", path="/")
        return response

    async def respond(self, request: Request) -> Response:
        """Store a response and show the next item."""
        form = await _form(request)
        return await run_in_threadpool(self._stored, form, partial(self._record, form))

    async def undo(self, request: Request) -> Response:
        """Undo the last response and show its item again."""
        form = await _form(request)
        return await run_in_threadpool(self._stored, form, partial(self._undo, form))

    def unavailable(self, request: Request, error: Exception) -> Response:
        """Report that the campaign cannot be read now."""
        return self._refusal(str(error), 503)

    def http_error(self, request: Request, error: Exception) -> Response:
        """Report an unknown page or a form that is too large."""
        return self._refusal(str(error), getattr(error, "status_code", 500))

    def refuse(self, request: Request, reason: str) -> Response:
        """Report that access is refused."""
        return self._refusal(reason, 403)

    def _refusal(self, reason: str, code: int) -> Response:
        page = self.pages.refused(reason, {}, None, retry=False)
        return HTMLResponse(page, status_code=code)

    def _record(self, form: dict[str, str]) -> str:
        action = _action(form, self.service.campaign.choices)
        annotator, item = form.get("annotator", ""), form.get("item", "")
        seen, ms = _count(form.get("seen")) or 0, _count(form.get("ms"))
        self.service.record(annotator, item, action, seen, ms)
        return "/"

    def _undo(self, form: dict[str, str]) -> str:
        item = self.service.undo(form.get("annotator", ""), _count(form.get("response")) or 0)
        return f"/?item={quote(item)}"

    def _stored(self, form: dict[str, str], write: Callable[[], str]) -> Response:
        """Redirect to the address that a write returns, or show what was sent and the error."""
        try:
            return RedirectResponse(write(), status_code=303)
        except StarlearnError as error:
            retry = not isinstance(error, InputError)
            code = 409 if isinstance(error, OutOfDateError) else 503 if retry else 400
            chosen = form.get("choice", "").partition(":")[2]
            sent = form.get("answer") or form.get("note") or chosen or None
            kept = " It was not saved. It is kept on this page: try again." if retry else ""
            page = self.pages.refused(f"{error}{kept}", form if retry else {}, sent, retry)
            return HTMLResponse(page, status_code=code)


def make_app(service: AnnotationService, tokens: AccessTokens, suggested: str = "me") -> Starlette:
    """Make the web application of one campaign."""
    site = Site(service, suggested)
    return Starlette(
        routes=[
            Route("/", site.home),
            Route("/name", site.name_form),
            Route("/name", site.set_name, methods=["POST"]),
            Route("/respond", site.respond, methods=["POST"]),
            Route("/undo", site.undo, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[
            Middleware(SecurityHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
            Middleware(AccessMiddleware, tokens=tokens, refuse=site.refuse),
        ],
        exception_handlers={StarlearnError: site.unavailable, HTTPException: site.http_error},
    )


def _action(form: dict[str, str], choices: list[str] | None) -> Action:
    """Return the action of a form; a choice is sent as its index."""
    kind = form.get("kind", "")
    if kind == "label" and choices is None:
        # Browsers send every line break of a form as CR LF.
        return Action("label", form.get("answer", "").replace("\r\n", "\n"))
    if kind == "label":
        index = _count(form.get("choice", "").partition(":")[0])
        if index is None or index >= len(choices or []):
            raise InputError("No choice was sent. Nothing was saved.")
        return Action("label", (choices or [])[index])
    if kind == "flag":
        return Action("flag", form.get("note", "").replace("\r\n", "\n").strip() or None)
    if kind == "skip":
        return Action("skip")
    raise InputError(f"{kind!r:.40} is an unknown kind of response. Nothing was saved.")


def _count(text: str | None) -> int | None:
    """Return a number of a form; None unless it is up to 12 digits."""
    if text is None or not (text.isascii() and text.isdecimal() and len(text) <= 12):
        return None
    return int(text)


def _name_of(request: Request) -> str | None:
    try:
        return checked_name(unquote(request.cookies.get(NAME, "")))
    except InputError:
        return None


async def _form(request: Request) -> dict[str, str]:
    found = await request.form(max_files=0, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    return {key: value for key, value in found.items() if isinstance(value, str)}
