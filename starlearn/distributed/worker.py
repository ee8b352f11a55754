"""A worker: loads the model and the adapter once, scores chunks, and writes one file per chunk."""

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
from starlearn.errors import (
    InputError,
    ModelMismatchError,
    OutOfMemoryError,
    StarlearnError,
    WorkerError,
)
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
"""Number of workers that a chunk may kill before it is reported as an error."""
EMBEDDING, ANSWER, POSITION, PROMPT = "embedding", "answer", " position", " prompt"
"""Columns of chunks. The space keeps them apart from the fields of a template."""
RESULT = pa.schema(
    {"key": pa.string(), "error": pa.string(), "kind": pa.string(), "numbers": pa.list_(pa.int64())}
)
"""Columns of a worker's results: error is "" for a finished chunk, kind is "input" for an
InputError, and numbers are the arguments of an OutOfMemoryError."""


def numerics_of(source: str, quantization: Any) -> str:
    """Return the hardware and versions that this process computes with, without loading weights."""
    return Backbone(source, quantization, verbose=False).numerics


@dataclass(frozen=True)
class ScoringJob:
    """Settings of one scoring for all workers, and folders that all of them can read."""

    source: str
    """Folder or hub id of the base model."""
    quantization: Any
    learner: str | None
    """Folder written by `STARLearner.save`; None before the first training."""
    acquisition: Acquisition
    seed: int
    """Seed of the dropout masks."""
    tree: ChoiceTree | None
    max_new_tokens: int
    with_base: bool
    """Whether the base model is run too, once there is an adapter."""
    n_passes: int
    """K; 0 means hidden states instead of scores."""
    task: Task
    room: int
    """Tokens that a prompt leaves free for the answer."""
    tie_seed: int
    """Seed of the numbers that break ties."""
    space: str
    """Identifies all inputs of a score besides the item."""
    folder: str
    """Folder of finished chunks."""
    todo: str
    """Folder of chunks that wait for a worker."""

    def scorer(self) -> Scorer:
        """Build the scorer; its numbers must be those of the calling process."""
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
                f"A worker would compute other numbers than the calling process. It has "
                f"{backbone.numerics}. Use the same model files, versions and kind of device for "
                "all."
            )
        return scorer


class ScoringWorker:
    """A Ray actor that scores chunks one after the other."""

    def __init__(self, job: ScoringJob) -> None:
        self.job = job
        self.folder, self.todo = Path(job.folder), Path(job.todo)
        self.failed: dict[str, Any] | None = None
        try:
            self.scorer = job.scorer()
        except StarlearnError as error:  # returned with every chunk: any worker would fail
            self.failed = failure_of(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score the chunks in the column key, and return one row of RESULT per chunk."""
        keys = batch["key"].to_pylist()
        rows = [{"key": key, **(self.failed or self._score_chunk(key))} for key in keys]
        return pa.Table.from_pylist(rows, RESULT)

    def prompts(self, table: pa.Table) -> list[list[int]]:
        """Return the prompts of a chunk, made of its items if it has no prompts yet."""
        if PROMPT in table.column_names:
            return table[PROMPT].to_pylist()
        positions = table[POSITION].to_numpy()
        backbone = self.scorer.backbone
        encoder = Encoder(backbone.tokenizer, self.job.task, backbone.context, self.job.room)
        prompts = encoder(table.drop_columns(POSITION).to_pylist(), positions)
        self.scorer.check(prompts, positions, self.job.n_passes)
        return prompts

    def _score_chunk(self, key: str) -> dict[str, Any]:
        begun = self.todo / f"{key}.begun"
        table = pq.read_table(self.todo / f"{key}.parquet")
        target = chunk_file(self.folder, self.job.space, key)
        if read_chunk(target, key, table.num_rows) is None:
            attempts = len(begun.read_text().splitlines()) if begun.exists() else 0
            try:
                if attempts >= ATTEMPTS:
                    raise WorkerError(
                        f"it has killed its worker {attempts} times (see Ray's logs; usually "
                        "memory ran out). Give workers more memory, or remove its items"
                    )
                with begun.open("a") as lines:  # one line per attempt: a worker that dies leaves it
                    lines.write(f"{os.getpid()}\n")
                write_chunk(target, key, self.computed(table))
            except StarlearnError as error:
                return failure_of(error)
        begun.unlink(missing_ok=True)
        return {"error": "", "numbers": [], "kind": ""}

    def computed(self, table: pa.Table) -> Mapping[str, Any]:
        """Compute the columns of a chunk."""
        prompts = self.prompts(table)
        scorer = replace(self.scorer, store=ScoreStore())
        with (
            scorer.ready(),
            ItemBar("chunk", len(prompts), verbose=False) as bar,
            renumbered(table[POSITION].to_numpy()),
        ):
            if not self.job.n_passes:
                points = scorer.embeddings(prompts, bar)
                return {EMBEDDING: pa.array(list(points), pa.list_(pa.float64()))}
            # Base scores of free-form answers change each round, as the answers do.
            base: Any = nullcontext()
            if scorer.tree is not None and (scorer.with_base or scorer.adapter is None):
                base = _BaseRows(self.folder, scorer, prompts)
            with base:
                found = scorer.score(prompts, self.job.n_passes, bar, self.job.tie_seed)
            return columns_of(found)


class _BaseRows:
    """The base model's rows of a chunk, in a file that every round reads."""

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


def failure_of(error: StarlearnError) -> dict[str, Any]:
    """Return an error as a row of a worker's result."""
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
