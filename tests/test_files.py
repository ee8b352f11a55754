"""Labelled files: what is read, and which line an error names."""

import json
from pathlib import Path

import pytest

from starlearn.data.readers import load_labelled
from starlearn.errors import InputError


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path) -> tuple[list[str], list[str]]:
    return load_labelled(path, "text", "label")


def complaint(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_json_lines(tmp_path, mark, end):
    rows = [
        b'{"text": "caf\xc3\xa9\\nbar", "label": " yes ", "more": 1}',
        b"",
        b'{"label":"no","text":" b "}',
    ]
    path = write(tmp_path, "a.jsonl", mark + end.join(rows) + end)
    assert read(path) == (["café\nbar", " b "], ["yes", "no"])


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_csv(tmp_path, mark, end):
    rows = [
        b"label,text,more",
        b'NA,"one, two",1',
        b'null,"say ""hi""",2',
        b"None,nan,3",
        b"01,x,4",
    ]
    path = write(tmp_path, "a.csv", mark + end.join(rows) + end)
    assert read(path) == (["one, two", 'say "hi"', "nan", "x"], ["NA", "null", "None", "01"])


def test_line_break_and_long_text_in_a_csv_cell(tmp_path):
    long = "x" * 200_000
    path = write(tmp_path, "a.csv", f'text,label\n"a\nb",y\n{long},n\n')
    assert read(path) == (["a\nb", long], ["y", "n"])


def test_separators_that_are_not_line_ends_stay_in_the_text(tmp_path):
    text = "a\u2028b\x85c"
    path = write(tmp_path, "a.jsonl", json.dumps({"text": text, "label": "y"}, ensure_ascii=False))
    assert read(path) == ([text], ["y"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a", "label": ', ["line 2 is not JSON", "one object per line"]),
        ("[1]", ["line 2 is a list, not an object"]),
        ("[" * 100_000, ["line 2 is not JSON"]),
        ('{"text": "a"}', ["line 2: no field 'label'", "fields: text", "--label-field"]),
        ('{"text": "", "label": "y"}', ["line 2: text is empty"]),
        ('{"text": " \\n", "label": "y"}', ["line 2: text is empty"]),
        ('{"text": null, "label": "y"}', ["line 2: text is the NoneType None"]),
        (
            '{"text": "a", "label": 1}',
            ['line 2: label is the int 1, not text; put it in quotes: "1"'],
        ),
        ('{"text": "a", "label": true}', ["line 2: label is the bool True"]),
        ('{"text": "a", "label": NaN}', ["line 2: label is the float nan"]),
        ('{"text": "a\\ud800", "label": "y"}', ["line 2", "lone surrogate at char 1"]),
    ],
)
def test_bad_json_line(tmp_path, line, words):
    path = write(tmp_path, "a.jsonl", '{"text": "ok", "label": "y"}\n' + line + "\n")
    message = complaint(path)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("text,label\nok,y\nshort\n", ["line 3 has 1 cells, the header has 2"]),
        ("text,label\na, b,y\n", ["line 2 has 3 cells", "Put a text with a comma"]),
        ("text,label\n,y\n", ["line 2: text is empty"]),
        ("text,label\na,\n", ["line 2: label is empty"]),
        ("words,label\na,y\n", ["line 2: no field 'text' (fields: words, label)"]),
        ("text,text\na,y\n", ["column names repeat"]),
        ('text,label\n"a,y\n', ["is not CSV"]),
        ("", ["no rows"]),
        ("text,label\n", ["no rows"]),
    ],
)
def test_bad_csv(tmp_path, rows, words):
    message = complaint(write(tmp_path, "a.csv", rows))
    assert all(word in message for word in words), message


def test_all_bad_lines_are_counted_in_one_message(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "", "label": "y"}\n' * 9)
    message = complaint(path)
    assert "line 1: " in message
    assert "line 5: " in message
    assert "and 4 more" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text,label\nok,y\ncafé,y\n".encode("latin-1"), ["byte 0xE9 in line 3", "iconv"]),
        ("text,label\nok,y\n".encode("utf-16"), ["byte 0xFF in line 1", "UTF-8"]),
    ],
)
def test_not_utf8(tmp_path, content, words):
    message = complaint(write(tmp_path, "a.csv", content))
    assert all(word in message for word in words), message


def test_no_such_file_and_unknown_kind(tmp_path):
    assert "No such file" in complaint(tmp_path / "none.jsonl")
    assert "must end in .jsonl" in complaint(write(tmp_path, "a.xlsx", b""))
