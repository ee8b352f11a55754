"""Scoring in the processes of one program, as `accelerate launch` starts them."""

from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from starlearn.model.processes import ProcessGroup
from starlearn.query.acquisition import QueryPlan, score_pool
from starlearn.query.score_store import row_keys
from starlearn.query.score_table import ScoreTable

REMEDY = (
    "Call fit or load in all of them with the same arguments. Query the same pool in the same "
    "order: sort it if it comes from a set or a folder. Set STARLearner(random_state=...)."
)


@dataclass(frozen=True)
class ProcessWorkers:
    """The processes of this program, each with its own GPU where there are several.

    All processes run the same code. Each scores its share of the chunks and sends its numbers to
    the others, so every process returns the batch that one process alone would. When one of them
    fails, all fail.
    """

    processes: ProcessGroup

    def score(
        self,
        plan: QueryPlan,
        positions: NDArray[np.intp],
        scores: ScoreTable,
        n_passes: int,
        places: NDArray[np.intp],
    ) -> None:
        """Fill in scores, bit for bit those of one process."""
        self.processes.agree(
            lambda: [
                plan.scorer.identity(n_passes),
                plan.seed,
                plan.weight,
                str(plan.acquisition.get_params()),
                pool_digest(plan, positions[places]),
            ],
            REMEDY,
        )
        own = self._share(places, plan.acquisition.chunk_size)

        def scored() -> tuple[NDArray[np.intp], ScoreTable]:
            if len(own):
                score_pool(replace(plan, workers=None), positions, scores, n_passes, own)
            return own, scores.at(own)

        for share, found in self.processes.together(scored):
            scores.put(share, found)

    def embeddings(
        self, plan: QueryPlan, prompts: list[list[int]], rows: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Return the base model's mean hidden state of each prompt, [c, D]; `rows` name them."""
        self.processes.agree(
            lambda: [plan.scorer.embedding_space, b"".join(row_keys(prompts))], REMEDY
        )
        own = self._share(np.arange(len(prompts)), plan.acquisition.chunk_size)

        def embedded() -> list[NDArray[np.float64]]:
            if not len(own):
                return []
            return [replace(plan, workers=None).embedded([prompts[i] for i in own], rows[own])]

        return np.concatenate(list(chain.from_iterable(self.processes.together(embedded))))

    def _share(self, places: NDArray[np.intp], size: int) -> NDArray[np.intp]:
        """Return this process's share: whole chunks, if there is at least one per process."""
        if self.processes.count == 1:
            return places
        parts = max(-(-len(places) // size), min(self.processes.count, len(places)))
        chunks = np.array_split(places, parts)
        with self.processes.state.split_between_processes(chunks) as own:
            return np.concatenate([places[:0], *own])


def pool_digest(plan: QueryPlan, rows: NDArray[np.intp]) -> str:
    """Return a hash of prompts in their order, by which processes exchange their numbers."""
    found = blake2b(digest_size=16)
    size = plan.acquisition.chunk_size
    for start in range(0, len(rows), size):
        found.update(b"".join(row_keys(plan.prompts(rows[start : start + size]))))
    return found.hexdigest()
