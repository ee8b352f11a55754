"""Batches to files and labels back: every character, all rows or none, and no formulas."""

import csv
import io
import json
from pathlib import Path

import pytest
from campaign_cases import COLOURS, POOL, answer_for
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from starlearn.campaign import events, learner_settings
from starlearn.campaign.campaign import Campaign
from starlearn.campaign.cells import (
    FORMULA,
    escaped,
    read_cells,
    unescaped,
    write_cells,
)
from starlearn.campaign.exchange import export_batch, import_labels
from starlearn.campaign.importing import column_of
from starlearn.cli.app import app
from starlearn.errors import InputError, StorageError
from starlearn.settings import Acquisition
from starlearn.tasks import ChoiceTask, GenerationTask

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture
def campaign(make_campaign):
    made = make_campaign()
    made.query(3)
    return made


@pytest.fixture
def file(quick):
    return quick / "labels.csv"


def ids(campaign):
    return [item.id for item in campaign.batch()]


def rows(campaign, labels, header="id,label"):
    lines = [f"{key},{label}" for key, label in zip(ids(campaign), labels, strict=False)]
    return "\n".join([header, *lines]) + "\n"


# Round trips


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_batch_goes_out_and_its_labels_come_back(campaign, quick, kind):
    file = quick / f"batch.{kind}"
    assert export_batch(campaign, file) == 3
    if kind == "csv":
        table = list(csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8-sig"))))
    else:
        table = [json.loads(line) for line in file.read_text().splitlines()]
    assert list(table[0]) == ["id", "text", "label", "annotator", "why", "campaign"]
    assert [row["id"] for row in table] == ids(campaign)
    assert all(not row["label"] and "entropy" in row["why"] for row in table)
    assert import_labels(campaign, file).n_open == 3
    for row in table:
        row["label"] = answer_for(row)
    if kind == "csv":
        target = io.StringIO(newline="")
        writer = csv.DictWriter(target, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
        file.write_text(target.getvalue(), newline="")
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in table))
    done = import_labels(campaign, file, "ann")
    assert (done.n_new, done.n_same, done.n_open, done.notes) == (3, 0, 0, [])
    assert campaign.labels() == {row["id"]: row["label"] for row in table}
    again = import_labels(campaign, file, "ann")
    assert (again.n_new, again.n_same) == (0, 3)
    assert len(events.events(campaign.store)) == 3
    export_batch(campaign, file, annotator="ann")
    assert import_labels(campaign, file, "ann").n_same == 3


@settings(max_examples=300)
@given(st.lists(st.lists(TEXTS, min_size=2, max_size=2), max_size=4))
def test_every_cell_survives_the_round_trip(cells):
    written = write_cells(["id", "text"], cells)
    read = read_cells(Path("x.csv"), written.decode("utf-8-sig"), "id")
    found = [row for _, row in read]
    assert found == [["id", "text"], *(row for row in cells if any(escaped(c) for c in row))]


@given(TEXTS)
def test_a_guard_is_put_on_and_taken_off_once(text):
    assert unescaped(escaped(text)) == text
    assert escaped(text)[:1] not in FORMULA


@pytest.mark.parametrize("start", sorted(FORMULA))
def test_formulas_are_defused(start):
    cell = f'{start}HYPERLINK("http://x")'
    assert escaped(cell) == f"'{cell}"
    assert unescaped(escaped(escaped(cell))) == escaped(cell)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.lists(st.text(st.sampled_from(";\t\r\n\"',=+-@\0 a")), min_size=2, max_size=2),
        max_size=3,
    )
)
def test_no_cell_is_a_formula_however_the_file_is_split(cells):
    written = write_cells(["id", "text"], [[f"i{text}", other] for text, other in cells])
    readers = [(",", csv.QUOTE_MINIMAL)]
    readers += [(d, quoting) for d in ";\t" for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE)]
    for delimiter, quoting in readers:
        text = io.StringIO(written.decode("utf-8-sig"), newline="")
        for row in csv.reader(text, delimiter=delimiter, quoting=quoting):
            assert not [cell for cell in row if cell[:1] and cell[:1] in "=+-@\0"]


