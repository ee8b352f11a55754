"""A query's scoring on Ray: finished chunks are read, the others are given to workers."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from starlearn.data.pool import rows_of
from starlearn.distributed.accelerate_workers import ProcessWorkers
from starlearn.distributed.chunks import chunk_file, chunk_key, items_key, read_chunk, write_chunk
from starlearn.distributed.cluster import RayEngine, engine_of, finished, numerics_there, running
from starlearn.distributed.worker import EMBEDDING, POSITION, PROMPT, Work, scores_of
from starlearn.errors import InputError, OutOfMemoryError, WorkerError
from starlearn.export import saving
from starlearn.progress import ItemBar
from starlearn.query.acquisition import QueryPlan, Workers
from starlearn.query.score_table import ScoreTable
from starlearn.query.scoring import Scorer

SPACES = 8
"""Adapters whose chunks stay in a folder; the base model's stay for ever."""
LEFT_BEHIND = 7 * 24 * 3600
"""Seconds after which what a killed query has left waiting is removed."""


def workers_of(engine: Any, learner: Any) -> Workers | None:
    """Return the workers that an `engine` argument asks for; None for this process."""
    if engine is None:
        return None
    if engine == "accelerate":
        return ProcessWorkers.here()
    return RayWorkers(engine_of(engine), learner)


@dataclass(frozen=True)
class Piece:
    """A chunk on its way: c rows of a pool."""

    number: int
    """Its place among the chunks of this query."""
    positions: NDArray[np.intp]
    """Rows of the pool, [c]."""
    columns: dict[str, Any]
    """What a worker makes prompts of, or the prompts."""
    key: str
    """What identifies it."""


Take = Callable[[int, pa.Table], None]
"""Takes in the numbers of a chunk, by its number."""


