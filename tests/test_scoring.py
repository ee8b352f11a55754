"""Scoring a pool: the same numbers however the work is cut, interrupted or short of memory."""

import itertools
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from tiny_models import COLOURS, build_model

from starlearn.errors import InputError, OutOfMemoryError
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.learner.session import session_of
from starlearn.model.structure import trunk_of
from starlearn.query import columns, mixing
from starlearn.query.score_store import ScoreStore, row_keys
from starlearn.query.scoring import Scorer
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.tasks import ChoiceTask, GenerationTask

Factory = Callable[..., STARLearner]
ONE_PASS = {"n_passes": 1, "measure": "entropy"}
FIELDS = ("base", "full", "mixed", "entropy", "mutual_information", "n_tokens", "answers")
TASKS: dict[str, Any] = {
    "choices": ChoiceTask("{text} Answer :", choices=COLOURS),
    "several tokens": ChoiceTask("{text} Answer :", choices=["very red", "very green", "blue"]),
    "free form": GenerationTask("{text} Answer :", max_new_tokens=5),
}


@pytest.fixture
def pool(pool: list[str]) -> list[str]:
    """A part of the pool that all tests share: some prompts of each length."""
    return pool[::3]


@pytest.fixture(params=list(TASKS))
def learner(request: pytest.FixtureRequest, make_learner: Factory, labelled: Any) -> STARLearner:
    task = TASKS[request.param]
    items, labels = labelled
    if request.param == "several tokens":
        labels = ["blue" if label == "blue" else f"very {label}" for label in labels]
    return make_learner(task=clone(task)).fit(items, labels)


def forget(learner: STARLearner, folder: Path | None = None) -> None:
    """Start from nothing: no score is kept, and the budget is the device's."""
    engine = base_of(learner)
    engine.store = ScoreStore(folder)
    for name in ("budget", "writing_budget"):
        engine.backbone.__dict__.pop(name, None)


def assert_same(found: Any, expected: Any, order: Any = slice(None)) -> None:
    for name in FIELDS:
        one, other = getattr(found, name), getattr(expected, name)[order]
        assert np.array_equal(one, other), name


# However the work is cut


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_scores_do_not_depend_on_order_budget_or_chunks(
    learner: STARLearner, pool: list, data: st.DataObject
) -> None:
    learner.set_params(acquisition=Acquisition(n_passes=3))
    forget(learner)
    expected = learner.uncertainty(pool)
    order = np.array(data.draw(st.permutations(range(len(pool)))))
    tokens = data.draw(st.sampled_from([1, 17, 64, 333, None]))
    chunk = data.draw(st.sampled_from([3, 5, 16, 100]))
    mode = data.draw(st.sampled_from(["shared", "token"]))
    if mode == "token":
        learner.set_params(acquisition__mask_mode="token")
        expected = learner.uncertainty(pool)
    learner.set_params(acquisition__max_batch_tokens=tokens, acquisition__chunk_size=chunk)
    forget(learner)
    assert_same(learner.uncertainty([pool[i] for i in order]), expected, order)


@pytest.mark.parametrize("options", [{"mc_scope": "answer"}, ONE_PASS])
def test_options_do_not_depend_on_the_cut_either(
    learner: STARLearner, pool: list, options: dict[str, Any]
) -> None:
    learner.set_params(acquisition=Acquisition(**{"n_passes": 3, **options}))
    expected = learner.uncertainty(pool)
    learner.set_params(acquisition__max_batch_tokens=50, acquisition__chunk_size=7)
    forget(learner)
    assert_same(learner.uncertainty(pool[::-1]), expected, slice(None, None, -1))