@pytest.mark.parametrize(
    "text", ["a;=1+1", "a\n=1+1", "a\t@x", 'a;"=1+1"', "a;'=1", "'a;''-1", "- a\n- b", "a;b = c"]
)
def test_inner_formulas_survive_the_round_trip(text):
    written = write_cells(["id", "text"], [["i1", text]]).decode("utf-8-sig")
    assert list(read_cells(Path("x.csv"), written, "id"))[1][1] == ["i1", text]


HOSTILE = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-5",
    "@SUM(A1)",
    "\tTab",
    "'quoted",
    "'=escaped already",
    'line\r\nbreak "quotes", commas; semicolons',
    "carriage\rreturn",
    "007",
    "1e5",
    "TRUE",
    "  outer spaces  ",
    "NA",
    "null",
    "None",
    "é ß 漢字 😀 \u202e \ufeff \0",
    "x" * 200_000,
]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_texts_and_free_form_answers_survive(make_campaign, quick, kind):
    campaign = make_campaign(pool=HOSTILE[:-1], task=GenerationTask("{text}", 2))
    batch = campaign.query(len(HOSTILE) - 1)
    for item, answer in zip(batch, HOSTILE, strict=False):
        campaign.label(item, answer, "ann")
    file = quick / f"x.{kind}"
    export_batch(campaign, file, annotator="ann")
    bobs = file.read_bytes().replace(b",ann,", b",bob,")
    file.write_bytes(bobs.replace(b'"annotator": "ann"', b'"annotator": "bob"'))
    done = import_labels(campaign, file)
    assert done.notes == []
    assert {i.id: i.answers["bob"] for i in campaign.batch()} == {
        item.id: answer for item, answer in zip(batch, HOSTILE, strict=False)
    }


def test_fields_named_like_our_columns(make_campaign, quick):
    names = ["id", "label", "why"]
    pool = [{name: f"{name} {i}" for name in names} for i in range(3)]
    campaign = make_campaign(pool=pool, task=GenerationTask("{id} {label} {why}", 2))
    campaign.query(3)
    export_batch(campaign, quick / "x.csv")
    header = (quick / "x.csv").read_bytes().decode("utf-8-sig").splitlines()[0]
    assert header == "id,field:id,field:label,field:why,label,annotator,why,campaign"
    assert import_labels(campaign, quick / "x.csv").notes == []
    assert column_of("field:x") == "field:field:x"


# All rows or none


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("id,label\n{0},red\nunknown,blue\n", "line 3: id 'unknown' was never issued"),
        ("id,label\n{0},red\n{1},purple\n", "line 3: 'purple' is not among the choices"),
        ("id,label\n{0},red\n{0},blue\n", "line 3: .* 'blue' here and 'red' in line 2"),
        ("id,label,campaign\n{0},red,other\n", "line 2: it belongs to another campaign"),
        ("id,label\n{0},red\n{1}\n", "line 3 has 1 cells, the header has 2"),
        ("id,label\n{0},red\n{1},blue,extra\n", "line 3 has 3 cells"),
        ('id,label\n{0},red\n{1},"blue\n', "is not CSV"),
        ("id,id,label\n{0},{0},red\n", "a column twice"),
        ("name,label\nx,red\n", "needs the columns id and label"),
        ("id,answer\n{0},red\n", "needs the columns id and label"),
        ("", "needs the columns"),
        ("id,label\n,red\n", "line 2: id '' was never issued"),
    ],
)
def test_a_file_with_one_bad_row_changes_nothing(campaign, file, content, says):
    file.write_text(content.format(*ids(campaign)))
    with pytest.raises(InputError, match=says):
        import_labels(campaign, file)
    assert events.events(campaign.store) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "%s", "label": 1}', "A label is text, got int"),
        ('{"id": "%s", "label": true}', "A label is text, got bool"),
        ('{"id": "%s", "label": ["red"]}', "A label is text"),
        ('{"id": "%s"}', "line 1 needs the columns id and label"),
        ('{"id": "%s", "label": "\\ud800"}', "lone surrogate"),
        ('{"id": 3, "label": "red"}%.0s', "id 3 was never issued"),
        ('{"id": "%s", "label": ', "line 1 is not JSON"),
        ("[" * 100_000 + "%.0s", "not JSON"),
        ('["%s"]', "is a list, not an object"),
    ],
)
def test_lines_that_cannot_be_used(make_campaign, quick, line, says):
    campaign = make_campaign(task=GenerationTask("{text}", 2))
    campaign.query(1)
    file = quick / "labels.jsonl"
    file.write_text(line % ids(campaign)[0])
    with pytest.raises(InputError, match=says):
        import_labels(campaign, file)
    assert events.events(campaign.store) == []


