"""Scoring on Ray: reads the chunks that are finished, and gives the others to workers."""

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
from starlearn.distributed.cluster import RayEngine, engine_of, finished, running, worker_numerics
from starlearn.distributed.worker import EMBEDDING, POSITION, PROMPT, ScoringJob, scores_of
from starlearn.errors import InputError, OutOfMemoryError, WorkerError
from starlearn.export import saving
from starlearn.model.processes import processes
from starlearn.progress import ItemBar
from starlearn.query.acquisition import QueryPlan, Workers
from starlearn.query.score_table import ScoreTable
from starlearn.query.scoring import Scorer

KEPT_ADAPTERS = 8
"""Number of adapters whose chunks are kept. Those of the base model are never removed."""
ABANDONED = 7 * 24 * 3600
"""Seconds after which the waiting chunks of a killed query are removed."""


def workers_of(engine: Any, learner: Any) -> Workers | None:
    """Return the workers of an `engine` argument; None means this process alone."""
    if engine is None:
        return None
    if engine == "accelerate":
        return ProcessWorkers(processes())
    return RayWorkers(engine_of(engine), learner)


@dataclass(frozen=True)
class Chunk:
    """A chunk to score: c rows of a pool."""

    number: int
    """Its index among the chunks of this query."""
    positions: NDArray[np.intp]
    """Rows of the pool, [c]."""
    columns: dict[str, Any]
    """Fields of the items, or their prompts."""
    key: str
    """The chunk's identity, see `chunk_key` and `items_key`."""