def test_large_pools_are_kept_in_files_with_the_same_result(
    learner: STARLearner, pool: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    normalise = itertools.cycle(["rank", "zscore", "none"])
    reduce = itertools.cycle(["residual", "mean", "sum"])
    for _ in range(3):
        learner.set_params(acquisition__normalise=next(normalise), acquisition__reduce=next(reduce))
        expected = learner.query(pool, 6, return_metrics=True)
        with monkeypatch.context() as patch:
            patch.setattr(columns, "IN_MEMORY", 10)
            patch.setattr(mixing, "PIECE", 7)
            found = learner.query(pool, 6, return_metrics=True)
            assert isinstance(columns.column(11), np.memmap)
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_no_array_of_a_large_pools_length_is_in_memory(
    make_learner: Factory, labelled: Any, pool: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner().fit(*labelled)
    options: list[dict[str, Any]] = [{}, {"screen": 2}, {"sub_pool": 12}, {"strategy": "random"}]
    for option in options:
        learner.set_params(acquisition=Acquisition(n_passes=2, chunk_size=5, **option))
        expected = learner.query(pool, 4, return_metrics=True)
        with monkeypatch.context() as patch:
            patch.setattr(columns, "IN_MEMORY", 10)
            patch.setattr(mixing, "PIECE", 7)
            assert isinstance(columns.counted(25), np.memmap)
            assert columns.counted(25).tolist() == list(range(25))
            session = session_of(learner)
            fields = session.parts.task.fill(pool)
            ranked = session.plan(pool, fields).ranked(4)
            kept = {**vars(ranked), **vars(ranked.uncertainty)}
            del kept["uncertainty"]
            for name, values in kept.items():
                assert values is None or isinstance(values, np.memmap) or len(values) < len(pool), (
                    name
                )
            if not option:
                assert isinstance(ranked.places, np.memmap)
            found = learner.query(pool, 4, return_metrics=True)
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(one, other, equal_nan=np.asarray(one).dtype == float), option


# Interrupted


@contextmanager
def interrupted(after: int, error: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
    """Stop in the middle of the chunk that follows `after` finished ones."""
    original, calls = Scorer.score, itertools.count()

    def score(self: Scorer, *arguments: Any) -> Any:
        found = original(self, *arguments)
        if next(calls) == after:
            raise error
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "score", score)
        yield


@contextmanager
def counted_rows(learner: STARLearner) -> Iterator[list[int]]:
    """Count the rows of tokens that the model computes."""
    rows: list[int] = []
    trunk = trunk_of(base_of(learner).backbone.model)
    hook = trunk.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        yield rows
    finally:
        hook.remove()


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("on_disk", [False, True])
def test_an_interrupted_query_goes_on_where_it_was(
    learner: STARLearner, pool: list, after: int, on_disk: bool, tmp_path: Path
) -> None:
    learner.set_params(acquisition__chunk_size=5)
    expected = learner.query(pool, 4, return_metrics=True)
    folder = tmp_path if on_disk else None
    forget(learner, folder)
    with interrupted(after), pytest.raises(KeyboardInterrupt):
        learner.query(pool, 4)
    if on_disk:  # as another process would
        base_of(learner).store = ScoreStore(folder)
    with counted_rows(learner) as rows:
        found = learner.query(pool, 4, return_metrics=True)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    with counted_rows(learner) as all_rows:
        forget(learner)
        learner.query(pool, 4)
    assert sum(rows) < sum(all_rows)
    with counted_rows(learner) as none:
        forget(learner, folder)
        learner.query(pool, 4)
        none.clear()
        learner.query(pool, 4)
    assert none == []


# Short of memory


@contextmanager
def short_of_memory(learner: STARLearner, fails: Callable[[int, int], bool]) -> Iterator[list[int]]:
    """Let runs of the trunk fail, by their number and their tokens."""
    trunk = trunk_of(base_of(learner).backbone.model)
    calls, failures = itertools.count(), list[int]()

    def before(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        number = next(calls)
        if fails(number, kwargs["input_ids"].numel()):
            failures.append(number)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    hook = trunk.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield failures
    finally:
        hook.remove()


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32 - 1), chunk=st.sampled_from([6, 100]))
def test_running_out_of_memory_anywhere_changes_no_score(
    learner: STARLearner, pool: list, seed: int, chunk: int
) -> None:
    learner.set_params(acquisition=Acquisition(n_passes=3, chunk_size=chunk))
    forget(learner)
    expected = learner.uncertainty(pool)
    forget(learner)
    rng = np.random.default_rng(seed)
    last = -13 + int(rng.integers(2))  # the first or the second run fails in any case

    def fails(number: int, tokens: int) -> bool:
        # With a pause: an item that fails alone is tried again once, and then given up.
        nonlocal last
        if number > last + 12 and (last < 0 or rng.random() < 0.4):
            last = number
            return True
        return False

    with short_of_memory(learner, fails) as failures:
        assert_same(learner.uncertainty(pool), expected)
    assert failures


def test_what_did_not_fit_is_not_tried_again(learner: STARLearner, pool: list) -> None:
    pool = [f"{text}{end}" for text in pool for end in ("", " now", " then", " no")]
    # Answers are written in batches of 16 rows at least.
    most = 300 if isinstance(learner.task, GenerationTask) else 100
    forget(learner)
    expected = learner.uncertainty(pool)
    forget(learner)
    with short_of_memory(learner, lambda _, tokens: tokens > most) as failures:
        learner.set_params(acquisition__chunk_size=32)
        assert_same(learner.uncertainty(pool), expected)
    # A few halvings, none of them in a later chunk.
    assert 1 <= len(failures) <= 5
    assert base_of(learner).backbone.budget.tokens < 1.5 * most


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        MemoryError(),
    ],
)
def test_every_way_to_say_that_memory_ran_out_is_understood(error: Exception) -> None:
    from starlearn.model.memory import TokenBudget

    budget, done, failed = TokenBudget(64), list[int](), list[bool]()

    def compute(batch: Any) -> None:
        if not failed:
            failed.append(True)
            raise error
        done.extend(batch.indices.tolist())

    budget.run([4, 9, 4, 4, 30], compute)
    assert sorted(done) == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="shapes"):
        budget.run([4], lambda batch: (_ for _ in ()).throw(RuntimeError("shapes differ")))