def test_rows_without_a_label_stay_open(campaign, file):
    file.write_text(rows(campaign, ["red", "", "  "]))
    done = import_labels(campaign, file)
    assert (done.n_new, done.n_open) == (1, 2)
    assert campaign.status().skipped == 0
    file.with_suffix(".jsonl").write_text(json.dumps({"id": ids(campaign)[1], "label": None}))
    assert import_labels(campaign, file.with_suffix(".jsonl")).n_open == 1


def test_labels_that_other_readers_take_for_missing_values(make_campaign, file, monkeypatch):
    words = ["None", "NA", "null", "nan"]
    # The tiny tokenizer knows none of them.
    monkeypatch.setattr(learner_settings, "require_distinct_choices", lambda *_, **__: None)
    random = Acquisition(n_passes=2, strategy="random")
    campaign = make_campaign(task=ChoiceTask("{text}", choices=words), acquisition=random)
    campaign.query(4)
    file.write_text(rows(campaign, words))
    import_labels(campaign, file)
    assert list(campaign.labels().values()) == words


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_newlines_and_marks_of_spreadsheets_are_read(
    campaign, file, newline, mark, delimiter
):
    text = rows(campaign, COLOURS).replace(",", delimiter) + delimiter * 3 + "\n\n"
    file.write_bytes(mark + text.replace("\n", newline).encode())
    assert import_labels(campaign, file).n_new == 3


def test_other_columns_are_not_used_and_named(campaign, file):
    lines = [f"note,{key},red,9" for key in ids(campaign)]
    file.write_text("\n".join(["comment,id,label,score", *lines]))
    done = import_labels(campaign, file)
    assert done.n_new == 3
    assert done.notes == ["Columns that were not used: comment, score."]


def test_a_file_of_windows_is_read_with_a_note(make_campaign, file):
    campaign = make_campaign(["the sky is 5 €", "the sea is"], task=GenerationTask("{text}", 2))
    campaign.query(2)
    texts = {item.id: item.fields["text"] for item in campaign.batch()}
    lines = [f"{key},{text},29 €" for key, text in texts.items()]
    file.write_text("\n".join(["id,text,label", *lines]), encoding="cp1252")
    done = import_labels(campaign, file)
    assert list(campaign.labels().values()) == ["29 €", "29 €"]
    (note,) = done.notes
    assert "not UTF-8 (byte 0x80 in line " in note
    assert "read as cp1252" in note
    assert "29 €" in note or "is 5 €" in note
    assert "encoding='NAME'" in note
    with pytest.raises(InputError, match=r"byte 0x80 in line . is not utf-8.*encoding='cp1252'"):
        import_labels(campaign, file, encoding="utf-8")