@dataclass(frozen=True)
class RayWorkers:
    """Workers of a learner's query; see :class:`starlearn.query.acquisition.Workers`."""

    settings: RayEngine
    learner: Any = field(repr=False)
    _numerics: list[str] = field(default_factory=list, repr=False)
    """The workers' hardware and versions, after the first request."""

    def score(
        self,
        plan: QueryPlan,
        positions: NDArray[np.intp],
        scores: ScoreTable,
        n_passes: int,
        places: NDArray[np.intp],
    ) -> None:
        """Fill in scores, bit for bit those of one process. Finished chunks survive an error."""
        size = plan.acquisition.chunk_size

        def places_of(number: int) -> NDArray[np.intp]:
            return places[number * size : (number + 1) * size]

        def chunks() -> Iterator[Chunk]:
            for number in range(-(-len(places) // size)):
                rows = positions[places_of(number)]
                fields = rows_of(plan.fields, rows)
                columns = {name: pa.array([item[name] for item in fields]) for name in fields[0]}
                yield Chunk(number, rows, columns, items_key(space, fields))

        def receive(number: int, table: pa.Table) -> None:
            scores.put(places_of(number), scores_of(table))

        job = self._job(plan, n_passes, self._scorer(plan).identity(n_passes))
        task = job.task
        template = (task.prompt, task.joint, task.chat, task.system, job.room)
        space = repr((job.space, job.tie_seed, *template))
        with ItemBar("query on ray", len(places), plan.verbose, plan.callbacks) as bar:
            self._score(plan, job, chunks(), receive, bar)

    def embeddings(
        self, plan: QueryPlan, prompts: list[list[int]], rows: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Return the base model's mean hidden state of each prompt, [c, D]; `rows` name them."""
        size, space = plan.acquisition.chunk_size, self._scorer(plan).embedding_space
        found: dict[int, NDArray[np.float64]] = {}

        def receive(number: int, table: pa.Table) -> None:
            found[number] = np.stack(table[EMBEDDING].to_numpy(zero_copy_only=False))

        def chunks() -> Iterator[Chunk]:
            for number, start in enumerate(range(0, len(prompts), size)):
                own = prompts[start : start + size]
                columns = {PROMPT: pa.array(own, pa.list_(pa.int64()))}
                yield Chunk(number, rows[start : start + size], columns, chunk_key(space, own))

        with ItemBar("embedding on ray", len(prompts), plan.verbose, plan.callbacks) as bar:
            self._score(plan, self._job(plan, 0, space), chunks(), receive, bar)
        return np.concatenate([found[number] for number in sorted(found)])

    def _scorer(self, plan: QueryPlan) -> Scorer:
        """Return a scorer with the workers' numerics: they may have GPUs, unlike this process."""
        if not self.settings.gpus or torch.cuda.is_available():
            return plan.scorer
        backbone = plan.scorer.backbone
        if not self._numerics:
            source, quantization = backbone.source, backbone.quantization
            self._numerics.append(worker_numerics(self.settings, source, quantization))
        return replace(plan.scorer, numerics=self._numerics[0])

    def _job(self, plan: QueryPlan, n_passes: int, space: str) -> ScoringJob:
        scorer = plan.scorer
        return ScoringJob(
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

    def _score(
        self,
        plan: QueryPlan,
        job: ScoringJob,
        chunks: Iterable[Chunk],
        receive: Callable[[int, pa.Table], None],
        bar: ItemBar,
    ) -> None:
        """Pass the table of every chunk to `receive`, with the chunk's number."""
        with self._folders() as (folder, todo):
            waiting: dict[str, _Waiting] = {}
            for chunk in chunks:
                key, c = chunk.key, len(chunk.positions)
                kept = read_chunk(chunk_file(folder, job.space, key), key, c)
                if kept is not None:
                    receive(chunk.number, kept)
                    bar.finish(c)
                elif key in waiting:  # the same items as another chunk
                    waiting[key].numbers.append(chunk.number)
                else:
                    ends = int(chunk.positions[0]), int(chunk.positions[-1])
                    waiting[key] = _Waiting([chunk.number], c, ends)
                    columns = {POSITION: chunk.positions, **chunk.columns}
                    write_chunk(todo / f"{key}.parquet", key, columns)
            if not waiting:
                return
            job = replace(job, folder=str(folder), todo=str(todo))
            if plan.trained and job.n_passes:
                # Workers need the adapter only: no labelled text is written to shared storage.
                content = saving.content_of(self.learner)
                parameters = {**content.parameters, "acquisition": plan.acquisition}
                content = replace(content, parameters=parameters, items=[], labels=[])
                saving.save(content, todo / "learner", plan.scorer.backbone)
                job = replace(job, learner=str(todo / "learner"))
            for key in self._finished(job, waiting):
                table = read_chunk(chunk_file(folder, job.space, key), key, waiting[key].length)
                if table is None:
                    raise WorkerError(
                        f"{waiting[key]} was scored by a worker, and its file is not in {folder}. "
                        "Give a folder that all machines share: RayEngine(folder=...)."
                    )
                for number in waiting[key].numbers:
                    receive(number, table)
                    bar.finish(table.num_rows)
            _prune(folder)

    def _finished(self, job: ScoringJob, waiting: "dict[str, _Waiting]") -> Iterator[str]:
        with running(self.settings) as ray:
            try:
                for result in finished(ray, self.settings, job, list(waiting)):
                    if result["numbers"]:
                        raise OutOfMemoryError(*result["numbers"])
                    if result["kind"]:
                        raise InputError(f"{result['error']} Finished chunks are kept.")
                    if result["error"]:
                        raise WorkerError(
                            f"{waiting[result['key']]} could not be scored: {result['error']}. "
                            "Finished chunks are kept; call again to resume."
                        )
                    (Path(job.todo) / f"{result['key']}.parquet").unlink(missing_ok=True)
                    yield result["key"]
            except ray.exceptions.RayError as error:
                begun = [p.stem for p in Path(job.todo).glob("*.begun")]
                at = "; ".join(str(waiting[key]) for key in begun if key in waiting)
                raise WorkerError(
                    f"Ray stopped: {' '.join(str(error).split())[:500]}. Workers were scoring: "
                    f"{at or 'nothing yet'}. Finished chunks are kept; call again to resume."
                ) from error

    @contextmanager
    def _folders(self) -> Iterator[tuple[Path, Path]]:
        """Give the folder of finished chunks, and this query's folder of waiting chunks."""
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
    """A chunk that waits for a worker, with the numbers of all chunks that have its key."""

    numbers: list[int]
    length: int
    ends: tuple[int, int]

    def __str__(self) -> str:
        return f"The chunk of {self.length} items from row {self.ends[0]} to row {self.ends[1]}"


def _prune(folder: Path) -> None:
    """Remove the chunks of old adapters, and those that killed queries have left."""
    adapters = sorted(folder.glob("*-adapter"), key=lambda space: space.stat().st_mtime)
    old = time.time() - ABANDONED
    abandoned = [todo for todo in folder.glob("todo-*") if todo.stat().st_mtime < old]
    for path in [*adapters[:-KEPT_ADAPTERS], *abandoned]:
        shutil.rmtree(path, ignore_errors=True)