def test_one_item_that_does_not_fit_is_named_and_the_others_are_kept(
    make_learner: Factory, labelled: Any, pool: list
) -> None:
    learner = make_learner().fit(*labelled)
    learner.set_params(acquisition__chunk_size=5)
    items = [*pool[:10], "very " * 30, *pool[10:]]
    with (
        short_of_memory(learner, lambda _, tokens: tokens > 90),
        pytest.raises(OutOfMemoryError, match=r"row 10, 3\d tokens.*3 passes.*n_passes"),
    ):
        learner.query(items, 3)
    with counted_rows(learner) as rows:
        learner.query(items[:10], 3)
    assert rows == []


# Kept scores are never wrong


def test_a_kept_score_is_never_wrong_after_any_change(
    make_learner: Factory, labelled: Any, pool: list, tmp_path: Path
) -> None:
    """One folder for all of them; each must give what it gives without a folder."""
    other_model = build_model(tmp_path / "other", rms_norm_eps=0.3)
    star = Acquisition(n_passes=3)
    variants: list[dict[str, Any]] = [
        {},
        {"model": str(other_model)},
        {"quantization": "none"},
        {"quantization": "fp4"},
        {"task": ChoiceTask("{text} Question :", choices=COLOURS)},
        {"task": ChoiceTask("{text} Answer :", choices=[*COLOURS, "yes"])},
        {"task": ChoiceTask("{text} Answer :", choices=["very red", "green", "blue"])},
        {"task": GenerationTask("{text} Answer :", max_new_tokens=3)},
        {"task": GenerationTask("{text} Answer :", max_new_tokens=5)},
        {"adapter": LoRA(r=4, alpha=16, dropout=0.2)},
        {"adapter": LoRA(r=4, alpha=8, dropout=0.4)},
        {"training": Training(max_steps=5, batch_size=4, learning_rate=5e-3)},
        {"random_state": 8},
        *(
            {"acquisition": clone(star).set_params(**change)}
            for change in (
                ONE_PASS,
                {"n_passes": 2},
                {"mask_mode": "token"},
                {"mc_scope": "answer"},
                {"measure": "entropy"},
                {"measure": "predictive_entropy"},
                {"reduce": "sum"},
                {"normalise": "zscore"},
                {"schedule": "published"},
            )
        ),
    ]
    items, labels = labelled
    cache, found, expected = tmp_path / "cache", [], []
    kept, alone = make_learner(cache_dir=str(cache)), make_learner()
    for change in variants:
        trains = "acquisition" not in change  # a training does not depend on the query's settings
        if trains or not hasattr(kept, "adapter_"):
            kept, alone = make_learner(cache_dir=str(cache)), make_learner()
        for one in (kept, alone):
            one.set_params(
                **{k: clone(v) if hasattr(v, "get_params") else v for k, v in change.items()}
            )
            very = "very red" in (getattr(one.task, "choices", None) or [])
            if trains:
                one.fit(items, ["very red" if very and y == "red" else y for y in labels])
        if not trains:
            base_of(alone).store = ScoreStore()
        found.append(kept.uncertainty(pool))
        expected.append(alone.uncertainty(pool))
    for change, one, other in zip(variants, found, expected, strict=True):
        for name in FIELDS:
            assert np.array_equal(getattr(one, name), getattr(other, name)), (change, name)