@pytest.mark.parametrize(
    ("encoding", "says"),
    [("cp1251", "1 texts of its items differ"), ("utf-16", "encoding='utf-16'")],
)
def test_no_encoding_is_guessed_against_what_the_file_shows(make_campaign, file, encoding, says):
    campaign = make_campaign(["the sky is да", "the sea is"], task=GenerationTask("{text}", 2))
    campaign.query(2)
    lines = [f"{item.id},{item.fields['text']},да" for item in campaign.batch()]
    file.write_text("\n".join(["id,text,label", *lines]), encoding=encoding)
    with pytest.raises(InputError, match=says):
        import_labels(campaign, file)
    assert events.events(campaign.store) == []
    assert import_labels(campaign, file, encoding=encoding).notes == []
    assert set(campaign.labels().values()) == {"да"}


def test_encodings_that_cannot_be_used(campaign, file):
    file.write_bytes(rows(campaign, ["x"]).encode() + b"\x81\xff")
    with pytest.raises(InputError, match=r"byte 0x81 in line 3 is not utf-8.*encoding='NAME'"):
        import_labels(campaign, file)
    with pytest.raises(InputError, match="is an unknown encoding"):
        import_labels(campaign, file, encoding="excel")
    with pytest.raises(InputError, match="cannot be read"):
        import_labels(campaign, file.with_name("nowhere.csv"))
    with pytest.raises(InputError, match=r"must end in \.csv"):
        export_batch(campaign, file.with_name("x.xlsx"))


def test_control_characters_of_a_wrong_encoding_are_no_label(make_campaign, file):
    campaign = make_campaign(task=GenerationTask("{text}", 2))
    first, second = campaign.query(2)
    file.write_text(rows(campaign, ["29 €", "two"]), encoding="cp1252")
    with pytest.raises(InputError, match=r"line 2: .*U\+0080, as in a file of Windows.*cp1252"):
        import_labels(campaign, file, encoding="latin-1")
    assert events.events(campaign.store) == []
    with pytest.raises(InputError, match=r"U\+0085"):
        campaign.label(first, "and so on\x85")
    campaign.label(second, "tab\tand\nline")


def test_cells_of_any_length(make_campaign, file):
    campaign = make_campaign(task=GenerationTask("{text}", 2))
    campaign.query(1)
    file.write_text(rows(campaign, ["y" * 500_000]))
    import_labels(campaign, file)
    assert list(campaign.labels().values()) == ["y" * 500_000]


def test_labels_that_differ_in_case_and_spaces_are_read_with_a_note(campaign, file):
    file.write_text(rows(campaign, ["Red", " red ", "BLUE"]))
    done = import_labels(campaign, file)
    assert list(campaign.labels().values()) == ["red", "red", "blue"]
    assert done.notes == [
        "2 labels were read in the spelling of the choices: 'Red' as 'red'; 'BLUE' as 'blue'."
    ]
    assert import_labels(campaign, file).n_same == 3


