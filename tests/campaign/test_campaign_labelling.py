"""Labelling in the terminal: keys, output, and that each response is saved."""

import os
import pty
import select
import subprocess
import sys
import termios
import time

import pytest
from campaign_cases import POOL
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from starlearn.campaign import events
from starlearn.campaign.annotation import Action, has_single_keys, shortcuts
from starlearn.campaign.campaign import Campaign
from starlearn.campaign.items import composed
from starlearn.cli.app import app
from starlearn.cli.labelling import parse_line
from starlearn.errors import InputError
from starlearn.tasks import ChoiceTask, GenerationTask

MANY = [f"{colour} {letter}" for colour in ("red", "green", "blue") for letter in "abcd"]


def label(campaign, keys, annotator="ann", code=0):
    arguments = ["label", str(campaign.folder), "-a", annotator]
    result = CliRunner().invoke(app, arguments, input=keys)
    assert result.exit_code == code, result.output
    return result.stdout


def responses_of(campaign):
    """Return kind and answer of every event, in order."""
    return [(event.kind, event.answer) for event in events.events(campaign.store)]


# What a line means


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("2", Action("label", "green")),
        (" green ", Action("label", "green")),
        ("GREEN", Action("label", "green")),
        ("g", Action("label", "green")),
        ("s", Action("skip")),
        (":skip", Action("skip")),
        ("u", Action("undo")),
        ("f", Action("flag")),
        ("f two answers", Action("flag", "two answers")),
        ("quit", Action("quit")),
        ("?", Action("help")),
    ],
)
def test_lines_that_are_understood(line, action):
    assert parse_line(line, ["red", "green", "blue"]) == action


@pytest.mark.parametrize("line", ["", " ", "4", "0", "-1", "x", "redd", "s red", "1 2", "\x1b[A"])
def test_lines_without_a_meaning_are_refused(line):
    with pytest.raises(InputError):
        parse_line(line, ["red", "green", "blue"])


def test_prefixes_of_several_choices_are_refused():
    with pytest.raises(InputError, match="fits 4 choices: green a, "):
        parse_line("gr", MANY)
    assert parse_line("green c", MANY).text == "green c"
    assert parse_line("12", MANY).text == MANY[11]
    with pytest.raises(InputError, match="did you mean"):
        parse_line("grene c", MANY)


@pytest.mark.parametrize(
    ("choices", "numbers"),
    [
        (["0: none", "1: mild", "2: severe"], "012"),
        (["3 stars", "2 stars", "1 star"], "321"),
        (["2", "3", "1"], "231"),
        (["(2) often", "(1) rarely"], "21"),
        (["level 1", "level 0"], "10"),
        (["٣: ب", "٢: ج"], "32"),
        (["02 b", "01 a"], "21"),
        (["② b", "① a"], "21"),
        (["2 of 2", "1 of 2"], "21"),
        (list("9876543210"), "9876543210"),
        (["no", "yes"], "12"),
    ],
)
def test_the_number_that_a_person_reads_is_the_key(choices, numbers):
    assert shortcuts(choices) == dict(zip(numbers, choices, strict=True))
    assert has_single_keys(choices)
    for number, choice in zip(numbers, choices, strict=True):
        assert parse_line(number, choices) == Action("label", choice)
    assert parse_line("٢", ["2: b", "1: a"]) == Action("label", "2: b")
    assert parse_line("01", ["2: b", "1: a"]) == Action("label", "1: a")


@pytest.mark.parametrize(
    "choices",
    [
        ["0", "1", "ten"],
        ["0: none", "1: mild", "unsure"],
        ["covid 19", "flu"],
        ["1-3 days", "4-6 days"],
        ["1 – 3 days", "4 – 6 days"],  # noqa: RUF001 - as word processors write a range
        ["0.5 mg", "1.5 mg"],
        ["-1", "0", "1"],
        ["H1N1", "H5N1"],
        ["under 18", "18 or more"],
        ["½", "whole"],
        ["Ⅲ", "Ⅱ"],
    ],
)
def test_without_one_number_for_every_choice_there_are_no_number_keys(choices):
    assert shortcuts(choices) == {}
    assert not has_single_keys(choices)
    for choice in choices:
        assert parse_line(choice, choices) == Action("label", choice)
    with pytest.raises(InputError):  # neither its place nor the beginning of a longer number
        parse_line("2", choices)