@dataclass(frozen=True)
class RayWorkers:
    """Workers of a learner's query; see :class:`starlearn.query.acquisition.Workers`.

    Parameters
    ----------
    settings : RayEngine
    learner : STARLearner
    """

    settings: RayEngine
    learner: Any = field(repr=False)
    _asked: list[str] = field(default_factory=list, repr=False)
    """What workers have said that they compute with."""

    def score(
        self,
        plan: QueryPlan,
        positions: NDArray[np.intp],
        scores: ScoreTable,
        n_passes: int,
        places: NDArray[np.intp],
    ) -> None:
        """Fill in scores, bit for bit those of one process.

        Raises
        ------
        WorkerError
            When a chunk cannot be scored, naming its rows. Finished ones are kept.
        OutOfMemoryError
            When one item alone does not fit into a worker's memory.
        """
        size = plan.acquisition.chunk_size

        def part(number: int) -> NDArray[np.intp]:
            return places[number * size : (number + 1) * size]

        def pieces() -> Iterator[Piece]:
            for number in range(-(-len(places) // size)):
                rows = positions[part(number)]
                fields = rows_of(plan.fields, rows)
                columns = {name: pa.array([item[name] for item in fields]) for name in fields[0]}
                yield Piece(number, rows, columns, items_key(space, fields))

        def take(number: int, table: pa.Table) -> None:
            scores.put(part(number), scores_of(table))

        work = self._work(plan, n_passes, self._scorer(plan).identity(n_passes))
        task = work.task
        template = (task.prompt, task.joint, task.chat, task.system, work.room)
        space = repr((work.space, work.tie_seed, *template))
        with ItemBar("query on ray", len(places), plan.verbose, plan.callbacks) as bar:
            self._through(plan, work, pieces(), take, bar)

    def embeddings(
        self, plan: QueryPlan, prompts: list[list[int]], rows: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Return the base model's mean hidden state of each prompt, [c, D]; `rows` name them."""
        size, space = plan.acquisition.chunk_size, self._scorer(plan).embedding_space
        found: dict[int, NDArray[np.float64]] = {}

        def take(number: int, table: pa.Table) -> None:
            found[number] = np.stack(table[EMBEDDING].to_numpy(zero_copy_only=False))

        pieces = (
            _of_prompts(number, rows[start : start + size], prompts[start : start + size], space)
            for number, start in enumerate(range(0, len(prompts), size))
        )
        work = replace(self._work(plan, 0, space), learner=None)
        with ItemBar("embedding on ray", len(prompts), plan.verbose, plan.callbacks) as bar:
            self._through(plan, work, pieces, take, bar)
        return np.concatenate([found[number] for number in sorted(found)])

    def _scorer(self, plan: QueryPlan) -> Scorer:
        """Return what names the workers' numbers: they may have GPUs that this process lacks."""
        if not self.settings.gpus or torch.cuda.is_available():
            return plan.scorer
        backbone = plan.scorer.backbone
        if not self._asked:
            there = numerics_there(self.settings, backbone.source, backbone.quantization)
            self._asked.append(there)
        return replace(plan.scorer, numerics=self._asked[0])

    def _work(self, plan: QueryPlan, n_passes: int, space: str) -> Work:
        scorer = plan.scorer
        return Work(
            source=scorer.backbone.source,
            quantization=scorer.backbone.quantization,
            learner=None,
            acquisition=scorer.acquisition,
            seed=scorer.seed,
            tree=scorer.tree,
            max_new_tokens=scorer.max_new_tokens,
            with_base=scorer.with_base,
            n_passes=n_passes,
            task=plan.encode.task,
            room=plan.encode.room,
            tie_seed=plan.seed,
            space=space,
            folder="",
            todo="",
        )

    def _through(
        self, plan: QueryPlan, work: Work, pieces: Iterable[Piece], take: Take, bar: ItemBar
    ) -> None:
        with self._folders() as (folder, todo):
            waiting: dict[str, _Waiting] = {}
            for piece in pieces:
                key, c = piece.key, len(piece.positions)
                kept = read_chunk(chunk_file(folder, work.space, key), key, c)
                if kept is not None:
                    take(piece.number, kept)
                    bar.finish(c)
                elif key in waiting:  # a chunk that says the same as another one
                    waiting[key].numbers.append(piece.number)
                else:
                    ends = int(piece.positions[0]), int(piece.positions[-1])
                    waiting[key] = _Waiting([piece.number], c, ends)
                    columns = {POSITION: piece.positions, **piece.columns}
                    write_chunk(todo / f"{key}.parquet", key, columns)
            if not waiting:
                return
            work = replace(work, folder=str(folder), todo=str(todo))
            if plan.trained and work.n_passes:
                work = replace(work, learner=str(self._saved(plan, todo)))
            for key in self._finished(work, waiting):
                table = read_chunk(chunk_file(folder, work.space, key), key, waiting[key].length)
                if table is None:
                    raise WorkerError(
                        f"{waiting[key]}: a worker says that it is scored, and its file is not in "
                        f"{folder}. Give a folder that all machines share: RayEngine(folder=...)."
                    )
                for number in waiting[key].numbers:
                    take(number, table)
                    bar.finish(table.num_rows)
            _prune(folder)

    def _finished(self, work: Work, waiting: "dict[str, _Waiting]") -> Iterator[str]:
        with running(self.settings) as ray:
            try:
                for result in finished(ray, self.settings, work, list(waiting)):
                    if result["numbers"]:
                        raise OutOfMemoryError(*result["numbers"])
                    if result["kind"]:
                        raise InputError(f"{result['error']} Finished chunks are kept.")
                    if result["error"]:
                        raise WorkerError(
                            f"{waiting[result['key']]} could not be scored: {result['error']}. "
                            "Finished chunks are kept; call again to go on."
                        )
                    (Path(work.todo) / f"{result['key']}.parquet").unlink(missing_ok=True)
                    yield result["key"]
            except ray.exceptions.RayError as error:
                begun = [p.stem for p in Path(work.todo).glob("*.begun")]
                at = "; ".join(str(waiting[key]) for key in begun if key in waiting)
                raise WorkerError(
                    f"Ray gave up: {' '.join(str(error).split())[:500]}. Workers were at: "
                    f"{at or 'nothing yet'}. Finished chunks are kept; call again to go on."
                ) from error

    def _saved(self, plan: QueryPlan, todo: Path) -> Path:
        folder = todo / "learner"
        # Workers need the adapter; labelled texts have no business on shared storage.
        content = replace(saving.content_of(self.learner), items=[], labels=[])
        saving.save(content, folder, plan.scorer.backbone)
        return folder

    @contextmanager
    def _folders(self) -> Iterator[tuple[Path, Path]]:
        """Give the folder of finished chunks, and one of this query for those that wait."""
        given = self.settings.folder or self.learner.cache_dir
        kept = None if given is None else Path(given).expanduser().absolute() / "chunks"
        with tempfile.TemporaryDirectory(prefix="starlearn-") as scratch:
            folder = Path(scratch) if kept is None else kept
            todo = folder / f"todo-{uuid4().hex}"
            try:
                yield folder, todo
            finally:
                shutil.rmtree(todo, ignore_errors=True)


@dataclass(frozen=True)
class _Waiting:
    numbers: list[int]
    length: int
    ends: tuple[int, int]

    def __str__(self) -> str:
        return f"The chunk of {self.length} items from row {self.ends[0]} to row {self.ends[1]}"


def _of_prompts(
    number: int, positions: NDArray[np.intp], prompts: list[list[int]], space: str
) -> Piece:
    columns = {PROMPT: pa.array(prompts, pa.list_(pa.int64()))}
    return Piece(number, positions, columns, chunk_key(space, prompts))


def _prune(folder: Path) -> None:
    """Remove the chunks of adapters that are long gone."""
    spaces = sorted(folder.glob("*-adapter"), key=lambda space: space.stat().st_mtime)
    old = time.time() - LEFT_BEHIND
    left = [todo for todo in folder.glob("todo-*") if todo.stat().st_mtime < old]
    for gone in [*spaces[:-SPACES], *left]:
        shutil.rmtree(gone, ignore_errors=True)
