"""The web page: access, and what it shows."""

import re
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from campaign_cases import POOL
from page_cases import HOSTILE, MANY, ORIGIN, Page, responses_of, visitors
from starlette.datastructures import URL
from starlette.requests import Request
from starlette.testclient import TestClient
from test_campaign_commands import refused

from starlearn.campaign.campaign import Campaign
from starlearn.campaign.web import serving
from starlearn.campaign.web.access import HEADERS, AccessTokens
from starlearn.campaign.web.pages import HERE, STATIC, shown
from starlearn.campaign.web.routes import make_app
from starlearn.campaign.web.service import AnnotationService
from starlearn.errors import InputError, MissingDependencyError
from starlearn.tasks import ChoiceTask

# Who gets in


def strangers(campaign):
    """Return a client that has not been let in, and the tokens."""
    tokens = AccessTokens(8765)
    app = make_app(AnnotationService(campaign), tokens)
    return TestClient(app, base_url=ORIGIN, follow_redirects=False), tokens


@pytest.mark.parametrize("token", [None, "", "x", "é", "\ud800", "0" * 43])
def test_nobody_gets_in_without_the_token(batch, token):
    client, tokens = strangers(batch)
    item = batch.batch()[0]
    if token is not None:
        assert client.get("/", params={"token": token.encode(errors="replace")}).status_code == 403
        client.cookies.set(tokens.cookie, token.encode("ascii", "replace").decode())
    for path in ("/", "/name", f"/?item={item.id}", "/respond", "/nowhere"):
        answer = client.get(path)
        assert answer.status_code == 403
        assert item.fields["text"] not in answer.text
        assert "Open the address" in answer.text
    form = {"kind": "label", "annotator": "x", "item": item.id, "seen": "0", "choice": "0:red"}
    answer = client.post("/respond", data=form, headers={"Origin": ORIGIN})
    assert answer.status_code == 403
    assert responses_of(batch) == []


def test_the_token_moves_from_the_address_to_a_cookie(batch):
    client, tokens = strangers(batch)
    answer = client.get("/", params={"token": tokens.token})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert len(tokens.token) >= 40
    page = client.get("/")
    assert page.status_code == 200
    assert tokens.token not in page.text
    assert AccessTokens(8765).token != tokens.token


def test_two_servers_on_one_machine_keep_their_cookies_apart():
    # Browsers send cookies to every port.
    assert AccessTokens(1).cookie != AccessTokens(2).cookie


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:8765", 200),
        ("localhost:9999", 200),  # through a tunnel
        ("evil.example", 400),
        ("evil.example:8765", 400),
        ("127.0.0.1.evil.example", 400),
        ("", 400),
    ],
)
def test_a_name_that_was_bound_to_this_address_is_refused(batch, host, code):
    (visitor,) = visitors(batch, "ann")
    assert visitor.client.get("/", headers={"Host": host}).status_code == code


def test_an_address_made_of_the_host_header_opens_nothing(batch, monkeypatch):
    """As in Starlette 1.0, where Host: 127.0.0.1:8765/static/? became the path of request.url."""
    client, _ = strangers(batch)
    monkeypatch.setattr(Request, "url", URL("http://127.0.0.1:8765/static/?/"))
    assert client.get("/").status_code == 403


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:1", f"{ORIGIN}.evil.example"]
)
def test_forms_from_other_pages_are_refused(batch, origin):
    (visitor,) = visitors(batch, "ann")
    form = visitor.get().form("label")
    headers = {} if origin is None else {"Origin": origin}
    for path in ("/respond", "/undo", "/name"):
        answer = visitor.client.post(
            path, data={**form.fields, "choice": "0:red", "name": "eve"}, headers=headers
        )
        assert answer.status_code == 403
    assert responses_of(batch) == []
    assert "ann" in visitor.get().text


