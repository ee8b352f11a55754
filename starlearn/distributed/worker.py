"""What a worker does: load base and adapter once, score chunks, leave each as a file."""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from starlearn.data.tokens import Encoder
from starlearn.distributed.chunks import chunk_file, chunk_key, read_chunk, write_chunk
from starlearn.errors import InputError, ModelMismatchError, OutOfMemoryError, StarlearnError
from starlearn.export import saving
from starlearn.model.backbone import Backbone
from starlearn.model.choices import ChoiceTree
from starlearn.model.memory import renumbered
from starlearn.progress import ItemBar
from starlearn.query.score_store import ScoreStore, row_keys
from starlearn.query.score_table import BASE, ScoreTable
from starlearn.query.scoring import Scorer
from starlearn.settings import Acquisition
from starlearn.tasks import Task

ATTEMPTS = 3
"""How often a chunk may take its worker down before it is given up."""
EMBEDDING, ANSWER, POSITION, PROMPT = "embedding", "answer", " position", " prompt"
"""Columns; a field of a template is a name, and has no space."""


def numerics_of(source: str, quantization: Any) -> str:
    """Say what computes here; loads no weights."""
    return Backbone(source, quantization, verbose=False).numerics


@dataclass(frozen=True)
class Work:
    """What every worker is told: plain settings, and folders that all of them can read."""

    source: str
    """Folder or hub id of the base model."""
    quantization: Any
    learner: str | None
    """Folder that `STARLearner.save` wrote; None before the first training."""
    acquisition: Acquisition
    seed: int
    """Of the dropout masks."""
    tree: ChoiceTree | None
    max_new_tokens: int
    with_base: bool
    """Whether the base model is run too, once there is an adapter."""
    n_passes: int
    """K; 0 asks for hidden states instead of scores."""
    task: Task
    room: int
    """Tokens that a prompt leaves free for the answer."""
    tie_seed: int
    """Of the numbers that break ties."""
    space: str
    """Name of all that decides a number, the item aside."""
    folder: str
    """Where chunks are kept."""
    todo: str
    """Where chunks wait."""

    def scorer(self) -> Scorer:
        """Build what scores.

        Raises
        ------
        ModelMismatchError
            When this process would compute other numbers than the one that asks.
        """
        adapter = None if self.learner is None else saving.load(self.learner).adapter
        backbone = Backbone(self.source, self.quantization, verbose=False)
        scorer = Scorer(
            backbone,
            adapter,
            self.acquisition,
            ScoreStore(),
            self.seed,
            self.tree,
            self.max_new_tokens,
            self.with_base,
        )
        found = scorer.identity(self.n_passes) if self.n_passes else scorer.embedding_space
        if found != self.space:
            raise ModelMismatchError(
                f"A worker's numbers would not be those of the process that asks: it has "
                f"{backbone.numerics}. Give all of them the same model files, versions and kind of "
                "device."
            )
        return scorer


