"""What tests of the page share: a browser without a window, and the forms of a page."""

import itertools
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from starlette.testclient import TestClient

from starlearn.campaign import events
from starlearn.campaign.web.access import AccessTokens
from starlearn.campaign.web.routes import make_app
from starlearn.campaign.web.service import AnnotationService
from starlearn.tasks import GenerationTask

ORIGIN = "http://127.0.0.1:8765"
MANY = [f"{colour} {letter}" for colour in ("red", "green", "blue") for letter in "abcd"]
FREE = GenerationTask("{text} Answer :", max_new_tokens=4)
HOSTILE = "</textarea></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&lt;{{7*7}}"


@dataclass
class Form:
    """A form: where it goes to, what it holds, and its buttons."""

    action: str
    fields: dict[str, str] = field(default_factory=dict)
    buttons: list[dict[str, str]] = field(default_factory=list)


class Page(HTMLParser):
    """A page as a browser reads it: its tags, its text and its forms."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.forms: list[Form] = []
        self.text = ""
        self._area: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag == "form":
            self.forms.append(Form(found["action"]))
        elif tag in ("input", "textarea") and "name" in found:
            self.forms[-1].fields[found["name"]] = found.get("value", "")
            self._area = found["name"] if tag == "textarea" else None
        elif tag == "button":
            self.forms[-1].buttons.append(found)

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self._area = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._area is not None:
            # A browser drops the line break after the tag.
            self.forms[-1].fields[self._area] += data.removeprefix("\n")

    def form(self, kind: str) -> Form:
        """Return the form of a label, skip or flag, or that of undo."""
        for found in self.forms:
            if found.fields.get("kind") == kind or found.action == f"/{kind}":
                return found
        raise AssertionError(f"no form for {kind}: {self.text}")

    def element(self, **wanted: str) -> bool:
        """Whether there is a tag with these attributes."""
        return any(wanted.items() <= attributes.items() for _, attributes in self.tags)


class Visitor:
    """One browser at a campaign's page, let in and with a name."""

    numbers = itertools.count()

    def __init__(self, app: Any, tokens: AccessTokens, name: str | None = "ann") -> None:
        self.client = TestClient(app, base_url=ORIGIN, raise_server_exceptions=True)
        self.client.get("/", params={"token": tokens.token})
        if name is not None:
            self.post("/name", {"name": name})

    def get(self, path: str = "/") -> Page:
        self.answer = self.client.get(path)
        return Page(self.answer.text)

    def post(self, path: str, values: dict[str, str]) -> Page:
        self.answer = self.client.post(path, data=values, headers={"Origin": ORIGIN})
        return Page(self.answer.text)

    def send(self, form: Form, code: int = 200, **values: str) -> Page:
        """Send a form, and return the page that comes of it."""
        page = self.post(form.action, {**form.fields, **values})
        assert self.answer.status_code == code, page.text
        return page

    def label(self, page: Page, place: int, code: int = 200) -> Page:
        """Press the button of a choice."""
        form = page.form("label")
        return self.send(form, code, choice=form.buttons[place]["value"])


def visitors(campaign: Any, *names: str | None) -> list[Visitor]:
    """Return one browser per annotator, connected to one service."""
    tokens = AccessTokens(8765)
    app = make_app(AnnotationService(campaign), tokens, "me")
    return [Visitor(app, tokens, name) for name in names]


def responses_of(campaign: Any) -> list[tuple[str, str, str | None]]:
    """Return annotator, kind and answer or note of every event, in order."""
    return [
        (event.annotator, event.kind, event.answer if event.answer is not None else event.note)
        for event in events.events(campaign.store)
    ]
