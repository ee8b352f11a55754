"""Files of pools: the file that was named, its values as written, and its changes."""

import csv
import gc
import json
import math
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from starlearn import Pool
from starlearn.data.readers import load_labelled
from starlearn.errors import InputError, StorageError
from starlearn.learner.estimator import STARLearner
from starlearn.tasks import ChoiceTask

FORMATS = ["jsonl", "ndjson", "json", "csv", "parquet", "folder"]
ROWS = [
    {"text": "the sky is", "label": "blue"},
    {"text": 'a "rose",\nis', "label": "NA"},
    {"text": "café 2024-01-02", "label": "007"},
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format of the path's suffix; without one, as a Dataset's folder."""
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path.absolute())
    elif path.suffix:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        Dataset.from_list(rows).save_to_disk(path)
    return path


def in_format(folder: Path, kind: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    return written(folder / ("pool" if kind == "folder" else f"pool.{kind}"), rows)


# The file that was named


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("name", ["pool[1]", "what?", "a*", "**", "a#b%20c", "x::y", "~nobody"])
def test_the_file_that_is_named_is_read(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for other in ("pool1", "whatx", "ab", "abc"):
        written(Path(f"{other}.{kind}"), [{"text": "another file"}] * 2)
    with pytest.raises(InputError, match="does not exist"):
        Pool(f"{name}.{kind}")
    written(Path(f"{name}.{kind}"), [{"text": "the file"}])
    assert list(Pool(f"{name}.{kind}")) == [{"text": "the file"}]


@pytest.mark.parametrize("kind", FORMATS)
def test_pool_run_and_campaign_read_the_same_values(kind: str, tmp_path: Path) -> None:
    path = in_format(tmp_path, kind)
    pool = Pool(path)
    assert list(pool) == ROWS
    assert repr(pool) == "Pool(3 rows: text, label)"
    texts, labels = load_labelled(path, "text", "label")
    assert list(zip(texts, labels, strict=True)) == [(row["text"], row["label"]) for row in ROWS]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_campaign_begins_with_every_format(
    kind: str, tmp_path: Path, make_learner: Callable[..., STARLearner]
) -> None:
    from starlearn.campaign.campaign import Campaign
    from starlearn.campaign.doctor import examine

    path = in_format(tmp_path, kind)

    with Campaign.create(tmp_path / "campaign", path, make_learner()) as campaign:
        contents = campaign.snapshot()["content"].to_pylist()
        assert [json.loads(one) for one in contents] == [{"text": row["text"]} for row in ROWS]
        assert campaign.pool_facts["source"] == str(path)
        assert not [found for found in examine(campaign, fix=False) if str(path) in found.what]


def test_what_is_not_a_pool_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, reason in [
        ("pipe.jsonl", "is not a regular file"),
        ("x" * 300 + ".csv", "cannot be read"),
        ("a\0.jsonl", "cannot be read"),
        ("none.parquet", "does not exist"),
    ]:
        with pytest.raises(InputError, match=reason):
            Pool(tmp_path / name)
        if "pipe" not in name:
            with pytest.raises(InputError, match=reason):
                load_labelled(tmp_path / name, "text", "label")


def test_one_split_of_a_saved_dataset_is_named(tmp_path: Path) -> None:
    DatasetDict(
        {"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}
    ).save_to_disk(tmp_path / "splits")
    with pytest.raises(InputError, match=r"splits train, test\. Name one: \S*splits/train"):
        Pool(tmp_path / "splits")
    assert len(Pool(tmp_path / "splits" / "test")) == 1
    with pytest.raises(InputError, match="is not a Dataset"):
        Pool(tmp_path)


# Values


def test_values_of_json_lines_are_those_of_a_list_of_dicts(tmp_path: Path) -> None:
    values = [5, 5.5, 12345678901234567890123, 2**64 - 1, 2**64 - 2, -1, 10**400, 1e22, 0.1, "5"]
    values += [
        "2024-01-02",
        "2024-01-02T03:04:05Z",
        "12:30",
        "NA",
        "",
        None,
        True,
        [1, {"a": None}],
    ]
    rows = [{"text": value, "id": number} for number, value in enumerate(values)]
    rows += [{"text": "fewer fields"}, {"id": 0, "text": "more", "else": {"deep": [2**70]}}]
    found = list(Pool(written(tmp_path / "pool.jsonl", rows)))
    assert found == rows
    assert [type(row["text"]) for row in found] == [type(row["text"]) for row in rows]
    usable = [row for row in rows if row["text"] not in ("", None, True, [1, {"a": None}])]
    pool = Pool(written(tmp_path / "usable.jsonl", usable))
    task = ChoiceTask("{text}")
    assert task.fill(list(pool)) == task.fill(usable)
    assert task.fill(list(pool))[0] == {"text": "5"}


def test_cells_of_csv_are_text(tmp_path: Path) -> None:
    cells = [
        "NA",
        "null",
        "nan",
        "007",
        "1.0",
        "1e5",
        "True",
        "2024-01-02",
        " a ",
        'b"c',
        "d\ne",
        "",
    ]
    rows = [{"text": cell, "id": str(number)} for number, cell in enumerate(cells)]
    path = written(tmp_path / "pool.csv", rows)
    assert list(Pool(path)) == rows
    plain = path.read_bytes()
    for content in (b"\xef\xbb\xbf" + plain, plain.replace(b"\r\n", b"\r\n\r\n"), b"\n" + plain):
        path.write_bytes(content)
        pool = Pool(path)
        assert list(pool) == rows
        assert [pool[i] for i in range(len(rows))] == rows
    path.write_bytes(b"\xef\xbb\xbftext,id\r\xc3\xa9,1\rb,2")
    assert list(Pool(path)[::-1]) == [{"text": "b", "id": "2"}, {"text": "é", "id": "1"}]


def test_blank_lines_and_line_separators_do_not_move_rows(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    rows = [{"text": f"{number}\u2028é\x85"} for number in range(6)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes(b"\xef\xbb\xbf" + "\n \r\n\n".join(lines).encode())
    pool = Pool(path)
    assert list(pool) == rows
    assert [pool[i] for i in (5, 0, 3)] == [rows[i] for i in (5, 0, 3)]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "é"}\n'.encode("latin-1"),
            "byte 0xE9 in line 2 is not",
        ),
        ("a.csv", "text\na\n€\n".encode("cp1252"), "byte 0x80 in line 3.*iconv -f cp1252"),
        ("a.csv", "text\na\n".encode("utf-16"), "iconv -f utf-16"),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', "line 1 has the key 'text' twice"),
        ("a.jsonl", b'{"text": "a", "more": [{"x": 1, "x": 1}]}\n', "line 1 has the key 'x' twice"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 1' + b"0" * 5000 + b"}\n", "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n"b"\n', "line 2 is a str, not an object"),
        ("a.csv", b"text,text\na,b\n", "column names repeat"),
        ("a.csv", b"text\na,b\n", "line 2 has 2 cells"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason):
        Pool(tmp_path / name)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_of_400_digits_is_text(sign: int) -> None:
    value = sign * 10**400
    assert ChoiceTask("{text}").fill([{"text": value}]) == [{"text": str(value)}]
    with pytest.raises(
        InputError, match=r"row 0: field 'text' is a whole number of too many digits"
    ):
        ChoiceTask("{text}").fill([{"text": value**20}])
    with pytest.raises(InputError, match="not text"):
        ChoiceTask("{text}").fill([{"text": math.inf}])


def test_categories_and_unusual_columns_of_parquet(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": ["a", "b", "a"], "kind": pd.Categorical(["x", "y", "x"])})
    table.to_parquet(tmp_path / "pool.parquet")
    assert list(Pool(tmp_path / "pool.parquet")) == table.to_dict("records")
    two = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(two, tmp_path / "two.parquet")
    with pytest.raises(InputError, match="column names repeat"):
        Pool(tmp_path / "two.parquet")


def test_files_of_different_formats_are_one_pool(tmp_path: Path) -> None:
    paths = [in_format(tmp_path, kind) for kind in FORMATS]
    pool = Pool(paths)
    assert list(pool) == ROWS * len(FORMATS)
    assert list(pool[[17, 3, 0, 4, 16]]) == [ROWS[i % 3] for i in (17, 3, 0, 4, 16)]


# Changes of a file


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("text", ["second", "of another size"])
def test_a_file_that_was_written_again_with_the_same_time_is_read_again(
    kind: str, text: str, tmp_path: Path
) -> None:
    path, cache = tmp_path / f"pool.{kind}", tmp_path / "cache"
    written(path, [{"text": "former"}])
    time = path.stat().st_mtime_ns
    before = Pool(path, cache_dir=cache)
    written(path, [{"text": text}])
    os.utime(path, ns=(time, time))
    assert Pool(path, cache_dir=cache)[0] == {"text": text}
    if kind == "parquet":  # the copy that was made when the pool was opened
        assert before[0] == {"text": "former"}
        return
    with pytest.raises(InputError, match=r"was changed after the pool was opened. Open it again"):
        before[0]


def test_a_pool_outlives_changes_of_the_times_and_permissions_of_its_file(tmp_path: Path) -> None:
    path = written(tmp_path / "pool.jsonl", ROWS)
    pool = Pool(path)
    os.utime(path, ns=(0, 0))
    path.chmod(0o600)
    assert list(pool) == ROWS
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        pool[0]


def test_the_copy_of_a_parquet_file_is_removed_with_its_pools(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    pool = Pool(written(tmp_path / "pool.parquet", ROWS), cache_dir=cache)
    part = pool[1:]
    assert len(list(cache.iterdir())) == 1
    del pool
    gc.collect()
    assert list(part) == ROWS[1:]
    del part
    gc.collect()
    assert not list(cache.iterdir())
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"broken\.parquet cannot be read"):
        Pool(tmp_path / "broken.parquet", cache_dir=cache)
    assert not list(cache.iterdir())
    with pytest.raises(StorageError, match="copying"):
        Pool(tmp_path / "pool.parquet", cache_dir=tmp_path / "pool.parquet")


# Parts of a pool


@pytest.mark.parametrize("kind", FORMATS)
def test_a_part_of_a_pool_stays_on_disk(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"item {number}", "id": str(number)} for number in range(20)]
    pool = Pool(in_format(tmp_path, kind, rows))
    mask = np.arange(20) % 3 == 0
    with monkeypatch.context() as patch:
        patch.setattr(Pool, "read", lambda *args: pytest.fail("a row was read"))
        parts = [pool[mask], pool[~mask][2:9], pool[::-2], pool[np.array([7, -1, 7])]]
        assert all(isinstance(part, Pool) for part in parts)
    kept = [row for row, keep in zip(rows, mask, strict=True) if not keep]
    expected = [rows[::3], kept[2:9], rows[::-2], [rows[7], rows[19], rows[7]]]
    assert [list(part) for part in parts] == expected
    assert [part[-1] for part in parts] == [part[-1] for part in expected]
    assert [list(part) for part in map(pickle.loads, map(pickle.dumps, parts))] == expected
    assert len(pool[[]]) == 0
    with pytest.raises(IndexError):
        parts[0][7]
    with pytest.raises(IndexError, match="mask has shape"):
        parts[0][mask]


def test_opening_and_selecting_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * 10_000}) + "\n" for _ in range(2000)))
    tracemalloc.start()
    pool = Pool(path)[np.arange(2000) != 7]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pool) == 1999
    assert peak < 2e6  # the file has 20 MB


@pytest.mark.parametrize("name", ["pool.jsonl", "some/where/a.CSV", "b.parquet", Path("c.json")])
def test_a_path_in_place_of_a_pool_is_answered_with_pool(
    name: Any, make_learner: Callable[..., STARLearner]
) -> None:
    from starlearn.modal import ActiveLearner

    learner = make_learner()
    learner.adapter_ = object()  # stands for a training: items are checked first
    loop = ActiveLearner(make_learner())
    calls = [learner.query, learner.uncertainty, learner.transform, learner.estimate]
    calls += [
        learner.predict,
        lambda X: learner.fit(X, ["red"]),
        lambda X: learner.teach(X, ["red"]),
    ]
    for call in [*calls, loop.query]:
        with pytest.raises(InputError, match=rf"Open the file: Pool\('{name}'\)"):
            call(name)


def test_a_saved_dataset_in_place_of_a_pool_is_answered_with_pool(
    tmp_path: Path, make_learner: Callable[..., STARLearner]
) -> None:
    folder = in_format(tmp_path, "folder")
    with pytest.raises(InputError, match=r"Open the file: Pool\('"):
        make_learner().query(str(folder))
    with pytest.raises(InputError, match="got one text"):
        make_learner().query("pool and jsonl")