def test_a_number_is_not_the_beginning_of_a_longer_one():
    choices = ["10: all", "20: some", "unsure"]
    with pytest.raises(InputError):
        parse_line("1", choices)
    assert parse_line("10", choices).text == "10: all"
    assert parse_line("1", ["1: a", "10: b", "unsure"]).text == "1: a"
    assert shortcuts(["10 - ten", "1 - one"]) == {"10": "10 - ten", "1": "1 - one"}
    assert not has_single_keys(["10 - ten", "1 - one"])


def test_choices_that_are_spelled_like_commands_win():
    assert parse_line("s", ["s", "t"]) == Action("label", "s")
    assert parse_line(":s", ["s", "t"]) == Action("skip")
    assert parse_line("skip", ["skip", "t"]) == Action("label", "skip")


@given(
    st.lists(
        st.text(min_size=1, max_size=4).map(str.strip).map(composed).filter(bool),
        min_size=2,
        unique=True,
    )
)
def test_every_choice_can_be_typed_in_full_and_by_its_shortcut(choices):
    for choice in choices:
        assert parse_line(choice, choices) == Action("label", choice)
    for typed, choice in shortcuts(choices).items():
        assert parse_line(typed, choices).text == choice


@given(
    st.text(max_size=6), st.lists(st.sampled_from(["no", "yes", "1", "0", "s", "ye"]), min_size=2)
)
def test_a_line_is_a_choice_a_command_or_refused(line, choices):
    choices = list(dict.fromkeys([*choices, "other"]))
    try:
        action = parse_line(line, choices)
    except InputError:
        return
    assert (action.kind == "label") == (action.text in choices) or action.kind == "flag"


def test_free_answers_are_kept_to_the_character():
    assert parse_line("  x = 1 ", None) == Action("label", "  x = 1 ")
    assert parse_line("s", None) == Action("label", "s")
    assert parse_line(":f why", None) == Action("flag", "why")
    assert parse_line("::s", None) == Action("label", ":s")
    for line in ("", "  ", ":x"):
        with pytest.raises(InputError):
            parse_line(line, None)


# Sessions by lines


def test_label_skip_flag_and_undo(make_campaign):
    campaign = make_campaign()
    batch = campaign.query(4)
    output = label(campaign, "1\ns\nf odd one\nu\nu\n3\ng\nx\n2\nq\n")
    # The undone items came back, the last first; then the next one.
    assert responses_of(campaign) == [
        ("label", "red"),
        ("skip", None),
        ("flag", None),
        ("undo", None),
        ("undo", None),
        ("label", "blue"),
        ("label", "green"),
        ("label", "green"),
    ]
    assert "undone: flag (saved)" in output
    assert "undone: skip (saved)" in output
    assert "'x' is not a choice" in output
    assert "Not saved" in output
    labels = campaign.labels()
    assert [labels[item.id] for item in batch] == ["red", "blue", "green", "green"]
    log = events.events(campaign.store)
    assert [e.note for e in log if e.kind == "flag"] == ["odd one"]
    assert "4 of the batch's 4 items are done" in output
    assert f"Next: starlearn teach {campaign.folder}" in output


def test_the_last_response_can_be_undone_before_the_end(make_campaign):
    campaign = make_campaign()
    (item,) = campaign.query(1)
    output = label(campaign, "1\nu\n2\n\n")
    assert "u undoes the last one" in output
    assert campaign.labels() == {item.id: "green"}
    assert "no response in this batch" in label(campaign, "u\nq\n", annotator="bob")
    assert campaign.labels() == {item.id: "green"}


def test_what_was_undone_is_not_counted_as_saved(make_campaign):
    campaign = make_campaign()
    campaign.query(3)
    assert "1 saved. 1 of the batch's 3 items" in label(campaign, "1\n2\nu\nq\n")
    # A response of an earlier session is undone: this one saved nothing, and not less.
    assert "0 saved. 0 of the batch's 3 items" in label(campaign, "u\nq\n")
    assert "2 saved. 2 of the batch's 3 items" in label(campaign, "1\nu\n2\ns\nq\n")


def test_undo_never_reaches_into_an_earlier_round(make_campaign):
    campaign = make_campaign()
    campaign.query(1)
    label(campaign, "1\n")
    campaign.teach()
    campaign.query(1)
    assert "no response in this batch" in label(campaign, "u\nq\n")
    assert responses_of(campaign) == [("label", "red")]


def test_an_answer_that_was_replaced_stands_again_after_undo(make_campaign):
    campaign = make_campaign()
    item = campaign.query(2)[0]
    campaign.label(item, "red", "ann")
    campaign.label(item, "blue", "ann")
    output = label(campaign, "u\nq\n")
    assert "undone: blue" in output
    assert "your current answer: red" in output
    assert campaign.labels() == {item.id: "red"}