class ScoringWorker:
    """An actor: scores the chunks that it is given, one after the other.

    Parameters
    ----------
    work : Work
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.folder, self.todo = Path(work.folder), Path(work.todo)
        self.failed: dict[str, Any] | None = None
        try:
            self.scorer = work.scorer()
        except StarlearnError as error:  # told with the first chunk: it would fail anywhere
            self.failed = told(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score the chunks named in a batch.

        Parameters
        ----------
        batch : pyarrow.Table
            Column key.

        Returns
        -------
        pyarrow.Table
            Columns key, error (empty where the chunk is finished), its kind, and numbers (of an
            OutOfMemoryError).
        """
        keys = batch["key"].to_pylist()
        results = [self.failed or self._done(key) for key in keys]
        return pa.table(
            {
                "key": keys,
                "error": [result["error"] for result in results],
                "kind": [result["kind"] for result in results],
                "numbers": pa.array([r["numbers"] for r in results], pa.list_(pa.int64())),
            }
        )

    def prompts(self, table: pa.Table) -> list[list[int]]:
        """Return the prompts of a chunk that waits: from its items, if it has no prompts yet."""
        if PROMPT in table.column_names:
            return table[PROMPT].to_pylist()
        positions = table[POSITION].to_numpy()
        backbone = self.scorer.backbone
        encoder = Encoder(backbone.tokenizer, self.work.task, backbone.context, self.work.room)
        prompts = encoder(table.drop_columns(POSITION).to_pylist(), positions)
        self.scorer.check(prompts, positions, self.work.n_passes)
        return prompts

    def _done(self, key: str) -> dict[str, Any]:
        waiting, begun = self.todo / f"{key}.parquet", self.todo / f"{key}.begun"
        table = pq.read_table(waiting)
        target = chunk_file(self.folder, self.work.space, key)
        if read_chunk(target, key, table.num_rows) is None:
            attempts = len(begun.read_text().splitlines()) if begun.exists() else 0
            if attempts >= ATTEMPTS:
                return {
                    "error": f"it has taken down its worker {attempts} times (see Ray's logs; "
                    "memory that runs out does so). Give workers more memory, or remove its items",
                    "numbers": [],
                    "kind": "",
                }
            with begun.open("a") as marks:  # who is at it, for each attempt
                marks.write(f"{os.getpid()}\n")
            try:
                write_chunk(target, key, self.computed(table))
            except StarlearnError as error:
                return told(error)
        begun.unlink(missing_ok=True)
        return {"error": "", "numbers": [], "kind": ""}

    def computed(self, table: pa.Table) -> Mapping[str, Any]:
        """Compute a chunk: a column for each kind of number."""
        prompts = self.prompts(table)
        scorer = replace(self.scorer, store=ScoreStore())
        with (
            scorer.ready(),
            ItemBar("chunk", len(prompts), verbose=False) as bar,
            renumbered(table[POSITION].to_numpy()),
        ):
            if not self.work.n_passes:
                points = scorer.embeddings(prompts, bar)
                return {EMBEDDING: pa.array(list(points), pa.list_(pa.float64()))}
            base: Any = nullcontext()  # free-form answers change, and base scores with them
            if scorer.tree is not None and (scorer.with_base or scorer.adapter is None):
                base = _BaseKept(self.folder, scorer, prompts)
            with base:
                found = scorer.score(prompts, self.work.n_passes, bar, self.work.tie_seed)
            return columns_of(found)


class _BaseKept:
    """The base model's rows of a chunk, in a file of their own: they serve in every round."""

    def __init__(self, folder: Path, scorer: Scorer, prompts: list[list[int]]) -> None:
        self.store, self.space = scorer.store, scorer.base_space
        self.key = chunk_key(self.space, prompts)
        self.file = chunk_file(folder, self.space, self.key)
        self.rows = row_keys(prompts)

    def __enter__(self) -> None:
        kept = read_chunk(self.file, self.key, len(self.rows))
        if kept is not None:
            values = np.stack(kept["row"].to_numpy(zero_copy_only=False))
            self.store.get(self.space, self.rows, lambda missing: values[missing])

    def __exit__(self, kind: Any, *_: object) -> None:
        known = self.store.known(self.space, self.rows)
        if kind is None and not self.file.exists() and all(key in known for key in self.rows):
            rows = [known[key] for key in self.rows]
            write_chunk(self.file, self.key, {"row": pa.array(rows, pa.list_(pa.float64()))})


def told(error: StarlearnError) -> dict[str, Any]:
    """Put an error into a row that travels back."""
    numbers = []
    if isinstance(error, OutOfMemoryError):
        numbers = [error.index, error.length, error.n_passes]
    kind = "input" if isinstance(error, InputError) else ""
    return {"error": str(error), "numbers": numbers, "kind": kind}


def columns_of(scores: ScoreTable) -> dict[str, Any]:
    """Return scores as the columns of a file."""
    answers = scores.answers or []
    kind = pa.int64() if all(isinstance(a, int) for a in answers) else pa.list_(pa.int64())
    return {**scores.columns(), ANSWER: pa.array(answers, kind)}


def scores_of(table: pa.Table) -> ScoreTable:
    """Return the scores in a file that :func:`columns_of` made."""
    columns: dict[str, Any] = dict.fromkeys(BASE)
    columns |= {name: table[name].to_numpy() for name in table.column_names if name != ANSWER}
    return ScoreTable(**columns, answers=table[ANSWER].to_pylist())