def test_every_response_has_the_security_headers(batch):
    client, tokens = strangers(batch)
    (visitor,) = visitors(batch, "ann")
    answers = [
        client.get("/"),
        client.get("/", params={"token": tokens.token}),
        client.get("/", headers={"Host": "evil.example"}),
        visitor.client.get("/"),
        visitor.client.get("/nowhere"),
        visitor.client.get("/respond"),
        visitor.client.get("/static/label.js"),
        visitor.client.get("/static/../app.py"),
    ]
    assert [a.status_code for a in answers] == [403, 303, 400, 200, 404, 405, 200, 404]
    for answer in answers:
        assert HEADERS.items() <= {k: answer.headers.get(k) for k in HEADERS}.items()
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["Cache-Control"] == "no-store"
    policy = HEADERS["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_page_runs_and_loads_nothing_but_its_own_files():
    for file in [*(HERE / "templates").iterdir(), *STATIC.iterdir()]:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|url\(|@import", text), file
        if file.suffix == ".html":
            assert not re.search(r"<script(?! src=\"/static/)|\son\w+=|\sstyle=|<style", text), file
            assert not re.search(r"\|\s*safe|autoescape", text), file
    script = (STATIC / "label.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)


# Text of others


def assert_harmless(text):
    """No tag and no attribute is there that the templates do not have."""
    page = Page(text)
    assert not {"img", "iframe"} & {tag for tag, _ in page.tags}
    assert [found for tag, found in page.tags if tag == "script"] == [
        {"src": "/static/label.js", "defer": ""}
    ]
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
    assert "49" not in text  # of {{7*7}}
    return page


def test_text_of_items_choices_and_annotators_is_escaped(make_campaign):
    pool = [{"text": f"{HOSTILE} {row}", "source": HOSTILE} for row in range(3)]
    task = ChoiceTask("{text} Answer :", choices=[HOSTILE, "red", "green"])
    campaign = make_campaign(pool, task=task, extra_fields=["source"])
    campaign.query(3)
    name = f"ann {HOSTILE[:80]}"
    (visitor,) = visitors(campaign, name)
    page = assert_harmless(visitor.get() and visitor.answer.text)
    assert page.text.count(HOSTILE) == 3  # the text, the other field, the choice
    assert name in page.text
    assert page.form("label").fields["annotator"] == name
    assert_harmless(visitor.label(page, 0) and visitor.answer.text)
    assert f"Saved: {HOSTILE[:59]}" in visitor.get().text
    assert responses_of(campaign) == [(name, "label", HOSTILE)]
    item = campaign.batch()[0].id
    again = assert_harmless(visitor.get(f"/?item={item}") and visitor.answer.text)
    assert f"Your current answer: {HOSTILE}" in again.text
    assert_harmless(visitor.get("/name") and visitor.answer.text)
    # Errors show what was sent.
    form = page.form("flag")
    for kind in ("flag", HOSTILE):
        values = {**form.fields, "kind": kind, "item": "i0", "note": HOSTILE}
        refused = assert_harmless(visitor.post("/respond", values) and visitor.answer.text)
        assert visitor.answer.status_code in (400, 409)
        assert HOSTILE in refused.text
    assert_harmless(visitor.post("/name", {"name": HOSTILE * 3}) and visitor.answer.text)
    assert visitor.answer.status_code == 400


def test_free_answers_are_escaped_and_come_back_as_they_were(free):
    (visitor,) = visitors(free, "ann")
    text = f"\n  {HOSTILE}\n\nsecond line "
    visitor.send(visitor.get().form("label"), answer=text.replace("\n", "\r\n"))
    assert responses_of(free) == [("ann", "label", text)]
    page = visitor.send(visitor.get().form("undo"))
    assert_harmless(visitor.answer.text)
    assert page.form("label").fields["answer"] == text


def test_text_cannot_pass_for_other_text_on_the_page(make_campaign):
    nasty = "a\x1b[31m\u202eb\u200b\x00\tc\r\nd"
    assert shown(nasty) == (
        'a<span class="odd">\\x1b</span>[31m<span class="odd">\\u202e</span>b'
        '<span class="odd">\\u200b\\x00</span>\tc\nd'
    )
    legible = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f52c"
    assert shown(legible) == legible
    campaign = make_campaign([nasty, "the sky is"])
    campaign.query(2)
    (visitor,) = visitors(campaign, "ann")
    page = visitor.get(f"/?item={campaign.batch()[0].id}")
    assert not set("\x1b\u202e\x00") & set(page.text)
    assert nasty in [item.fields["text"] for item in campaign.batch()]


# What is shown


def test_what_is_shown(make_campaign):
    pool = [{"text": text, "source": f"page {row}"} for row, text in enumerate(POOL)]
    campaign = make_campaign(pool, extra_fields=["source"])
    item, *_ = campaign.query(3)
    (visitor,) = visitors(campaign, "ann")
    page = visitor.get()
    assert "Item 1 of 3, round 1" in page.text
    assert f"Chosen because: {item.reason}" in page.text
    assert item.fields["text"] in page.text
    assert item.fields["source"] in page.text
    assert "0 of 3 done, 0 by you" in page.text
    labels = page.form("label").buttons
    assert [button["aria-keyshortcuts"] for button in labels] == ["1", "2", "3"]
    for key in "sf?":
        assert page.element(**{"aria-keyshortcuts": key})
    assert not page.element(action="/undo")
    page = visitor.label(page, 1)
    assert "Item 2 of 3" in page.text
    assert "Saved: green" in page.text
    assert "1 of 3 done, 1 by you" in page.text
    assert page.element(**{"aria-keyshortcuts": "u"})
    assert campaign.labels() == {item.id: "green"}


def test_a_browser_without_a_name_gets_the_form_for_it(batch):
    (visitor,) = visitors(batch, None)
    page = visitor.get()
    assert "Who labels?" in page.text
    assert page.forms[0].fields == {"name": "me"}
    for bad in ("", "  ", "a\nb", "x" * 101):
        assert "1 to 100 printable characters" in visitor.post("/name", {"name": bad}).text
        assert visitor.answer.status_code == 400
    page = visitor.post("/name", {"name": " Zoë; 山 "})
    assert "Annotator Zoë; 山" in page.text
    visitor.label(page, 0)
    assert responses_of(batch) == [("Zoë; 山", "label", "red")]
    page = visitor.get("/name")
    assert page.forms[0].fields == {"name": "Zoë; 山"}
    assert "Annotator bob" in visitor.post("/name", {"name": "bob"}).text
    (other,) = visitors(batch, None)
    other.client.cookies.set("starlearn-name", "a%0Ab")
    assert "Who labels?" in other.get().text


def test_a_reload_and_a_new_server_keep_the_place(batch):
    (visitor,) = visitors(batch, "ann")
    visitor.label(visitor.get(), 0)
    assert "Item 2 of 4" in visitor.get().text
    assert "Item 2 of 4" in visitor.get().text
    (again,) = visitors(batch, "ann")
    assert "Item 2 of 4" in again.get().text


def test_the_end_of_the_batch_shows_the_next_command(batch):
    (visitor,) = visitors(batch, "ann")
    for _ in range(4):
        visitor.label(visitor.get(), 0)
    page = visitor.get()
    assert "No item of this batch waits for you" in page.text
    assert f"starlearn teach {batch.folder}" in page.text
    assert "Item 4 of 4" in visitor.send(page.form("undo")).text
    assert responses_of(batch)[-1] == ("ann", "undo", None)


def test_choices_that_need_more_than_a_key(make_campaign):
    campaign = make_campaign(task=ChoiceTask("{text} Answer :", choices=MANY))
    campaign.query(2)
    (visitor,) = visitors(campaign, "ann")
    page = visitor.get()
    assert page.element(id="filter", role="combobox")
    assert not page.element(**{"aria-keyshortcuts": "1"})
    visitor.label(page, 11)
    assert list(campaign.labels().values()) == [MANY[11]]
    form = visitor.get().form("label")
    for bad in ("12", "-1", "x", "", "1.5", "²"):
        visitor.send(form, 400, choice=bad)
    assert len(responses_of(campaign)) == 1


@pytest.mark.parametrize(
    ("choices", "keys"),
    [
        (["1", "0"], ["1", "0"]),
        (["0: none", "1: mild", "2: severe"], ["0", "1", "2"]),
        (["٣: b", "٢: a"], ["3 ٣", "2 ٢"]),
        (["02 b", "01 a"], ["2", "1"]),
    ],
)
def test_the_number_that_a_person_reads_is_the_key(batch, monkeypatch, choices, keys):
    campaign = batch
    monkeypatch.setattr(Campaign, "choices", property(lambda self: choices))
    (visitor,) = visitors(campaign, "ann")
    page = visitor.get()
    assert [b["aria-keyshortcuts"] for b in page.form("label").buttons] == keys
    visitor.label(page, 1)
    assert list(campaign.labels().values()) == [choices[1]]


def test_without_one_number_for_every_choice_there_are_no_number_keys(batch, monkeypatch):
    monkeypatch.setattr(Campaign, "choices", property(lambda self: ["10: all", "1-3", "unsure"]))
    (visitor,) = visitors(batch, "ann")
    page = visitor.get()
    buttons = page.form("label").buttons
    assert not any("aria-keyshortcuts" in button for button in buttons)
    assert [button["data-number"] for button in buttons] == ["", "", ""]
    assert page.element(id="filter", placeholder="A part of the name, arrows, Enter")


# The command


def test_label_web_needs_its_libraries(batch, monkeypatch):
    monkeypatch.setattr(serving, "find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(MissingDependencyError, match=r"uvicorn.*pip install 'starlearn\[web\]'"):
        serving.serve(batch, "ann")
    output = refused("label", batch.folder, "--web", "--no-browser", code=1)
    assert "pip install 'starlearn[web]'" in output


def test_label_web_at_the_wrong_time_or_with_wrong_options(make_campaign):
    campaign = make_campaign()
    assert "no batch" in refused("label", campaign.folder, "--web", "--no-browser")
    campaign.query(2)
    assert "need --web" in refused("label", campaign.folder, "--port", 8765)
    assert "need --web" in refused("label", campaign.folder, "--no-browser")
    assert "65535" in refused("label", campaign.folder, "--web", "--port", 65536)
    assert "printable" in refused("label", campaign.folder, "--web", "-a", " ", "--no-browser")


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_port_in_use_is_reported(batch):
    with serving.listening(0) as taken:
        port = taken.getsockname()[1]
        output = refused("label", batch.folder, "--web", "--no-browser", "--port", port)
        assert f"Port {port} of 127.0.0.1 is in use" in output
        assert taken.getsockname()[0] == "127.0.0.1"  # nobody else on the network reaches it
    with (
        serving.listening(port),
        pytest.raises(InputError, match="in use"),
        serving.listening(port),
    ):
        pass


def test_the_browser_gets_the_token_from_a_file_of_this_user_alone(monkeypatch, capsys, batch):
    opened, served = [], threading.Event()
    monkeypatch.setattr(serving.webbrowser, "open", lambda url: (opened.append(url), served.set()))
    monkeypatch.setattr(serving, "listening", _no_listener)

    class Server:
        def run(self, sockets):
            assert served.wait(60)
            file = Path(unquote(urlsplit(opened[0]).path))
            modes.append(file.stat().st_mode & 0o777)
            leads_to.extend(re.findall('url=([^"]+)', file.read_text()))
            raise KeyboardInterrupt

    modes, leads_to = [], []
    monkeypatch.setattr(serving, "make_server", lambda app: Server())
    monkeypatch.setenv("BROWSER", "some-browser")
    before = sorted(batch.folder.iterdir())
    assert serving.serve(batch, "ann") == 0
    (printed,) = re.findall(r"http://127\.0\.0\.1:7/\?token=\S+", capsys.readouterr().out)
    # Other users can read a browser's command line.
    assert opened[0].startswith("file:///")
    assert printed.partition("token=")[2] not in opened[0]
    assert modes == [0o600]
    assert leads_to == [printed]
    assert sorted(batch.folder.iterdir()) == before
    # Without a display there are only browsers that would run in this terminal.
    monkeypatch.setattr(serving.sys, "platform", "linux")
    for name in serving.DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    with serving._opened(printed, batch.folder, browser=True):
        assert sorted(batch.folder.iterdir()) == before
    assert len(opened) == 1


class _no_listener:  # noqa: N801
    def __init__(self, port):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def getsockname(self):
        return "127.0.0.1", 7
