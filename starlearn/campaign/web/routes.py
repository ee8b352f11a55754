"""The page's addresses: what a browser sends becomes a call of the desk, and an answer a page."""

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

from starlearn.campaign.annotation import Said
from starlearn.campaign.responses import checked_name
from starlearn.campaign.web.access import HOSTS, Door, Guard, SafeHeaders
from starlearn.campaign.web.pages import STATIC, Pages
from starlearn.campaign.web.service import Desk, OutOfDateError
from starlearn.errors import InputError, StarlearnError

MOST_FIELDS = 20
LONGEST_FIELD = 16 * 2**20
"""Bytes: the longest answer there may be, with every character spelled in a form."""

NAME = "starlearn-name"
"""The cookie with the annotator's name."""


class Site:
    """Answers requests.

    Parameters
    ----------
    desk : Desk
    suggested : str
        The name that stands in the field at first.
    """

    def __init__(self, desk: Desk, suggested: str) -> None:
        self.desk, self.suggested = desk, suggested
        self.pages = Pages()

    def home(self, request: Request) -> Response:
        """Show the item that waits for this browser's annotator."""
        name = _name_of(request)
        if name is None:
            return HTMLResponse(self.pages.name(self.suggested, self.desk.names()))
        view = self.desk.view(name, request.query_params.get("item"))
        return HTMLResponse(self.pages.item(view))

    def ask_name(self, request: Request) -> Response:
        """Ask for another name."""
        suggested = _name_of(request) or self.suggested
        return HTMLResponse(self.pages.name(suggested, self.desk.names()))

    async def choose_name(self, request: Request) -> Response:
        """Keep the name in the browser."""
        given = (await _form(request)).get("name", "")
        try:
            name = checked_name(given)
        except InputError as error:
            names = await run_in_threadpool(self.desk.names)
            return HTMLResponse(self.pages.name(given, names, str(error)), status_code=400)
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(NAME, quote(name), httponly=True, samesite="strict", path="/")
        return response

    async def word(self, request: Request) -> Response:
        """Store a word and show the next item."""
        form = await _form(request)
        return await run_in_threadpool(self._stored, form, partial(self._say, form))

    async def undo(self, request: Request) -> Response:
        """Take the last word back and show its item again."""
        form = await _form(request)
        return await run_in_threadpool(self._stored, form, partial(self._undo, form))

    def unavailable(self, request: Request, error: Exception) -> Response:
        """Say why a page cannot be shown: the campaign cannot be read now."""
        return self._refusal(str(error), 503)

    def missing(self, request: Request, error: Exception) -> Response:
        """Say that there is no such page, or that a form is too large."""
        return self._refusal(str(error), getattr(error, "status_code", 500))

    def refuse(self, request: Request, reason: str) -> Response:
        """Say why somebody is not let in."""
        return self._refusal(reason, 403)

    def _refusal(self, reason: str, code: int) -> Response:
        page = self.pages.refused(reason, {}, None, again=False)
        return HTMLResponse(page, status_code=code)

    def _say(self, form: dict[str, str]) -> str:
        said = _said(form, self.desk.campaign.choices)
        annotator, item = form.get("annotator", ""), form.get("item", "")
        self.desk.say(annotator, item, said, _count(form.get("seen")) or 0, _count(form.get("ms")))
        return "/"

    def _undo(self, form: dict[str, str]) -> str:
        item = self.desk.undo(form.get("annotator", ""), _count(form.get("word")) or 0)
        return f"/?item={quote(item)}"

    def _stored(self, form: dict[str, str], write: Callable[[], str]) -> Response:
        """Go on to where a write leads, or show what was typed and why it was not stored."""
        try:
            return RedirectResponse(write(), status_code=303)
        except StarlearnError as error:
            again = not isinstance(error, InputError)
            code = 409 if isinstance(error, OutOfDateError) else 503 if again else 400
            chosen = form.get("choice", "").partition(":")[2]
            said = form.get("answer") or form.get("note") or chosen or None
            kept = " It was not saved, and is kept on this page to be sent again." if again else ""
            page = self.pages.refused(f"{error}{kept}", form if again else {}, said, again)
            return HTMLResponse(page, status_code=code)


def make_app(desk: Desk, door: Door, suggested: str = "me") -> Starlette:
    """Make the application for one campaign.

    Parameters
    ----------
    desk : Desk
    door : Door
    suggested : str
        A name for annotators who have none yet.
    """
    site = Site(desk, suggested)
    return Starlette(
        routes=[
            Route("/", site.home),
            Route("/name", site.ask_name),
            Route("/name", site.choose_name, methods=["POST"]),
            Route("/word", site.word, methods=["POST"]),
            Route("/undo", site.undo, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[
            Middleware(SafeHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
            Middleware(Guard, door=door, refuse=site.refuse),
        ],
        exception_handlers={StarlearnError: site.unavailable, HTTPException: site.missing},
    )


def _said(form: dict[str, str], choices: list[str] | None) -> Said:
    """Return what a form says, the place of a choice turned into the choice."""
    kind = form.get("kind", "")
    if kind == "label" and choices is None:
        # Browsers send every line break of a form as CR LF.
        return Said("label", form.get("answer", "").replace("\r\n", "\n"))
    if kind == "label":
        place = _count(form.get("choice", "").partition(":")[0])
        if place is None or place >= len(choices or []):
            raise InputError("No choice was sent. Nothing was saved.")
        return Said("label", (choices or [])[place])
    if kind == "flag":
        return Said("flag", form.get("note", "").replace("\r\n", "\n").strip() or None)
    if kind == "skip":
        return Said("skip")
    raise InputError(f"{kind!r:.40} is nothing to say about an item. Nothing was saved.")


def _count(text: str | None) -> int | None:
    """Return a number of a form, None where it is none that a person's browser would send."""
    if text is None or not (text.isascii() and text.isdecimal() and len(text) <= 12):
        return None
    return int(text)


def _name_of(request: Request) -> str | None:
    try:
        return checked_name(unquote(request.cookies.get(NAME, "")))
    except InputError:
        return None


async def _form(request: Request) -> dict[str, str]:
    found = await request.form(max_files=0, max_fields=MOST_FIELDS, max_part_size=LONGEST_FIELD)
    return {key: value for key, value in found.items() if isinstance(value, str)}