def test_rows_of_items_with_the_same_tokens_are_told_apart() -> None:
    keys = row_keys([[1, 2], [1, 2], [1, 2, 3], [12]], [[3], [], [], [3]])
    assert len(set(keys)) == 4
    assert row_keys([[1, 2]]) != row_keys([[1, 2]], [[]])


def test_each_row_is_computed_once() -> None:
    store, asked = ScoreStore(), list[list[int]]()

    def compute(missing: list[int]) -> Any:
        asked.append(missing)
        return np.array([[10.0 * i] for i in missing])

    assert store.get("space", [b"a", b"b", b"a"], compute).ravel().tolist() == [0, 10, 0]
    assert store.get("space", [b"c", b"b"], compute).ravel().tolist() == [0, 10]
    assert store.get("other", [b"b"], compute).ravel().tolist() == [0]
    assert asked == [[0, 1], [0], [0]]


def test_memory_holds_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starlearn.query.score_store.MEMORY_BYTES", 10_000)
    store = ScoreStore()
    for start in range(0, 1000, 50):
        keys = [str(i).encode() for i in range(start, start + 50)]
        got = store.get("space", keys, lambda missing: np.array(missing, dtype=float)[:, None])
        assert got.ravel().tolist() == list(range(50))
        assert sum(row.nbytes + 200 for row in store._memory.values()) <= 10_400


def numbered(keys: list[bytes]) -> Callable[[list[int]], Any]:
    return lambda missing: np.array([[float(keys[i].decode())] for i in missing])


def test_a_damaged_row_or_file_is_computed_again(tmp_path: Path) -> None:
    keys = [str(i).encode() for i in range(50)]
    expected = [float(i) for i in range(50)]
    store = ScoreStore(tmp_path)
    store.get("space", keys, numbered(keys))
    file = tmp_path / "scores.sqlite"
    with sqlite3.connect(file) as database:
        database.execute("update rows set value = zeroblob(12) where key = ?", (b"7",))
    database.close()
    computed: list[int] = []

    def compute(missing: list[int]) -> Any:
        computed.extend(missing)
        return numbered(keys)(missing)

    again = ScoreStore(tmp_path)
    assert again.get("space", keys, compute).ravel().tolist() == expected
    assert computed == [7]
    for open_store in (store, again):
        open_store._database.close()  # type: ignore[union-attr]
    for name in tmp_path.iterdir():
        name.write_bytes(b"no database " * 100)
    with pytest.warns(UserWarning, match="damaged"):
        anew = ScoreStore(tmp_path)
    assert anew.get("space", keys, compute).ravel().tolist() == expected
    assert (tmp_path / "scores.damaged").exists()


def test_a_file_that_is_damaged_while_it_is_open_is_set_aside(tmp_path: Path) -> None:
    keys = [str(i).encode() for i in range(3000)]
    first = ScoreStore(tmp_path)
    first.get("space", keys, numbered(keys))
    first._database.close()  # type: ignore[union-attr]
    store = ScoreStore(tmp_path)
    content = bytearray((tmp_path / "scores.sqlite").read_bytes())
    content[4096:] = b"\x7f" * (len(content) - 4096)
    (tmp_path / "scores.sqlite").write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        found = store.get("space", keys, numbered(keys))
    assert found.ravel().tolist() == [float(i) for i in range(3000)]