def test_a_spelling_that_fits_no_choice_or_two_is_refused(campaign, file, monkeypatch):
    file.write_text(rows(campaign, ["rde", "R"]))
    with pytest.raises(InputError, match=r"line 2: 'rde' is not among the choices. Did you mean "):
        import_labels(campaign, file)
    import_labels(campaign, file, relabel={"rde": "red", "R": "red"})
    assert list(campaign.labels().values()) == ["red", "red"]
    monkeypatch.setattr(Campaign, "choices", property(lambda self: ["red", "RED", "007", "7 a"]))
    file.write_text(rows(campaign, ["Red"]))
    with pytest.raises(InputError, match="Did you mean 'red' or 'RED'"):
        import_labels(campaign, file)
    file.write_text(rows(campaign, ["7"]))  # as a spreadsheet writes 007
    assert import_labels(campaign, file).notes == [
        "1 labels were read in the spelling of the choices: '7' as '007'."
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_headers_that_differ_in_case_and_spaces_are_read_with_a_note(campaign, quick, kind):
    file, first = quick / f"labels.{kind}", ids(campaign)[0]
    row = {"ID": first, " Label": "red", "Annotator": "bob"}
    content = f"{','.join(row)}\n{','.join(row.values())}\n".replace(",", ";")
    file.write_text(content if kind == "csv" else json.dumps(row))
    done = import_labels(campaign, file)
    assert (done.n_new, campaign.status().annotators) == (1, {"bob": 1})
    assert done.notes == [
        "The column 'ID' was read as 'id'.",
        "The column ' Label' was read as 'label'.",
        "The column 'Annotator' was read as 'annotator'.",
    ]


def test_headers_that_could_mean_something_else_are_not_read(make_campaign, file):
    pool = [{"text": text, "Campaign": "spring"} for text in POOL]
    campaign = make_campaign(pool, extra_fields=["Campaign"])
    campaign.query(1)
    (first,) = ids(campaign)
    file.write_text(f"id,Label,LABEL\n{first},red,blue\n")
    with pytest.raises(InputError, match=r"needs the columns id and label.*Did you mean 'Label'"):
        import_labels(campaign, file)
    file.write_text(f"id,labels\n{first},red\n")
    with pytest.raises(InputError, match=r"Did you mean 'labels'. Rename it to label"):
        import_labels(campaign, file)
    file.write_text(f"id,label,Campaign\n{first},red,spring\n")
    assert import_labels(campaign, file).notes == []


def test_many_bad_rows_are_one_line_each_and_a_count(campaign, file):
    bad = [f"i{number},red" for number in range(7)]
    file.write_text("\n".join(["id,label", *bad, f"{ids(campaign)[0]},purple"]))
    with pytest.raises(InputError) as raised:
        import_labels(campaign, file)
    lines = str(raised.value).splitlines()
    assert lines[0] == f"{file}: 8 rows cannot be imported:"
    assert lines[1] == "  line 2: id 'i0' was never issued in this campaign"
    assert lines[6] == "  and 3 more"
    assert len(lines) == 8
    assert "Fix these rows and import again." in lines[7]


def test_errors_are_worded_for_python_or_the_command_line(campaign, file):
    file.write_text(rows(campaign, ["purple"]))
    with pytest.raises(InputError) as raised:
        import_labels(campaign, file)
    python = str(raised.value)
    assert "campaign.add_choice('CHOICE')" in python
    assert 'relabel={"SPELLING": "CHOICE"}' in python
    assert "--" not in python
    assert "starlearn add-choice" not in python
    result = CliRunner().invoke(app, ["import", str(campaign.folder), str(file)])
    assert result.exit_code == 2
    assert f"starlearn add-choice {campaign.folder} CHOICE" in result.stderr
    assert '--relabel "SPELLING=CHOICE"' in result.stderr
    assert "campaign." not in result.stderr
    with pytest.raises(InputError, match=r"campaign\.add_choice\('purple'\)"):
        campaign.label(ids(campaign)[0], "purple")  # the wording ends with the command


def test_a_text_that_was_edited_in_the_file_moves_no_label(campaign, file):
    export_batch(campaign, file)
    text = file.read_text(encoding="utf-8-sig")
    first = campaign.batch()[0]
    text = text.replace(first.fields["text"], "another text").replace(",,", ",red,")
    file.write_text(text)
    done = import_labels(campaign, file)
    assert done.n_new == 3
    assert "In 1 rows the text differs" in done.notes[0]
    assert campaign.batch()[0].fields == first.fields


def test_a_column_that_was_sorted_alone_is_refused(campaign, file):
    texts = [item.fields["text"] for item in campaign.batch()]
    lines = [f"{k},{t},red" for k, t in zip(ids(campaign), texts[1:] + texts[:1], strict=True)]
    file.write_text("\n".join(["id,text,label", *lines]))
    with pytest.raises(InputError, match="one column sorted alone"):
        import_labels(campaign, file)
    assert campaign.labels() == {}


def test_a_file_of_another_campaign_is_refused(make_campaign, quick):
    first, second = make_campaign(name="a"), make_campaign(name="b")
    assert [i.id for i in first.query(3)] == [i.id for i in second.query(3)]
    export_batch(first, quick / "x.csv")
    with pytest.raises(InputError, match="another campaign"):
        import_labels(second, quick / "x.csv")
    with pytest.raises(InputError, match="no batch to export"):
        export_batch(make_campaign(name="c"), quick / "y.csv")


def test_who_labelled_may_stand_in_the_file(campaign, file):
    lines = [f"{key},red,{who}" for key, who in zip(ids(campaign), ["ann", "", "bob"], strict=True)]
    file.write_text("\n".join(["id,label,annotator", *lines]))
    import_labels(campaign, file, "me")
    assert campaign.status().annotators == {"ann": 1, "me": 1, "bob": 1}


def test_labels_that_were_exported_stay_those_of_who_gave_them(make_campaign, quick):
    campaign = make_campaign(per_item=2)
    batch = campaign.query(3)
    campaign.label(batch[0], "red", "ann")
    campaign.label(batch[1], "red", "bob")
    campaign.label(batch[1], "green", "cid")
    file = quick / "batch.jsonl"
    export_batch(campaign, file)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["annotator"] for row in rows] == ["ann", "cid", None]
    rows[2]["label"] = "blue"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = import_labels(campaign, file, "me")
    assert (done.n_new, done.n_same) == (1, 2)
    assert campaign.status().annotators == {"ann": 1, "bob": 1, "cid": 1, "me": 1}


