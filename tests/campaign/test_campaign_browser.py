"""The page in a real browser, headless Chromium: keys, two people at once, hostile text, no script.

Skipped where there is no Chromium; nothing but the page's own server is reached.
"""

import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from campaign_cases import POOL
from page_cases import FREE, HOSTILE, MANY, responses_of
from test_campaign_commands import HOLD

from starlearn.campaign.campaign import Campaign
from starlearn.campaign.web import serving
from starlearn.campaign.web.access import AccessTokens
from starlearn.campaign.web.routes import make_app
from starlearn.campaign.web.service import AnnotationService
from starlearn.campaign.web.serving import listening, make_server
from starlearn.tasks import ChoiceTask

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=60_000)

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


class Served:
    """A campaign's page in a thread of this process, and browsers that look at it."""

    def __init__(self, campaign, chromium):
        self.campaign, self.chromium = campaign, chromium
        self.errors = []
        self.contexts = []

    @contextmanager
    def running(self):
        with listening(0) as listener:
            port = listener.getsockname()[1]
            self.origin, self.tokens = f"http://127.0.0.1:{port}", AccessTokens(port)
            self.server = make_server(make_app(AnnotationService(self.campaign), self.tokens))
            thread = threading.Thread(target=self.server.run, args=([listener],))
            thread.start()
            try:
                yield self
                assert self.errors == []
            finally:
                for context in self.contexts:
                    context.close()
                self.server.should_exit = True
                thread.join()

    @property
    def address(self):
        return f"{self.origin}/?token={self.tokens.token}"

    def page(self, name="ann", **options):
        """Open the page in a browser of its own, and choose a name."""
        context = self.chromium.new_context(**options)
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.complain(message.text))
        page.on("pageerror", lambda error: self.complain(str(error)))
        page.on("dialog", lambda dialog: (self.complain(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.leaves(request.url))
        page.goto(self.address)
        if name:
            page.fill("#name", name)
            page.keyboard.press("Enter")
            expect(page.locator("header")).to_contain_text(name)
        return page

    def complain(self, text):
        # The page shows what the server refused on purpose.
        if "Failed to load resource" not in text:
            self.errors.append(text)

    def leaves(self, url):
        if not url.startswith(self.origin):
            self.errors.append(url)


@pytest.fixture
def served(make_campaign, chromium):
    """Return a factory of running pages with an issued batch."""
    with_batch = []

    def factory(pool=POOL, n=4, **changes):
        campaign = make_campaign(pool, **changes)
        campaign.query(n)
        running = Served(campaign, chromium).running()
        with_batch.append(running)
        return running.__enter__()

    yield factory
    for running in with_batch:
        running.__exit__(None, None, None)


def item(page, place):
    """Wait until the page shows the item at a place."""
    expect(page.locator(".place")).to_contain_text(f"Item {place} of")


def press(page, key, feedback):
    """Press a key, and wait for the feedback of the page."""
    page.keyboard.press(key)
    expect(page.locator("#status")).to_contain_text(feedback)


def test_label_by_key_undo_and_reload(served):
    at = served()
    page = at.page()
    assert page.url == f"{at.origin}/"  # the token is not in the address
    assert page.evaluate("document.cookie") == ""  # nor is it there for scripts
    item(page, 1)
    press(page, "2", "Saved: green")
    item(page, 2)
    press(page, "s", "Saved: skipped")
    page.keyboard.press("f")
    page.keyboard.type("u s 1")  # letters in a field are letters
    press(page, "Enter", "Saved: flagged")
    item(page, 4)
    press(page, "u", "Undone: flag")
    item(page, 3)
    page.reload()
    item(page, 3)
    press(page, "1", "Saved: red")
    press(page, "S", "Saved: skipped")  # with caps lock
    expect(page.locator("h1")).to_have_text("No item of this batch waits for you.")
    press(page, "u", "Undone: skip")
    item(page, 4)
    for key in ("7", "x", "Control+1", "Alt+1", "Escape"):
        page.keyboard.press(key)
    page.keyboard.press("?")
    expect(page.locator(".help")).to_be_visible()
    press(page, "3", "Saved: blue")
    assert [(kind, what) for _, kind, what in responses_of(at.campaign)] == [
        ("label", "green"),
        ("skip", None),
        ("flag", "u s 1"),
        ("undo", None),
        ("label", "red"),
        ("skip", None),
        ("undo", None),
        ("label", "blue"),
    ]
    assert at.campaign.history()[0].label_seconds > 0


def test_the_digit_that_is_read_is_the_key(served, monkeypatch):
    choices = ["2: red", "1: green", "٣: blue"]
    monkeypatch.setattr(Campaign, "choices", property(lambda self: choices))
    page = served().page()
    press(page, "1", "Saved: 1: green")
    key = "new KeyboardEvent('keydown', {key: '٣', bubbles: true})"
    page.evaluate(f"document.querySelector('.item').dispatchEvent({key})")
    expect(page.locator("#status")).to_contain_text("Saved: ٣: blue")
    press(page, "2", "Saved: 2: red")
    press(page, "3", "Saved: ٣: blue")


def test_a_number_selects_no_choice_that_begins_with_a_longer_one(served, monkeypatch):
    choices = ["10: all", "1-3 days", "unsure"]
    monkeypatch.setattr(Campaign, "choices", property(lambda self: choices))
    at = served()
    page = at.page()
    page.keyboard.type("1")
    expect(page.locator(".filter output")).to_have_text("2 of 3")
    page.keyboard.press("Enter")
    expect(page.locator("[aria-selected=true]")).to_have_count(0)
    page.keyboard.press("ArrowDown")
    press(page, "Enter", "Saved: 10: all")
    assert [what for _, _, what in responses_of(at.campaign)] == ["10: all"]


def test_two_annotators_at_once(served):
    at = served()
    ann, bob = at.page("ann"), at.page("bob")
    item(ann, 1)
    item(bob, 2)
    press(ann, "1", "Saved: red")
    press(bob, "2", "Saved: green")
    press(ann, "3", "Saved: blue")
    press(bob, "u", "Undone: green")
    item(bob, 2)
    assert responses_of(at.campaign) == [
        ("ann", "label", "red"),
        ("bob", "label", "green"),
        ("ann", "label", "blue"),
        ("bob", "undo", None),
    ]


def test_a_wrong_token_is_refused(served):
    at = served()
    context = at.chromium.new_context()
    page = context.new_page()
    for address in (at.origin, at.address[:-1], f"{at.origin}/static/../"):
        assert page.goto(address).status == 403
        expect(page.locator("[role=alert].problem")).to_contain_text("Open the address")
        assert page.locator(".place").count() == 0
    assert page.goto(f"http://localhost:{at.origin.rpartition(':')[2]}").status == 403
    context.close()


def test_hostile_text_does_nothing_in_a_browser(served):
    pool = [{"text": f"{HOSTILE} {row}", "source": HOSTILE} for row in range(3)]
    task = ChoiceTask("{text} Answer :", choices=["red", HOSTILE])
    at = served(pool, 3, task=task, extra_fields=["source"])
    page = at.page(f"ann {HOSTILE[:80]}")
    expect(page.locator(".text").first).to_contain_text(HOSTILE)
    page.locator("#choice-1").click()
    expect(page.locator("#status")).to_contain_text(f"Saved: {HOSTILE[:59]}…")
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    page.keyboard.type(HOSTILE)
    press(page, "Enter", "Saved: flagged")
    page.goto(f"{at.origin}/?item={at.campaign.batch()[0].id}")
    expect(page.locator(".current")).to_contain_text(HOSTILE)
    assert page.locator("img, main script").count() == 0
    assert [(kind, what) for _, kind, what in responses_of(at.campaign)] == [
        ("label", HOSTILE),
        ("flag", HOSTILE),
    ]


def test_the_policy_stops_what_would_get_through(served):
    at = served()
    page = at.page()
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'run'";
            document.body.append(script);
        }"""
    )
    assert page.title() != "run"
    assert "Content Security Policy" in at.errors.pop()
    assert at.errors == []


def test_many_choices_are_found_by_typing_arrows_and_numbers(served):
    at = served(task=ChoiceTask("{text} Answer :", choices=MANY))
    page = at.page()
    expect(page.locator("#filter")).to_be_focused()
    page.keyboard.press("Enter")  # nothing is chosen yet
    page.keyboard.type("gre")
    expect(page.locator(".choices button:visible")).to_have_count(4)
    page.keyboard.press("ArrowDown")
    press(page, "Enter", "Saved: green b")
    expect(page.locator("#filter")).to_be_focused()
    page.keyboard.type("12")
    press(page, "Enter", "Saved: blue d")
    page.keyboard.type("d b")  # prefixes of a name rank before other parts
    page.keyboard.press("Control+a")
    page.keyboard.type("zzz")
    expect(page.locator(".filter output")).to_have_text("No choice contains this.")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    press(page, "s", "Saved: skipped")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    expect(page.locator("#filter")).to_be_focused()
    page.keyboard.press("ArrowUp")  # from the end
    press(page, "Enter", "Saved: blue d")
    assert [what for _, _, what in responses_of(at.campaign)] == [
        "green b",
        "blue d",
        None,
        "blue d",
    ]


def test_free_answers_over_several_lines(served):
    at = served(task=FREE)
    page = at.page()
    expect(page.locator("#answer")).to_be_focused()
    page.keyboard.type("\n first line\nsecond s u f ? 1 ")
    press(page, "Control+Enter", "Saved: first line second s u f ? 1")
    page.keyboard.press("Control+Enter")  # an empty answer is none
    page.keyboard.press("Escape")
    press(page, "u", "Undone: first line second s u f ? 1")
    item(page, 1)
    page.keyboard.type("end")
    press(page, "Control+Enter", "Saved: first line second s u f ? 1 end")
    page.keyboard.press("Escape")
    press(page, "s", "Saved: skipped")
    assert [what for _, _, what in responses_of(at.campaign)] == [
        "\n first line\nsecond s u f ? 1 ",
        None,
        "\n first line\nsecond s u f ? 1 end",
        None,
    ]


def test_double_clicks_and_the_back_button_store_one_response(served):
    at = served()
    page = at.page()
    page.locator(".choices button").first.dblclick()
    expect(page.locator("#status")).to_have_text(re.compile("Saved: red. Item [23] of 4"))
    item(page, 2)
    page.click("text=change")
    expect(page.locator("h1")).to_have_text("Who labels?")
    page.go_back()
    item(page, 2)
    assert responses_of(at.campaign) == [("ann", "label", "red")]
    # Another choice while the first is on its way is not sent.
    held = []
    page.route("**/respond", lambda route: held.append(route))
    page.keyboard.press("1")
    page.locator(".choices button").nth(1).click()
    page.keyboard.press("3")
    expect(page.locator("#page")).to_have_attribute("aria-busy", "true")
    while not held:  # the browser asks, then the test is told
        page.wait_for_timeout(10)
    (first,) = held
    first.continue_()
    page.unroute("**/respond")
    expect(page.locator("#status")).to_have_text(re.compile("Saved: red. Item [23] of 4"))
    item(page, 3)
    # Two windows of one annotator show the same item.
    other = page.context.new_page()
    other.goto(at.origin)
    item(other, 3)
    press(page, "2", "Saved: green")
    other.keyboard.press("1")
    expect(other.locator(".problem")).to_contain_text("'green' to this item is already saved")
    expect(other.locator("#typed")).to_have_value("red")
    other.keyboard.press("g")
    item(other, 4)
    assert [what for _, _, what in responses_of(at.campaign)] == ["red", "red", "green"]


def test_typed_text_stays_when_it_cannot_be_stored(served):
    at = served(task=FREE)
    page = at.page()
    page.keyboard.type("long answer")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(at.campaign.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        page.keyboard.press("Control+Enter")
        expect(page.locator("#error")).to_contain_text(f"held by pid {other.pid}")
        expect(page.locator("#answer")).to_have_value("long answer")
    finally:
        other.communicate("\n")
    press(page, "Control+Enter", "Saved: long answer")
    expect(page.locator("#error")).to_be_empty()
    page.keyboard.type("another")
    page.context.set_offline(True)  # the server has gone
    page.keyboard.press("Control+Enter")
    expect(page.locator("#error")).to_contain_text("The server does not answer")
    expect(page.locator("#answer")).to_have_value("another")
    page.context.set_offline(False)
    press(page, "Control+Enter", "Saved: another")
    assert [what for _, _, what in responses_of(at.campaign)] == ["long answer", "another"]


def test_a_batch_that_ended_meanwhile_shows_the_answer_back(served):
    at = served(task=FREE)
    page = at.page()
    at.campaign.label(at.campaign.batch()[1], "x", "bob")
    page.keyboard.type("much work")
    at.campaign.teach(partial=True)
    page.keyboard.press("Control+Enter")
    expect(page.locator(".problem")).to_contain_text("has ended")
    expect(page.locator("#typed")).to_have_value("much work")
    page.click("text=Continue")
    expect(page.locator("h1")).to_have_text("There is no batch to label now.")


def test_without_javascript_the_forms_do_it(served):
    at = served()
    page = at.page(java_script_enabled=False)
    page.click("button:has-text('green')")
    item(page, 2)
    expect(page.locator(".feedback")).to_have_text("Saved: green")
    page.click("summary:has-text('Flag')")
    page.fill("#note", "odd")
    page.keyboard.press("Enter")  # sends the note, and no choice
    item(page, 3)
    page.click("text=Undo")
    item(page, 2)
    page.click("text=Skip")
    assert [(kind, what) for _, kind, what in responses_of(at.campaign)] == [
        ("label", "green"),
        ("flag", "odd"),
        ("undo", None),
        ("skip", None),
    ]


def test_the_file_for_the_browser_leads_to_the_page(served, chromium, monkeypatch):
    at = served()
    given, opened = [], threading.Event()
    monkeypatch.setattr(serving.webbrowser, "open", lambda url: (given.append(url), opened.set()))
    monkeypatch.setenv("BROWSER", "some-browser")
    with serving._opened(at.address, at.campaign.folder, browser=True):
        assert opened.wait(60)
        page = chromium.new_context().new_page()
        page.goto(given[0])
        expect(page.locator("#name")).to_be_visible()
        assert page.url == f"{at.origin}/"
        page.context.close()


def test_ctrl_c_ends_the_command_with_the_next_command(make_campaign, chromium):
    campaign = make_campaign()
    campaign.query(4)
    command = [sys.executable, "-c", "from starlearn.cli.app import app; app()", "label"]
    served = subprocess.Popen(
        [*command, str(campaign.folder), "-a", "zoe", "--web", "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", served.stdout.readline())[0]
        context = chromium.new_context()
        page = context.new_page()
        page.goto(address)
        expect(page.locator("#name")).to_have_value("zoe")
        page.keyboard.press("Enter")
        item(page, 1)
        press(page, "1", "Saved: red")
        press(page, "2", "Saved: green")
        press(page, "u", "Undone: green")
        served.send_signal(signal.SIGINT)  # while the browser keeps its connection
        output, complaints = served.communicate(timeout=60)
        page.keyboard.press("1")
        expect(page.locator("#error")).to_contain_text("The server does not answer")
        context.close()
    finally:
        served.kill()
        served.communicate()
    assert served.returncode == 0, complaints
    assert complaints == ""
    assert "1 saved. 1 of the batch's 4 items are done." in output
    assert f"Next: starlearn label {campaign.folder}" in output
    with Campaign.open(campaign.folder) as again:
        assert responses_of(again) == [
            ("zoe", "label", "red"),
            ("zoe", "label", "green"),
            ("zoe", "undo", None),
        ]
