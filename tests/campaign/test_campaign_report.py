"""The report of a campaign: its figures, the text of its page, and its safety."""

import base64
import json
import re
import subprocess
import sys
import warnings
from hashlib import sha256
from html.parser import HTMLParser

import numpy as np
import pytest
from campaign_cases import COLOURS, POOL, answer_for, label_all, make_learner, quick_folder
from matplotlib.figure import Figure
from test_campaign_commands import HOLD, done, refused

from starlearn.campaign.campaign import Campaign
from starlearn.campaign.events import Event
from starlearn.campaign.report.annotators import Prices, agreements, cost_until
from starlearn.campaign.report.evaluations import before_teaching, models
from starlearn.campaign.report.held_out import on_test_set, read_test_file
from starlearn.campaign.report.page import ReportOptions, render
from starlearn.campaign.report.uncertainty import UncertaintyByRound
from starlearn.errors import InputError, TrainingDivergedError
from starlearn.learner.estimator import STARLearner
from starlearn.settings import Acquisition
from starlearn.tasks import ChoiceTask, GenerationTask

NASTY = (
    "</td><script>alert('x')</script><img src=x onerror=alert(1)> [red]{{ 7 * 7 }}\x1b[31m\u202e"
)


class Page(HTMLParser):
    """Collects the tags of a page, their attributes, its text, and complaints about its nesting."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes what is not open"

    def handle_data(self, data):
        self.text += f" {data}"

    def visible_text(self):
        return " ".join(self.text.split())


def page_of(campaign, **output):
    return Page(render(campaign, ReportOptions(**output)))


@pytest.fixture(scope="module")
def taught(tiny_model):
    """A campaign with two rounds taught and a third labelled, by ann and in part by bob."""
    with quick_folder() as folder:
        learner = make_learner(tiny_model)
        with Campaign.create(folder / "c", POOL, learner) as campaign:
            for number in range(3):
                batch = campaign.query(4)
                for item in batch:
                    campaign.label(item, answer_for(item.fields), "ann", ms=1500)
                campaign.label(batch[0], "red", "bob")
                if number < 2:
                    campaign.teach()
            yield campaign


@pytest.fixture
def test_file(quick):
    rows = [{"text": f"the night {t}", "label": COLOURS[i % 3]} for i, t in enumerate(POOL[:8])]
    path = quick / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Confidence and its calibration


def test_confidence_is_the_probability_of_the_answer(make_learner, labelled, pool):
    learner = make_learner(acquisition=Acquisition(measure="entropy", n_passes=1)).fit(*labelled)
    found = learner.uncertainty(pool)
    np.testing.assert_allclose(found.confidence, learner.predict_proba(pool).max(axis=1), rtol=1e-9)
    assert (found.answers == learner.predict(pool)).all()


def test_confidence_of_a_free_text_is_a_mean_over_its_tokens(make_learner, labelled, pool):
    task = GenerationTask("{text} Answer :", max_new_tokens=3)
    learner = make_learner(task=task, acquisition=Acquisition(measure="predictive_entropy"))
    found = learner.fit(*labelled).uncertainty(pool)
    np.testing.assert_allclose(found.confidence, np.exp(-found.full))
    assert ((found.confidence > 0) & (found.confidence <= 1)).all()


# Before teaching: test, then train


def test_answers_before_teaching_are_those_of_the_model_that_chose(taught):
    evaluations = before_teaching(taught)
    assert [(t.model.round, t.model.n_labels, t.round) for t in evaluations] == [
        (None, 0, 1),
        (1, 4, 2),
        (2, 8, 3),
    ]
    for evaluation in evaluations[1:]:
        batch = {item.id: item for item in taught.batch(evaluation.round)}
        items = sorted(batch.values(), key=lambda item: POOL.index(item.fields["text"]))
        found = taught.learner(evaluation.model.round).uncertainty([item.fields for item in items])
        labels = taught.labels()
        assert evaluation.correct.tolist() == [
            answer == labels[item.id] for answer, item in zip(found.answers, items, strict=True)
        ]
        np.testing.assert_array_equal(evaluation.confidence, found.confidence)
    low, high = evaluations[0].interval
    assert 0 <= low <= evaluations[0].accuracy <= high <= 1


def test_an_undone_label_that_was_trained_on_is_left_out(make_campaign):
    campaign = make_campaign(pool=POOL[:4])
    first, second = campaign.query(2)
    campaign.label(first, "red")
    campaign.label(second, "red")
    campaign.teach()
    campaign.undo()
    with pytest.warns(UserWarning, match="are new"):  # the learner knows the item, too
        assert second.id in {item.id for item in campaign.query(3)}
    label_all(campaign)
    assert [len(evaluation.correct) for evaluation in before_teaching(campaign)] == [2, 2]


def test_random_choice_keeps_no_answers_and_the_page_explains_it(make_campaign):
    campaign = make_campaign(acquisition=Acquisition(strategy="random"))
    campaign.query(3)
    label_all(campaign)
    assert before_teaching(campaign) == []
    shown = page_of(campaign).visible_text()
    assert "Rounds with random choice, screening or a sub-pool keep no scores" in shown
    with pytest.raises(InputError, match="no scores"):
        UncertaintyByRound.from_campaign(campaign)


def test_first_labels_are_counted(make_campaign, tiny_model):
    learner = make_learner(tiny_model).fit(POOL[:5], ["red", "green", "blue", "red", "red"])
    campaign = make_campaign(learner=learner)
    campaign.query(2)
    label_all(campaign)
    campaign.teach()
    assert [(m.round, m.n_labels) for m in models(campaign)] == [(0, 5), (1, 7)]
    assert "without the 5 labels that the campaign began with" in page_of(campaign).visible_text()


# A test file


def test_a_test_file_is_answered_once_by_each_model(taught, test_file, monkeypatch):
    output = []
    test = read_test_file(taught, test_file, "label")
    evaluations = on_test_set(taught, test, output.append)
    assert [t.model for t in evaluations] == models(taught)
    assert [t.model.n_labels for t in evaluations] == [0, 4, 8]
    for evaluation in evaluations[1:]:
        learner = taught.learner(evaluation.model.round)
        assert evaluation.accuracy == learner.score(test.items, test.labels)
    assert len(output) == 3

    def asked(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr(STARLearner, "uncertainty", asked)
    again = on_test_set(taught, test, output.append)
    assert [t.correct.tolist() for t in again] == [t.correct.tolist() for t in evaluations]
    assert len(output) == 3
    one, other, *_ = sorted(taught.paths.scores.glob("test-*.parquet"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    with pytest.raises(AssertionError, match="asked again"):
        on_test_set(taught, test, output.append)
    one.write_bytes(content)
    test.items[0]["text"] = "another text"
    with pytest.raises(AssertionError, match="asked again"):
        on_test_set(taught, test, output.append)


def test_items_that_were_labelled_here_are_left_out(taught, quick):
    item = taught.batch(1)[0]
    rows = [{"text": t, "label": "red"} for t in (item.fields["text"], "a a a", "a a")]
    path = quick / "leak.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = []
    test = read_test_file(taught, path, "label")
    assert {len(t.correct) for t in on_test_set(taught, test, output.append)} == {2}
    assert "1 of 3 test items were also labelled" in output[0]
    path.write_text(json.dumps(rows[0]) + "\n")
    assert on_test_set(taught, read_test_file(taught, path, "label"), output.append) == []


def test_a_damaged_adapter_is_left_out(make_campaign, test_file):
    campaign = make_campaign()
    for _ in range(2):
        campaign.query(2)
        label_all(campaign)
        campaign.teach()
    weights = campaign.folder / "adapters" / "round-0001-1" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    output = []
    test = read_test_file(campaign, test_file, "label")
    assert [t.model.round for t in on_test_set(campaign, test, output.append)] == [None, 2]
    assert any("round 1 is left out" in line for line in output)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a", "label": "mauve"}, "'mauve'"),
        ({"text": "a"}, "--label-field"),
        ({"text": "a", "label": 1}, "not text"),
        ({"label": "red"}, "field {text} is missing"),
        ({"text": " ", "label": "red"}, "row 0"),
    ],
)
def test_test_files_that_cannot_be_used(taught, quick, row, words):
    path = quick / "bad.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert words in refused("report", taught.folder, "--test", path)
    assert not (taught.folder / "report.html").exists()


# People and what they cost


def an_event(seq, item, annotator, answer, ms=None, kind="label", undoes=None):
    return Event(seq, str(seq), kind, item, annotator, answer, None, undoes, 1, ms, "")


def test_agreement_of_every_pair():
    shown = {"ann": "aabb", "bob": "abbb", "cid": "aaaa"}
    words = [
        an_event(0, str(place), who, answer)
        for who, answers in shown.items()
        for place, answer in enumerate(answers)
    ]
    words.append(an_event(0, "9", "dan", "a"))
    found = {(p.first, p.second): p for p in agreements(words)}
    assert set(found) == {("ann", "bob"), ("ann", "cid"), ("bob", "cid")}
    pair = found["ann", "bob"]
    assert (pair.n_items, pair.n_equal) == (4, 3)
    by_chance = 0.5 * 0.25 + 0.5 * 0.75
    assert pair.kappa == pytest.approx((0.75 - by_chance) / (1 - by_chance))
    assert found["ann", "cid"].kappa == pytest.approx(0)


def test_agreement_that_is_not_defined():
    words = [an_event(0, str(i), who, "a") for i in range(3) for who in ("ann", "bob")]
    (pair,) = agreements(words)
    assert (pair.n_equal, pair.kappa) == (3, None)
    assert agreements([an_event(0, "1", "ann", "a"), an_event(0, "2", "bob", "a")]) == []
    final = [an_event(0, "1", "ann", "2 + 2 #### 4"), an_event(0, "1", "bob", "#### 4")]
    assert agreements(final)[0].n_equal == 0
    task = GenerationTask("{text}", answer_pattern=r"#### (\d+)")
    assert agreements(final, task.parse)[0].n_equal == 1


def test_what_labels_cost_up_to_an_event():
    log = [
        an_event(1, "x", "ann", "a", ms=30_000),
        an_event(2, "x", "bob", "a"),
        an_event(3, "y", "ann", "b", ms=60_000),
        an_event(4, "y", "ann", None, kind="undo", undoes=3),
        an_event(5, "y", "ann", None, ms=30_000, kind="skip"),
    ]
    prices = Prices(per_label=2.0, per_hour=60.0)
    assert cost_until(log, 0, prices).money == 0
    found = cost_until(log, 2, prices)
    assert (found.n_answers, found.seconds, found.n_untimed) == (2, 30.0, 1)
    assert found.money == pytest.approx(2 * 2 + 0.5)
    found = cost_until(log, 5, prices)
    assert (found.n_answers, found.seconds, found.money) == (2, 120.0, pytest.approx(4 + 2))
    assert cost_until(log, 5, Prices()).money is None
    assert cost_until(log[1:2], 5, Prices(per_hour=1.0)).seconds is None


# Displays


def test_a_round_that_died_before_its_batch_was_issued_has_one_box(taught):
    pool, batch = UncertaintyByRound.from_campaign(taught).by_round[1]
    display = UncertaintyByRound({1: (pool, batch), 2: (pool, batch[:0])}).plot()
    heights = [[box.get_height() for box in group] for group in display.boxes_]
    assert np.isnan(heights).tolist() == [[False, False], [False, True]]
    display.figure_.draw_without_rendering()


def test_displays_draw_into_the_given_axes_and_without_pyplot(taught, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    axes = Figure().add_subplot()
    boxes = UncertaintyByRound.from_campaign(taught).plot(axes)
    assert boxes.ax_ is axes
    assert [len(group) for group in boxes.boxes_] == [3, 3]
    pool, batch = boxes.by_round[2]
    box = boxes.boxes_[1][1]
    edges = [box.get_y(), box.get_y() + box.get_height()]
    np.testing.assert_allclose(edges, np.percentile(batch, [25, 75]))
    assert (len(pool), len(batch)) == (len(POOL) - 4, 4)
    assert batch.mean() > pool.mean(), "the batch is what the model is unsure of"
    render(taught, ReportOptions())


# The page


def test_without_a_test_file_no_model_is_loaded(taught):
    code = (
        "import sys; from starlearn.campaign.campaign import Campaign; "
        "from starlearn.campaign.report.page import ReportOptions, render; "
        f"campaign = Campaign.open({str(taught.folder)!r}, read_only=True); "
        "print(len(render(campaign, ReportOptions())) > 10_000, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "False"]


def test_the_page_shows_all_sections(taught, test_file):
    test = read_test_file(taught, test_file, "label")
    evaluations = on_test_set(taught, test, str)
    page = page_of(taught, prices=Prices(0.5, 30.0), test_name="t.jsonl", tested=evaluations)
    assert page.tags.count("img") == 5
    shown = page.visible_text()
    for words in (
        "12 of 32 items labelled",
        "2 rounds taught",
        "2 annotators",
        "18.0 s of annotators' time",
        "7.65 paid for labels",  # 15 answers, and 18 s of 30 an hour
        "On the held-out file t.jsonl",
        "underestimates accuracy on the pool",
        "base model 0 1 4",  # labels taught, round, items
        "round 1 4 2 4",
        "15 bins",
        "3 answers have no time",
        "ann and bob 3 ",
        "entropy: place 1 of 32",
        "training learning_rate 0.005",
        "transformers",
        f"Next: starlearn teach {taught.folder}",
    ):
        assert words in shown, words
    assert all(item.fields["text"] in shown for r in (1, 2, 3) for item in taught.batch(r))


def test_page_is_one_file_with_everything_escaped(make_campaign):
    choice = "red \x1b[31m" + NASTY[:60]
    campaign = make_campaign(
        pool=[{"text": t, "note": NASTY} for t in [*POOL[:6], NASTY, "$x^$ _a"]],
        task=ChoiceTask("{text} Answer :", choices=[choice, "green", "$x^$"]),
        extra_fields=["note"],
    )
    items = campaign.query(8)
    for item in items[:6]:
        campaign.label(item, choice, "<b>ann</b>")
    for item in items[:3]:
        campaign.label(item, "$x^$", "bob")
    campaign.flag(items[6], "<b>ann</b>", note=NASTY)
    campaign.teach(partial=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = render(campaign, ReportOptions())
    page = Page(text)
    assert "script" not in page.tags
    assert set(page.tags) & {"b", "i"} == {"b", "i"}, "our own"
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    links = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert all(link.startswith(("data:image/svg+xml;base64,", "#")) for link in links)
    assert not re.search(r"https?://|url\(|@import", text)
    images = [base64.b64decode(link.partition(",")[2]).decode() for link in links if link[0] != "#"]
    assert not any("<script" in image or "\x1b" in image for image in images)
    assert any("red \\x1b[31m&lt;/td&gt;&lt;script" in image for image in images)
    policy = next(value for _, name, value in page.attributes if "default-src 'none'" in value)
    style = re.search("<style>(.*?)</style>", text, re.DOTALL)[1]
    assert base64.b64encode(sha256(style.encode()).digest()).decode() in policy
    assert "script-src" not in policy
    shown = page.visible_text()
    assert shown.count("<script>alert('x')</script>") >= 10, "shown as it is: item, label, note"
    assert "<b>ann</b>" in shown
    assert "\\x1b[31m" in shown
    assert "\\u202e" in shown
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "49" not in "".join(re.findall(r"\[red\](.{12})", shown))


def test_characters_that_matplotlib_has_no_glyph_for_make_no_warning(make_campaign):
    choices = ["red 猫", "green ขาว", "blue"]
    campaign = make_campaign(task=ChoiceTask("{text} Answer :", choices=choices))
    for item in campaign.query(3):
        campaign.label(item, choices[0], "猫")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = render(campaign, ReportOptions())
    images = re.findall(r"base64,([^\"]+)\" alt=\"Share of each class", text)
    assert "red 猫" in base64.b64decode(images[0]).decode()


def test_long_texts_and_long_batches_are_cut(make_campaign, monkeypatch):
    from starlearn.campaign.report import page as module

    monkeypatch.setattr(module, "MAX_ROWS", 3)
    campaign = make_campaign(pool=[f"{text} " + "very " * 40 + "x" * 99 for text in POOL[:5]])
    campaign.query(5)
    text = render(campaign, ReportOptions())
    assert "The first 3 of 5" in text
    assert "x" * 60 not in text
    assert text.count("very …") + text.count("xx…") >= 3


def test_free_form_answers(make_campaign):
    task = GenerationTask("{text} Answer :", max_new_tokens=3, answer_pattern=r"(\w+)$")
    campaign = make_campaign(task=task)
    for item in campaign.query(3):
        campaign.label(item, "it is red", "ann")
        campaign.label(item, "so red", "bob")
    campaign.teach()
    shown = page_of(campaign).visible_text()
    assert "Answers are free texts, so there are no classes to count." in shown
    assert "ann and bob 3 3 100.0 not defined" in shown
    assert "the geometric mean over its tokens" in shown


def test_no_token_is_written(make_campaign):
    campaign = make_campaign()
    item = campaign.query(1)[0]
    campaign.flag(item, note="see hf_" + "aB3" * 11)
    assert "see hf_***" in page_of(campaign).visible_text()


# The command


def test_a_campaign_without_a_round_shows_the_next_command(make_campaign):
    campaign = make_campaign()
    output = done("report", campaign.folder)
    assert f"Next: starlearn query {campaign.folder}" in output
    page = Page((campaign.folder / "report.html").read_text())
    assert "No round has begun yet" in page.visible_text()
    assert f"starlearn query {campaign.folder} -n 32" in page.visible_text()
    assert page.tags.count("img") == 0
    assert campaign.doctor() == []


def test_a_failed_round_is_reported(make_campaign, monkeypatch):
    campaign = make_campaign()
    campaign.query(2)
    label_all(campaign)

    def diverged(*_, **__):
        raise TrainingDivergedError("loss <nan> in step 2")

    with monkeypatch.context() as patch:
        patch.setattr(STARLearner, "teach", diverged)
        with pytest.raises(TrainingDivergedError):
            campaign.teach()
    page = page_of(campaign)
    assert page.visible_text().count("Round 1 failed: loss <nan> in step 2") == 2
    assert "No item has two answers" in page.visible_text()
    assert page.tags.count("img") == 4


def test_a_report_of_a_campaign_in_use_or_read_only(taught, quick, monkeypatch):
    import os

    before = {path: path.read_bytes() for path in taught.folder.rglob("*.db")}
    target = quick / "elsewhere.html"
    command = [sys.executable, "-c", HOLD, str(taught.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        done("report", taught.folder, "--to", target)
        other.stdin.close()
    assert "In use by pid" in target.read_text()
    allowed = os.access

    def access(path, mode):
        return not (mode == os.W_OK and str(path).startswith(str(taught.folder))) and allowed(
            path, mode
        )

    monkeypatch.setattr(os, "access", access)
    assert "--to report.html" in refused("report", taught.folder, code=4)
    done("report", taught.folder, "--to", target, "--overwrite")
    assert {path: path.read_bytes() for path in taught.folder.rglob("*.db")} == before


def test_answers_that_cannot_be_kept_are_no_error(taught, test_file, monkeypatch, quick):
    from starlearn.campaign import snapshot
    from starlearn.errors import StorageError

    def full(*_, **__):
        raise StorageError("No permission to write")

    test_file.write_text(json.dumps({"text": "a very small sea", "label": "red"}) + "\n")
    monkeypatch.setattr(snapshot, "write_table", full)
    target = quick / "kept.html"
    output = done("report", taught.folder, "--test", test_file, "--to", target)
    assert "cannot be kept" in output
    assert "On the held-out file test.jsonl" in target.read_text()


def test_places_and_prices_that_cannot_be_used(taught, quick):
    target = quick / "there.html"
    target.write_text("mine")
    assert "--overwrite" in refused("report", taught.folder, "--to", target)
    assert target.read_text() == "mine"
    assert "its parent folder does not exist" in refused("report", taught.folder, "--to", quick)
    assert "its parent folder does not exist" in refused(
        "report", taught.folder, "--to", quick / "no" / "r.html"
    )
    for price in ("-1", "nan", "inf"):
        output = refused(
            "report", taught.folder, "--to", quick / "p.html", "--price-per-hour", price
        )
        assert "--price-per-hour must be" in output
    assert "does not exist" in refused(
        "report", taught.folder, "--to", quick / "p.html", "--test", quick / "none.jsonl"
    )
    assert "starlearn init" in refused("report", quick / "none")
    assert sorted(path.name for path in quick.glob("*.html")) == ["there.html"]


def test_the_file_is_private(taught, quick):
    done("report", taught.folder, "--to", quick / "r.html")
    assert (quick / "r.html").stat().st_mode & 0o077 == 0