def test_a_file_that_is_imported_again_undoes_no_correction(campaign, file):
    file.write_text(rows(campaign, ["red", "green", "blue"]))
    import_labels(campaign, file, "ann")
    first, second, _ = campaign.batch()
    campaign.label(first, "blue", "ann")
    campaign.skip(second, "ann")
    done = import_labels(campaign, file, "ann")
    assert (done.n_new, done.n_same) == (0, 3)
    assert "2 rows repeat a label that their annotator has changed since" in done.notes[0]
    assert campaign.labels()[first.id] == "blue"
    assert import_labels(campaign, file, "bob").n_new == 3  # labels of another annotator


def test_an_undone_label_can_be_imported_again(campaign, file):
    first, *_ = campaign.batch()
    campaign.label(first, "red", "ann")
    campaign.undo("ann")
    file.write_text(rows(campaign, ["red"]))
    assert import_labels(campaign, file, "ann").n_new == 1
    assert campaign.labels() == {first.id: "red"}


def test_a_changed_exported_label_belongs_to_its_importer(make_campaign, quick):
    campaign = make_campaign(per_item=2)
    first, *_ = campaign.query(2)
    campaign.label(first, "red", "bob")
    export_batch(campaign, quick / "x.jsonl")
    lines = [json.loads(line) for line in (quick / "x.jsonl").read_text().splitlines()]
    lines[0]["label"] = "blue"
    (quick / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    done = import_labels(campaign, quick / "x.jsonl", "ann")
    assert done.n_new == 1
    assert "In 1 rows the label of another annotator was changed" in done.notes[0]
    assert campaign.batch()[0].answers == {"bob": "red", "ann": "blue"}


def test_a_folder_that_is_not_there_is_no_failing_disk(campaign, quick):
    with pytest.raises(StorageError, match=r"The path cannot be used.*Check the path"):
        export_batch(campaign, quick / "nowhere" / "batch.csv")


def test_labels_of_an_earlier_round_can_be_imported(campaign, file):
    file.write_text(rows(campaign, ["red", "green", "blue"]))
    import_labels(campaign, file)
    campaign.teach()
    campaign.query(2)
    file.write_text(file.read_text().replace("green", "red"))
    done = import_labels(campaign, file)
    assert (done.n_new, done.n_same) == (1, 2)
