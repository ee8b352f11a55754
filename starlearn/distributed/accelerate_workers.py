"""A query's scoring by several processes of one program, as `accelerate launch` starts them."""

from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from starlearn.model.processes import ProcessGroup, processes
from starlearn.query.acquisition import QueryPlan, score_pool
from starlearn.query.score_store import row_keys
from starlearn.query.score_table import ScoreTable

REMEDY = (
    "Call fit or load in all of them with the same arguments; query the same pool in the same "
    "order (sorted(...), if it is from a set or a folder); give STARLearner(random_state=...)."
)


@dataclass(frozen=True)
class ProcessWorkers:
    """The processes of this program, each with a GPU of its own where there are several.

    All of them run the same lines. Each scores its share of the chunks, all exchange their
    numbers, and each goes on with the whole: every process has the batch of one process. Where one
    of them fails, all do.
    """

    processes: ProcessGroup

    @classmethod
    def here(cls) -> "ProcessWorkers":
        """Return the processes that this one was started with; one alone otherwise."""
        return cls(processes())

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
        ModelMismatchError
            When the processes would compute different numbers.
        WorkerError
            When another process has failed.
        """
        self.processes.agree(
            lambda: [
                plan.scorer.identity(n_passes),
                plan.seed,
                plan.weight,
                str(plan.acquisition.get_params()),
                digest(plan, positions[places]),
            ],
            REMEDY,
        )
        mine = self._share(places, plan.acquisition.chunk_size)

        def scored() -> tuple[NDArray[np.intp], ScoreTable]:
            if len(mine):
                score_pool(replace(plan, workers=None), positions, scores, n_passes, mine)
            return mine, scores.at(mine)

        for theirs, found in self.processes.together(scored):
            scores.put(theirs, found)

    def embeddings(
        self, plan: QueryPlan, prompts: list[list[int]], rows: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Return the base model's mean hidden state of each prompt, [c, D]; `rows` name them."""
        self.processes.agree(
            lambda: [plan.scorer.embedding_space, b"".join(row_keys(prompts))], REMEDY
        )
        mine = self._share(np.arange(len(prompts)), plan.acquisition.chunk_size)

        def embedded() -> list[NDArray[np.float64]]:
            own = [prompts[i] for i in mine]
            return [replace(plan, workers=None).embedded(own, rows[mine])] if own else []

        return np.concatenate(
            [part for parts in self.processes.together(embedded) for part in parts]
        )

    def _share(self, places: NDArray[np.intp], size: int) -> NDArray[np.intp]:
        """Return this process's share: whole chunks where there are enough of them."""
        if self.processes.count == 1:
            return places
        parts = max(-(-len(places) // size), min(self.processes.count, len(places)))
        pieces = np.array_split(places, parts)
        with self.processes.state.split_between_processes(pieces) as mine:
            return np.concatenate([places[:0], *mine])


def digest(plan: QueryPlan, rows: NDArray[np.intp]) -> str:
    """Return a hash of prompts in their order: processes exchange numbers by place."""
    found = blake2b(digest_size=16)
    size = plan.acquisition.chunk_size
    for start in range(0, len(rows), size):
        found.update(b"".join(row_keys(plan.prompts(rows[start : start + size]))))
    return found.hexdigest()
