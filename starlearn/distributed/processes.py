"""A query's scoring by several processes of one program, as `accelerate launch` starts them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from starlearn.errors import ModelMismatchError
from starlearn.query.acquisition import Plan, PoolScores, score_pool
from starlearn.query.scoring import Scores


@dataclass(frozen=True)
class ProcessWorkers:
    """The processes of this program, each with a GPU of its own where there are several.

    All of them run the same lines. Each scores its share of the chunks, all exchange their
    numbers, and each goes on with the whole: every process has the batch of one process.
    """

    state: Any
    """accelerate's PartialState: how many processes there are, and which one this is."""

    @classmethod
    def here(cls) -> "ProcessWorkers":
        """Return the processes that this one was started with; one alone otherwise."""
        from accelerate import PartialState

        return cls(PartialState(cpu=not torch.cuda.is_available()))

    def score(
        self, plan: Plan, scores: PoolScores, n_passes: int, places: NDArray[np.intp]
    ) -> None:
        """Fill in scores, bit for bit those of one process.

        Raises
        ------
        ModelMismatchError
            When the processes would compute different numbers.
        """
        self._agree([plan.scorer.identity(n_passes), plan.seed, plan.weight, len(places)])
        mine = self._share(places, plan.acquisition.chunk_size)
        if len(mine):
            score_pool(replace(plan, workers=None), scores, n_passes, mine)
        own = (mine, scores.keys[mine], taken(scores, mine))
        for theirs, keys, found in self._exchanged([own]):
            scores.keys[theirs] = keys
            scores.put(theirs, found)

    def embeddings(
        self, plan: Plan, prompts: list[list[int]], rows: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Return the base model's mean hidden state of each prompt, [c, D]; `rows` name them."""
        self._agree([plan.scorer.embedding_space, len(prompts)])
        size = plan.acquisition.chunk_size
        mine = self._share(np.arange(len(prompts)), size)
        own = [prompts[i] for i in mine]
        found = [replace(plan, workers=None).embedded(own, rows[mine])] if own else []
        return np.concatenate(self._exchanged(found))

    def _share(self, places: NDArray[np.intp], size: int) -> NDArray[np.intp]:
        """Return this process's share: whole chunks where there are enough of them."""
        parts = max(-(-len(places) // size), min(self.state.num_processes, len(places)))
        with self.state.split_between_processes(np.array_split(places, parts)) as mine:
            return np.concatenate([places[:0], *mine])

    def _exchanged(self, own: list[Any]) -> list[Any]:
        """Return what all processes bring, in their order."""
        from accelerate.utils import gather_object

        return list(gather_object(own)) if self.state.num_processes > 1 else own

    def _agree(self, facts: list[Any]) -> None:
        given = self._exchanged([facts])
        if any(other != given[0] for other in given):
            raise ModelMismatchError(
                f"The {self.state.num_processes} processes would compute different numbers: they "
                "differ in adapter, seed, pool or versions. Train in one process, save, and load "
                "in all of them; give STARLearner(random_state=...)."
            )


def taken(scores: PoolScores, places: NDArray[np.intp]) -> Scores:
    """Return the scores at some places: what `PoolScores.put` fills in."""
    return Scores(
        base=np.stack([scores.base_entropy[places], scores.base_log[places]], axis=1),
        full=np.stack(
            [scores.entropy[places], scores.log[places], scores.information[places]], axis=1
        ),
        n_tokens=np.asarray(scores.lengths[places]),
        answers=[] if scores.answers is None else [scores.answers[i] for i in places],
    )