def test_a_session_goes_on_where_it_ended(make_campaign):
    campaign = make_campaign()
    batch = campaign.query(3)
    assert "[1 of 3]" in label(campaign, "1\n")  # the end of the input is the end of the session
    output = label(campaign, "2\n3\n")
    assert "[1 of 3]" not in output
    assert output.index("[2 of 3]") < output.index("[3 of 3]")
    assert list(campaign.labels().values()) == ["red", "green", "blue"]
    assert list(campaign.labels()) == [item.id for item in batch]


def test_what_is_shown(make_campaign):
    pool = [{"text": text, "source": f"page {row}"} for row, text in enumerate(POOL)]
    campaign = make_campaign(pool, extra_fields=["source"])
    item = campaign.query(2)[0]
    output = label(campaign, "?\nq\n")
    assert f"[1 of 2] round 1, chosen because: {item.reason}" in output
    assert f"  | {item.fields['text']}" in output
    assert f"  source:\n  | {item.fields['source']}" in output
    assert "1 red  2 green  3 blue    s skip  f flag  u undo  q quit" in output
    assert "skip the item" in output
    assert responses_of(campaign) == []


@pytest.mark.parametrize(
    ("choices", "typed", "shown", "stored"),
    [
        (["2: red", "1: green", "0: blue"], "1", "2: red  1: green  0: blue    s skip", "1: green"),
        (["colour 2", "colour 1"], "1", "2 colour 2  1 colour 1    s skip", "colour 1"),
        (["1: red", "0: green", "blue"], "0", "Type the beginning of one of 3", "0: green"),
    ],
)
def test_choices_with_numbers_in_a_session(
    make_campaign, monkeypatch, choices, typed, shown, stored
):
    campaign = make_campaign()
    campaign.query(1)
    monkeypatch.setattr(Campaign, "choices", property(lambda self: choices))
    assert shown in label(campaign, f"{typed}\n")
    assert list(campaign.labels().values()) == [stored]


def test_many_choices_are_typed_by_number_or_prefix(make_campaign):
    campaign = make_campaign(task=ChoiceTask("{text} Answer :", choices=MANY))
    campaign.query(3)
    output = label(campaign, "red b\n12\n?\nq\n")
    assert list(campaign.labels().values()) == ["red b", "blue d"]
    assert "one of 12 choices" in output
    assert "\n  5 green a\n" in output


def test_free_answers_over_several_lines(make_campaign):
    campaign = make_campaign(task=GenerationTask("{text} Answer :", max_new_tokens=4))
    campaign.query(3)
    output = label(campaign, "a b \\\nc\ns\n:s\n:q\n")
    assert list(campaign.labels().values()) == ["a b \nc", "s"]
    assert campaign.status().skipped == 1
    assert ":s skip" in output


def test_text_cannot_steer_the_terminal_or_pass_for_ours(make_campaign):
    nasty = "[red]\x1b]0;own\x07\u202e:smile:\x00\n[9 of 9] red (saved)"
    campaign = make_campaign([nasty, "the sky is"])
    campaign.query(2)
    output = label(campaign, "q\n")
    assert not set("\x1b\x07\u202e\x00") & set(output)
    assert r"| [red]\x1b]0;own\x07\u202e:smile:\x00" in output
    assert "\n  | [9 of 9] red (saved)\n" in output
    assert nasty in [item.fields["text"] for item in campaign.batch()]


def test_an_annotator_without_a_name_is_refused(make_campaign):
    campaign = make_campaign()
    campaign.query(1)
    label(campaign, "1\n", annotator=" ", code=2)
    assert responses_of(campaign) == []


# Keys, in a terminal


class Terminal:
    """The command in a pseudo-terminal of its own."""

    def __init__(self, folder):
        own = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"  # so Ctrl-C reaches it
        command = [sys.executable, "-c", f"{own}; from starlearn.cli.app import app; app()"]
        self.handle, end = pty.openpty()
        self.process = subprocess.Popen(
            [*command, "label", str(folder)],
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
        )
        os.close(end)
        self.shown = ""

    def until(self, text, times=1):
        """Read until a text was shown this many times."""
        deadline = time.monotonic() + 120
        while self.shown.count(text) < times:
            assert time.monotonic() < deadline, self.shown
            if not select.select([self.handle], [], [], 1)[0]:
                continue
            try:
                part = os.read(self.handle, 65536)
            except OSError:  # its end was closed
                part = b""
            assert part, self.shown
            self.shown += part.decode()

    def type(self, keys):
        os.write(self.handle, keys.encode())

    def end(self):
        """Wait for the process, and return its exit code."""
        try:
            while part := os.read(self.handle, 65536):
                self.shown += part.decode()
        except OSError:
            pass
        code = self.process.wait()
        assert termios.tcgetattr(self.handle)[3] & termios.ECHO, "the terminal is not as it was"
        os.close(self.handle)
        return code