def test_an_error_that_is_no_damage_gives_no_rows_up(tmp_path: Path) -> None:
    store, keys = ScoreStore(tmp_path), [b"1", b"2"]
    store.get("space", keys, numbered(keys))
    store._database.close()  # type: ignore[union-attr]
    with pytest.raises(sqlite3.ProgrammingError):
        store.known("space", keys)
    assert set(ScoreStore(tmp_path).known("space", keys)) == set(keys)


def test_old_adapters_leave_the_folder_the_base_model_stays(tmp_path: Path) -> None:
    store, keys = ScoreStore(tmp_path), [b"1", b"2"]
    for name in ["base", *(f"adapter {i}*" for i in range(20)), "base"]:
        store.get(name, keys, numbered(keys))
    with sqlite3.connect(tmp_path / "scores.sqlite") as database:
        names = [row[0] for row in database.execute("select name from spaces order by id")]
        rows = database.execute("select count(*) from rows").fetchone()[0]
    database.close()
    assert names == ["base", *(f"adapter {i}*" for i in range(12, 20))]
    assert rows == 2 * len(names)


def test_a_space_that_another_process_pushed_out_is_made_anew(tmp_path: Path) -> None:
    mine, other, keys = ScoreStore(tmp_path), ScoreStore(tmp_path), [b"1", b"2", b"3"]
    mine.get("mine*", keys[:1], numbered(keys[:1]))
    for i in range(20):
        other.get(f"adapter {i}*", keys, numbered(keys))
    assert mine.known("mine*", keys) == {}
    mine.get("mine*", keys, numbered(keys))
    assert set(ScoreStore(tmp_path).known("mine*", keys)) == set(keys)
    with sqlite3.connect(tmp_path / "scores.sqlite") as database:
        lost = "select count(*) from rows where space not in (select id from spaces)"
        assert database.execute(lost).fetchone()[0] == 0
    database.close()


def test_two_processes_write_to_one_folder_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from starlearn.query.score_store import ScoreStore\n"
        "store, name = ScoreStore(sys.argv[1]), sys.argv[2]\n"
        "for i in range(40):\n"
        "    keys = [f'{i} {j}'.encode() for j in range(20)]\n"
        "    store.get('base', keys, lambda missing: np.full((len(missing), 1), float(i)))\n"
        "    store.get(f'{name} {i}*', keys, lambda missing: np.full((len(missing), 1), -1.0))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen([*command, name]) for name in ("one", "two")]
    assert [process.wait() for process in processes] == [0, 0]
    keys = [f"{i} {j}".encode() for i in range(40) for j in range(20)]
    found = ScoreStore(tmp_path).known("base", keys)
    assert [float(found[key][0]) for key in keys] == [float(key.split()[0]) for key in keys]


@pytest.mark.parametrize("library", ["starlearn", "peft"])
def test_scores_of_another_release_are_not_taken(
    library: str,
    make_learner: Factory,
    pool: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from starlearn.model import backbone

    make_learner(cache_dir=tmp_path).query(pool, 2)
    later = make_learner(cache_dir=tmp_path)
    original = backbone.version
    if library == "starlearn":
        monkeypatch.setattr("starlearn.model.backbone.__version__", "99")
    monkeypatch.setattr(
        backbone, "version", lambda name: "99" if name == library else original(name)
    )
    with counted_rows(later) as rows:
        later.query(pool, 2)
    assert sum(rows) > 0


def test_a_folder_that_cannot_be_used_is_refused_before_the_model_is_loaded(
    make_learner: Factory, pool: list, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    with pytest.raises(InputError, match="cache_dir"):
        make_learner(cache_dir=tmp_path / "file").query(pool, 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_opens_the_file_anew(tmp_path: Path) -> None:
    keys = [str(i).encode() for i in range(20)]
    store = ScoreStore(tmp_path)
    store.get("space", keys[:10], numbered(keys))
    parent = store._database
    child = os.fork()
    if not child:
        found = store.get("space", keys, numbered(keys))
        right = found.ravel().tolist() == list(range(20)) and store._database is not parent
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store._database is parent
    computed: list[int] = []

    def compute(missing: list[int]) -> Any:
        computed.extend(missing)
        return numbered(keys)(missing)

    assert store.get("space", keys, compute).ravel().tolist() == list(range(20))
    assert computed == []
