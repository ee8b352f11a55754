"""Chunks of a pool that workers score: what identifies them, and what becomes of damaged ones."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_scoring import TASKS, assert_same, forget

from starlearn.data.pool import Pool
from starlearn.distributed import ray_workers
from starlearn.distributed.chunks import chunk_file, chunk_key, items_key, read_chunk, write_chunk
from starlearn.distributed.cluster import RayEngine
from starlearn.distributed.pool_files import SCORES, score_pool
from starlearn.distributed.worker import ATTEMPTS
from starlearn.errors import InputError, MissingDependencyError, OutOfMemoryError, WorkerError
from starlearn.learner.estimator import STARLearner
from starlearn.model.memory import TokenBudget
from starlearn.query.scoring import Scorer
from starlearn.query.selection import RunningTop, top_n
from starlearn.settings import Acquisition

Factory = Callable[..., STARLearner]


@pytest.fixture
def pool(pool: list[str]) -> list[str]:
    """A part of the pool that all tests share: five chunks of five."""
    return pool[::2]


@pytest.fixture
def done(in_place_of_ray: list[str]) -> list[str]:
    return in_place_of_ray


@pytest.fixture
def fitted(make_learner: Factory, labelled: Any) -> STARLearner:
    return make_learner(acquisition=Acquisition(n_passes=2, chunk_size=5)).fit(*labelled)


def same(one: Any, other: Any) -> None:
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


def chunks_in(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*-adapter/*.parquet")}


def base_in(folder: Path) -> dict[Path, int]:
    files = (file for file in folder.rglob("*.parquet") if "-adapter" not in str(file))
    return {file: file.stat().st_mtime_ns for file in files}


# The same numbers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"measure": "mutual_information", "normalise": "zscore"},
        {"screen": 2},
        {"sub_pool": 12},
        {"diversity": "kmeans++", "candidates": 2},
        {"distinct": 0.99},
        {"strategy": "random"},
        {"n_passes": 1, "measure": "entropy"},
        {"measure": "entropy", "schedule": "published"},
        {"mask_mode": "token"},
    ],
)
def test_a_batch_from_chunks_is_that_of_one_process(
    fitted: STARLearner, pool: list[str], done: list[str], options: dict[str, Any], tmp_path: Path
) -> None:
    fitted.set_params(acquisition=Acquisition(**{"n_passes": 2, "chunk_size": 5, **options}))
    expected = fitted.query(pool, 4, return_metrics=True)
    found = fitted.query(pool, 4, return_metrics=True, engine=RayEngine(folder=tmp_path))
    assert [list(a) for a in found[:2]] == [list(a) for a in expected[:2]]
    assert np.array_equal(found[2], expected[2], equal_nan=True)
    assert done or options.get("strategy") == "random"
    assert not list(tmp_path.rglob("todo-*"))


def test_before_the_first_training_too(
    make_learner: Factory, pool: list[str], done: list[str]
) -> None:
    learner = make_learner(acquisition=Acquisition(chunk_size=7))
    assert_same(learner.uncertainty(pool, engine="ray"), learner.uncertainty(pool))
    assert done


# Finished chunks


def test_finished_chunks_are_read_and_nothing_else(
    fitted: STARLearner, pool: list[str], done: list[str], tmp_path: Path
) -> None:
    ray = RayEngine(folder=tmp_path)
    expected = fitted.query(pool, 4, return_metrics=True, engine=ray)
    assert len(done) == len(chunks_in(tmp_path)) == 5
    done.clear()
    same(fitted.query(pool, 4, return_metrics=True, engine=ray), expected)
    assert not done
    fitted.query([*pool[:5], "the sun"], 2, engine=ray)  # one chunk is known, one is new
    assert len(done) == 1


def test_whatever_decides_a_score_makes_another_chunk(
    fitted: STARLearner, pool: list[str], done: list[str], labelled: Any, tmp_path: Path
) -> None:
    ray = RayEngine(folder=tmp_path)
    fitted.query(pool[:5], 1, engine=ray)
    changes: list[dict[str, Any]] = [
        {"acquisition__n_passes": 3},
        {"acquisition__mask_mode": "token"},
        {"acquisition__mc_scope": "answer"},
        {"task__prompt": "{text} is Answer :"},
        {"task": TASKS["several tokens"]},
    ]
    for change in changes:
        before = fitted.get_params()
        done.clear()
        fitted.set_params(**change)
        if "task" in change:
            fitted.fit(labelled[0], ["very red", "blue"] * 4)
        fitted.query(pool[:5], 1, engine=ray)
        assert len(done) == 1, change
        fitted.set_params(**{name: before[name] for name in change})
    done.clear()
    fitted.fit(labelled[0], labelled[1][::-1])  # another adapter
    fitted.query(pool[:5], 1, engine=ray)
    assert len(done) == 1
    fitted.set_params(acquisition__normalise="zscore", acquisition__measure="mutual_information")
    fitted.query(pool[:5], 1, engine=ray)
    assert len(done) == 1, "these only say how raw numbers are put together"


def test_base_rows_of_a_chunk_serve_in_every_round(
    fitted: STARLearner,
    pool: list[str],
    done: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = RayEngine(folder=tmp_path)
    fitted.uncertainty(pool, engine=ray)
    base = base_in(tmp_path)
    assert len(base) == 5
    fitted.teach(["the sun is"], ["red"])
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "_base_work", None)  # the base model has nothing to do
        found = fitted.uncertainty(pool, engine=ray)
    assert base_in(tmp_path) == base
    forget(fitted)
    assert_same(found, fitted.uncertainty(pool))


def flip(file: Path, where: int) -> None:
    content = bytearray(file.read_bytes())
    content[where % len(content)] ^= 0xFF
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another"])
def test_a_damaged_chunk_is_scored_again(
    fitted: STARLearner, pool: list[str], done: list[str], damage: str, tmp_path: Path
) -> None:
    ray = RayEngine(folder=tmp_path)
    expected = fitted.query(pool, 4, return_metrics=True, engine=ray)
    one, other = sorted(chunks_in(tmp_path))[:2]
    if damage == "flipped":
        flip(one, 40)
    elif damage == "another":
        one.write_bytes(other.read_bytes())
    else:
        one.write_bytes(one.read_bytes()[: 0 if damage == "empty" else -9])
    done.clear()
    with pytest.warns(UserWarning, match=rf"{one.name} is damaged"):
        found = fitted.query(pool, 4, return_metrics=True, engine=ray)
    same(found, expected)
    assert done == [one.stem]


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    numbers = np.arange(6.0)
    file = chunk_file(tmp_path, "space*", "key")
    write_chunk(file, "key", {"entropy": numbers, "answer": pa.array([[1], [], [2, 3]] * 2)})
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole)
        flip(file, place)
        try:
            table = read_chunk(file, "key", 6)
        except UserWarning:
            continue  # warnings are errors here: it was noticed
        assert table is not None
        assert np.array_equal(table["entropy"].to_numpy(), numbers), place
        assert table["answer"].to_pylist() == [[1], [], [2, 3]] * 2, place


def test_keys_tell_prompts_orders_and_cuts_apart() -> None:
    cuts = [[[1, 2], [3]], [[1], [2, 3]], [[3], [1, 2]], [[1, 2, 3]], [[1, 2]], [[1, 2], []]]
    keys = {chunk_key(space, cut) for space in ("a", "b") for cut in cuts}
    assert len(keys) == 2 * len(cuts)


# What goes wrong


def test_an_item_that_does_not_fit_is_named_by_its_row(
    fitted: STARLearner,
    pool: list[str],
    done: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    original = TokenBudget.run

    def run(self: TokenBudget, *arguments: Any, **options: Any) -> None:
        # The stand-in for Ray scores chunks in the order of their keys: others are finished first.
        if done[-1] == max(waiting[1:]):
            raise OutOfMemoryError(2, 9, 2)
        original(self, *arguments, **options)

    original_finished, waiting = ray_workers.finished, []

    def finished(
        ray: Any, settings: RayEngine, work: Any, keys: list[str]
    ) -> Iterator[dict[str, Any]]:
        waiting.extend(keys)
        return original_finished(ray, settings, work, keys)

    expected = fitted.query(pool, 4, return_metrics=True)
    with monkeypatch.context() as patch:
        patch.setattr(ray_workers, "finished", finished)
        patch.setattr(TokenBudget, "run", run)
        with pytest.raises(OutOfMemoryError) as raised:
            fitted.query(pool, 4, engine=RayEngine(folder=tmp_path))
    cuts = [np.arange(start, min(start + 5, len(pool))) for start in range(0, len(pool), 5)]
    assert raised.value.index == cuts[waiting.index(done[-1])][2]
    kept = chunks_in(tmp_path)
    assert kept
    same(fitted.query(pool, 4, return_metrics=True, engine=RayEngine(folder=tmp_path)), expected)
    assert kept.items() <= chunks_in(tmp_path).items()


def test_a_chunk_that_kills_its_workers_is_given_up_and_named(
    fitted: STARLearner, pool: list[str], done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ray_workers.finished

    def finished(
        ray: Any, settings: RayEngine, work: Any, keys: list[str]
    ) -> Iterator[dict[str, Any]]:
        (Path(work.todo) / f"{keys[1]}.begun").write_text("77\n" * ATTEMPTS)
        return original(ray, settings, work, keys)

    monkeypatch.setattr(ray_workers, "finished", finished)
    with pytest.raises(WorkerError, match="of 5 items from row 5 to row 9 could not be scored"):
        fitted.query(pool, 4, engine="ray")


def test_workers_that_would_compute_other_numbers_are_refused(
    fitted: STARLearner, pool: list[str], done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ray_workers.finished

    def finished(
        ray: Any, settings: RayEngine, work: Any, keys: list[str]
    ) -> Iterator[dict[str, Any]]:
        with monkeypatch.context() as patch:
            patch.setattr("starlearn.model.backbone.version", lambda name: "another")
            yield from original(ray, settings, work, keys)

    monkeypatch.setattr(ray_workers, "finished", finished)
    with pytest.raises(WorkerError, match="would compute other numbers"):
        fitted.query(pool, 4, engine="ray")


def test_an_item_that_is_too_long_is_named_by_its_row_and_finished_chunks_are_kept(
    fitted: STARLearner, pool: list[str], done: list[str], tmp_path: Path
) -> None:
    long = [*pool[:12], "sky " * 80, *pool[12:]]
    with pytest.raises(InputError, match=r"row 12: .*Finished chunks are kept") as raised:
        fitted.query(long, 4, engine=RayEngine(folder=tmp_path))
    assert "tokens" in str(raised.value)
    kept = chunks_in(tmp_path)
    assert len(kept) == len(done) - 1
    fitted.query([*pool[:12], pool[0], *pool[12:]], 4, engine=RayEngine(folder=tmp_path))
    assert kept.items() <= chunks_in(tmp_path).items()


def test_chunks_of_gpu_workers_are_named_by_what_computes_there(
    fitted: STARLearner, pool: list[str], done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def there(*what: Any) -> str:
        asked.append(what)
        return "a GPU, bfloat16"

    monkeypatch.setattr(ray_workers, "worker_numerics", there)
    monkeypatch.setattr("starlearn.model.backbone.Backbone.numerics", "a GPU, bfloat16")
    fitted.query(pool, 4, engine=RayEngine(gpus=1))
    assert len(asked) == 1
    monkeypatch.setattr("starlearn.model.backbone.Backbone.numerics", "another GPU")
    with pytest.raises(WorkerError, match="It has another GPU"):
        fitted.query(pool, 4, engine=RayEngine(gpus=1))
    asked.clear()
    fitted.query(pool, 4, engine=RayEngine())
    assert not asked


def test_this_process_makes_no_prompts_of_a_pool(
    fitted: STARLearner, pool: list[str], done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fitted.query(pool, 4, return_metrics=True)
    monkeypatch.setattr("starlearn.query.acquisition.QueryPlan.prompts", None)
    same(fitted.query(pool, 4, return_metrics=True, engine="ray"), expected)
    assert done


@given(st.lists(st.dictionaries(st.sampled_from("ab"), st.text(max_size=3)), max_size=4))
def test_keys_of_items_tell_fields_texts_and_orders_apart(items: list[dict[str, str]]) -> None:
    def key(found: list[dict[str, str]], space: str = "s") -> str:
        return items_key(space, found)

    assert key(items) == key([dict(item) for item in items])
    assert key(items) != key(items, "another")
    for at, item in enumerate(items):
        assert key([*items[:at], *items[at + 1 :]]) != key(items)
        for name, text in item.items():
            for other in ({name: text + "x"}, {name + "c": text}):
                changed = {**{n: t for n, t in item.items() if n != name}, **other}
                assert key([*items[:at], changed, *items[at + 1 :]]) != key(items)


def test_texts_of_a_chunk_count_for_its_digest(tmp_path: Path) -> None:
    write_chunk(tmp_path / "a", "key", {"text": pa.array(["ab", "c"])})
    whole = (tmp_path / "a").read_bytes()
    assert read_chunk(tmp_path / "a", "key", 2) is not None
    write_chunk(tmp_path / "b", "key", {"text": pa.array(["a", "bc"])})
    facts = [pq.ParquetFile(tmp_path / name).schema_arrow.metadata for name in "ab"]
    assert facts[0] != facts[1]
    write_chunk(tmp_path / "a", "key", {"text": pa.array(["ab", "c"])})
    assert (tmp_path / "a").read_bytes() == whole


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_corrupt_file_of_a_pool_is_named(kind: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.{kind}" for name in "abc"]
    for file in files:
        if kind == "jsonl":
            file.write_text('{"text": "the sky"}\n')
        else:
            pq.write_table(pa.table({"text": ["the sky"]}), file)
    files[1].write_bytes(files[1].read_bytes()[:-6])
    with pytest.raises(InputError, match=rf"\S*b\.{kind}\b.* (cannot be read|is not JSON)"):
        Pool(files, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("engine_given", ["spark", 3, RayEngine])
def test_unknown_engines_are_refused(fitted: STARLearner, engine_given: Any) -> None:
    with pytest.raises(InputError, match="engine="):
        fitted.query(["the sky"], 1, engine=engine_given)


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"workers": 1.5}, {"gpus": -1}, {"cpus": "2"}])
def test_settings_of_a_cluster_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be"):
        RayEngine(**wrong)


def test_without_ray_the_error_says_what_to_install(
    fitted: STARLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'starlearn\[ray\]'"):
        fitted.query(["the sky"], 1, engine="ray")


# The best of a pool, from the best of its parts


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 9), st.randoms())
def test_the_best_of_all_parts_best_are_the_best(values: list[int], n: int, random: Any) -> None:
    scores = np.array(values, dtype=float)
    keys = np.arange(len(values), dtype=np.uint64)[::-1].copy()
    order = list(range(len(values)))
    random.shuffle(order)
    cuts = sorted(random.choices(range(len(values) + 1), k=3))
    merged = RunningTop(n)
    for part in np.split(np.array(order), cuts):
        shard = RunningTop(n)
        shard.add(scores[part], keys[part], part)
        merged.add(shard.scores, shard.keys, shard.positions)
    assert merged.result().tolist() == top_n(scores, n, keys).tolist()


# Files in, a file out


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("engine_given", ["ray", None])
def test_a_file_of_scores_names_each_item(
    fitted: STARLearner,
    pool: list[str],
    done: list[str],
    kind: str,
    engine_given: str | None,
    tmp_path: Path,
) -> None:
    rows = [{"text": text, "name": f"item {len(text)}-{i}"} for i, text in enumerate(pool)]
    source, out = tmp_path / f"pool.{kind}", tmp_path / f"scores.{kind}"
    if kind == "jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), source)
    found_pool = Pool(source, cache_dir=tmp_path / "cache")
    score_pool(fitted, found_pool, out, engine=engine_given, id_field="name")
    if kind == "jsonl":
        found = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        found = pq.read_table(out).to_pylist()
    assert [row["id"] for row in found] == [row["name"] for row in rows]
    expected = fitted.uncertainty(pool)
    for name in (*SCORES, "answer"):
        values = expected.answers if name == "answer" else getattr(expected, name)
        assert [row[name] for row in found] == values.tolist(), name
    with pytest.raises(InputError, match="exists already"):
        score_pool(fitted, found_pool, out)
    twice = Pool(datasets.Dataset.from_list([row | {"same": "x"} for row in rows]))
    repeated = f"0 rows have no value, and {len(pool) - 1} rows repeat"
    with pytest.raises(InputError, match=repeated):
        score_pool(fitted, twice, tmp_path / "other.jsonl", id_field="same")
    with pytest.raises(InputError, match="is not a field of the pool"):
        score_pool(fitted, found_pool, tmp_path / "other.jsonl", id_field="label")
    with pytest.raises(InputError, match="must end in"):
        score_pool(fitted, found_pool, tmp_path / "other.csv")
    with pytest.raises(InputError, match="not a writable folder"):
        score_pool(fitted, None, tmp_path / "nowhere" / "other.jsonl")  # before the pool is read