@pytest.fixture
def batch(make_campaign):
    campaign = make_campaign()
    campaign.query(4)
    return campaign


def test_keys_need_no_enter(batch):
    terminal = Terminal(batch.folder)
    terminal.until("q quit")
    terminal.type("1")
    terminal.until("q quit", times=2)
    terminal.type("s")
    terminal.until("q quit", times=3)
    terminal.type("f")
    terminal.until("note")
    terminal.type("odd\r")
    terminal.until("q quit", times=4)
    terminal.type("\x1b[1;5A")  # Ctrl and an arrow: no answer, though there is a 1 in it
    terminal.until("is not a choice")
    terminal.type("7")
    terminal.until("'7' is not a choice")
    terminal.type("quite sure")  # pasted: not q, u, ...
    terminal.until("'quite sure' is not a choice")
    terminal.type("u")
    terminal.until("q quit", times=5)
    assert "undone: flag" in terminal.shown
    terminal.type("2")
    terminal.until("q quit", times=6)
    terminal.type("q")
    assert terminal.end() == 0
    assert [kind for kind, _ in responses_of(batch)] == ["label", "skip", "flag", "undo", "label"]
    log = events.events(batch.store)
    assert log[2].note == "odd"
    assert all(event.ms is not None for event in log if event.kind == "label")


def test_ctrl_c_in_the_terminal_keeps_what_was_saved(batch):
    terminal = Terminal(batch.folder)
    terminal.until("q quit")
    terminal.type("1")
    terminal.until("q quit", times=2)
    terminal.type("\x03")
    assert terminal.end() == 130
    assert f"Continue: starlearn label {batch.folder}" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert responses_of(batch) == [("label", "red")]
    with Campaign.open(batch.folder) as again:
        assert again.status().done == 1


def test_lines_in_the_terminal_where_keys_are_too_few(make_campaign):
    campaign = make_campaign(task=ChoiceTask("{text} Answer :", choices=MANY))
    campaign.query(2)
    terminal = Terminal(campaign.folder)
    terminal.until("> ")
    terminal.type("red b\r")
    terminal.until("red b (saved)")
    terminal.until("> ", times=2)
    terminal.type("q\r")
    assert terminal.end() == 0
    assert responses_of(campaign) == [("label", "red b")]


def test_a_key_is_kept_while_another_process_works(batch):
    terminal = Terminal(batch.folder)
    terminal.until("q quit")
    with batch.holding("teach"):
        terminal.type("2")
        terminal.until("Enter tries again")
        assert f"held by pid {os.getpid()}" in terminal.shown
        terminal.type("\r")  # too early
        terminal.until("Enter tries again", times=2)
    terminal.type("\r")
    terminal.until("green (saved)")
    terminal.until("q quit", times=2)
    terminal.type("q")
    assert terminal.end() == 0
    assert responses_of(batch) == [("label", "green")]


def test_a_long_answer_is_kept_while_another_process_works(make_campaign):
    campaign = make_campaign(task=GenerationTask("{text} Answer :", max_new_tokens=4))
    campaign.query(2)
    terminal = Terminal(campaign.folder)
    terminal.until("> ")
    with campaign.holding("teach"):
        terminal.type("one line\\\rand another\r")
        terminal.until("Enter tries again")
    terminal.type("\r")
    terminal.until("(saved)")
    terminal.until("[2 of 2]")
    with campaign.holding("teach"):
        terminal.type("given up\r")
        terminal.until("Enter tries again", times=2)
        terminal.type("\x04")
        assert terminal.end() == 3
    assert "Traceback" not in terminal.shown
    assert responses_of(campaign) == [("label", "one line\nand another")]


def test_nothing_typed_ahead_answers_an_item_that_was_not_shown(batch):
    terminal = Terminal(batch.folder)
    terminal.type("1")  # long before the first item is shown
    terminal.until("q quit")
    terminal.type("q")
    assert terminal.end() == 0
    assert responses_of(batch) == []
