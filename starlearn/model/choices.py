"""Closed choices: exact log-probabilities of all choices in one pass after a shared prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from starlearn.data.tokens import Batch
from starlearn.errors import InputError
from starlearn.model.forward import Sequences, Workload, row_hidden
from starlearn.model.head import Head
from starlearn.model.memory import renumbered
from starlearn.model.structure import attention_window, causal_model


@dataclass(frozen=True)
class ChoiceTree:
    """Tokens of the C choices as a tree, in which common prefixes are computed once.

    The root is the last token of the prompt. A node is a proper prefix of some choice; its last
    token is an input of the model. An edge is a token whose probability is read at its parent.
    """

    tokens: NDArray[np.int64]
    """Token of each node but the root, shape [J]."""
    depths: NDArray[np.int64]
    """Distance of each node but the root from the root, shape [J]."""
    sees: NDArray[np.bool_]
    """Which node attends to which: to itself and its ancestors, shape [J, J]."""
    edge_nodes: NDArray[np.int64]
    """Parent of each edge, 0 for the root and j + 1 for node j, shape [E]."""
    edge_tokens: NDArray[np.int64]
    """Token of each edge, shape [E]."""
    paths: NDArray[np.int64]
    """Edges from the root to each choice's end, shape [C, L]; shorter choices are padded with E."""
    n_tokens: NDArray[np.int64]
    """Scored tokens of each choice, shape [C]."""

    @property
    def identity(self) -> str:
        """Text that differs for other choices and for another order of the same choices."""
        return repr([self.tokens_of(row).tolist() for row in range(len(self.paths))])

    def tokens_of(self, row: int) -> NDArray[np.int64]:
        """Return the scored tokens of one choice."""
        return self.edge_tokens[self.paths[row, : self.n_tokens[row]]]


def build_tree(choices: Sequence[Sequence[int]], eos_id: int) -> ChoiceTree:
    """Arrange the tokens of the C choices in a tree.

    `eos_id` is appended to every choice when one choice is a prefix of another, because the
    probability of "1" must not contain that of "14".
    """
    sequences = [tuple(ids) for ids in choices]
    for index, ids in enumerate(sequences):
        if ids in sequences[:index]:
            raise InputError(
                f"Choices {sequences.index(ids)} and {index} have the same tokens {list(ids)} "
                "in this tokenizer. Rename one of them."
            )
    prefixes = {ids[:end] for ids in sequences for end in range(1, len(ids))}
    if any(ids in prefixes for ids in sequences):
        sequences = [(*ids, eos_id) for ids in sequences]
    nodes: dict[tuple[int, ...], int] = {(): 0}
    edges: dict[tuple[int, ...], int] = {}
    for ids in sequences:
        for end in range(1, len(ids) + 1):
            edges.setdefault(ids[:end], len(edges))
            if end < len(ids):
                nodes.setdefault(ids[:end], len(nodes))
    fed = list(nodes)[1:]
    paths = np.full((len(sequences), max(map(len, sequences))), len(edges))
    for row, ids in enumerate(sequences):
        paths[row, : len(ids)] = [edges[ids[:end]] for end in range(1, len(ids) + 1)]
    return ChoiceTree(
        tokens=np.array([ids[-1] for ids in fed], dtype=np.int64),
        depths=np.array([len(ids) for ids in fed], dtype=np.int64),
        sees=np.array(
            [[ids[: len(other)] == other for other in fed] for ids in fed], dtype=bool
        ).reshape(len(fed), len(fed)),
        edge_nodes=np.array([nodes[ids[:-1]] for ids in edges], dtype=np.int64),
        edge_tokens=np.array([ids[-1] for ids in edges], dtype=np.int64),
        paths=paths,
        n_tokens=np.array([len(ids) for ids in sequences], dtype=np.int64),
    )


def chains(tree: ChoiceTree) -> list[ChoiceTree]:
    """Return one tree per choice; such a tree is plain text after the prompt."""
    parts = []
    for row in range(len(tree.paths)):
        tokens = tree.tokens_of(row)
        n_nodes = len(tokens) - 1
        parts.append(
            ChoiceTree(
                tokens=tokens[:-1],
                depths=np.arange(1, n_nodes + 1),
                sees=np.tri(n_nodes, dtype=bool),
                edge_nodes=np.arange(n_nodes + 1),
                edge_tokens=tokens,
                paths=np.arange(n_nodes + 1)[None],
                n_tokens=np.array([n_nodes + 1]),
            )
        )
    return parts


def tree_input(
    prompts: Sequence[Sequence[int]],
    tree: ChoiceTree,
    batch: Batch,
    pad_id: int,
    keys: NDArray[np.int64],
    device: torch.device,
) -> Sequences:
    """Arrange prompts and tree nodes in rows of T tokens; 1 + J hidden states per row are used.

    A row is prompt, nodes, padding. A node attends to the prompt and to its ancestors only, and
    its position is that of its depth. The model therefore computes each node as if the other
    branches were not in the row, and one pass scores all C choices.
    """
    n_nodes, length = len(tree.tokens), batch.length
    is_chain = bool((tree.sees == np.tri(n_nodes, dtype=bool)).all())
    ids = np.full((len(prompts), length), pad_id, dtype=np.int64)  # [B, T]
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : len(prompt) + n_nodes] = tree.tokens
    starts = np.array([len(prompt) for prompt in prompts])  # [B]
    rows = starts[:, None] - 1 + np.arange(1 + n_nodes)  # [B, 1 + J]
    plain = Sequences(
        _tensor(ids, device), _tensor(rows, device), _tensor(keys, device), batch.parts[0]
    )
    if is_chain:
        return plain
    # Padding takes a position no larger than the deepest node's, which is within the context.
    ends = starts[:, None] - 1 + tree.depths.max()
    positions = np.minimum(np.arange(length), ends)  # [B, T]
    np.put_along_axis(positions, rows[:, 1:], starts[:, None] - 1 + tree.depths, axis=1)
    sees = np.tile(np.tri(length, dtype=bool), (len(prompts), 1, 1))  # [B, T, T]
    for row, start in enumerate(starts):
        sees[row, start : start + n_nodes, start : start + n_nodes] = tree.sees
    return replace(plain, position_ids=_tensor(positions, device), attention=_tensor(sees, device))


def path_scores(hidden: Tensor, head: Head, tree: ChoiceTree) -> NDArray[np.float64]:
    """Return the log-probability of each choice [K, B, C], up to a constant per item.

    `hidden` [K, B * (1 + J), D] are the states at the root and the nodes, item by item.
    """
    n_passes, _, width = hidden.shape
    n_nodes = 1 + len(tree.tokens)
    device = hidden.device
    used, column = np.unique(tree.edge_tokens, return_inverse=True)
    nodes, columns = _tensor(tree.edge_nodes, device), _tensor(column, device)
    logits = head.logits(hidden.reshape(-1, width), _tensor(used, device))
    logits = logits.reshape(n_passes, -1, n_nodes, len(used))  # [K, B, 1 + J, U]
    scores = logits[:, :, nodes, columns]  # [K, B, E]
    # At the root alone the normaliser is the same for all choices, and cancels.
    if n_nodes > 1 or len(tree.paths) == 1:
        # Plain rows instead of passes: the mutual information of passes costs a second product.
        stats = head.statistics(hidden.reshape(-1, width))
        normaliser = stats.logsumexp.reshape(n_passes, -1, n_nodes)  # [K, B, 1 + J]
        scores = scores - normaliser[:, :, nodes]
    # Edges are added in a fixed order; a matrix product would round differently per batch size.
    values = scores.double().cpu().numpy()
    values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)  # [K, B, E + 1]
    return np.asarray(values[..., tree.paths].sum(axis=-1))


@torch.no_grad()
def choice_distribution(
    work: Workload,
    tree: ChoiceTree,
    prompts: Sequence[Sequence[int]],
    keys: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the log-probability of every choice for every item in each of the K passes, [K, m, C].

    `keys` [m] is the number of each item, from which masks per token are drawn.
    """
    head, device = work.head, work.head.device
    scores = np.zeros((work.n_passes, len(prompts), len(tree.paths)))
    for members, part, columns in _plan(work, tree, prompts):
        n_nodes, last = len(part.tokens), columns.stop == len(tree.paths)

        def compute(
            batch: Batch,
            members: NDArray[np.intp] = members,
            part: ChoiceTree = part,
            columns: slice = columns,
            last: bool = last,
        ) -> None:
            indices = members[batch.indices]
            chosen = [prompts[i] for i in indices]
            sequences = tree_input(chosen, part, batch, work.pad_id, keys[indices], device)
            hidden = row_hidden(work.model, sequences, work.dropout)  # [K, B * (1 + J), D]
            scores[:, indices, columns] = path_scores(hidden, head, part)
            work.progress(len(chosen) * last, batch.tokens(work.copies))

        lengths = np.array([(len(prompts[i]), n_nodes) for i in members], dtype=np.intp)
        lengths = lengths.reshape(-1, 2)
        with renumbered(members):
            # Where the prompt runs separately, its last token runs again with the nodes.
            work.run(lengths + np.array([0, 1]) if work.split else lengths.sum(axis=1), compute)
    return np.asarray(scores - logsumexp(scores, axis=-1, keepdims=True))


def _plan(
    work: Workload, tree: ChoiceTree, prompts: Sequence[Sequence[int]]
) -> Iterator[tuple[NDArray[np.intp], ChoiceTree, slice]]:
    """Return item numbers, the tree that scores them, and the columns of choices that it fills.

    A tree comes with an explicit mask, which layers with a sliding window would use in place of
    their own. Items longer than the window are therefore scored choice by choice. So are all items
    where the model counts positions in the row. This depends on the item alone, not on its batch.
    """
    window = attention_window(causal_model(work.model).config) if work.by_positions else 0
    long = np.array([len(p) + len(tree.tokens) for p in prompts]) > window
    long &= len(tree.tokens) > 0
    yield np.flatnonzero(~long), tree, slice(0, len(tree.paths))
    if long.any():
        for row, chain in enumerate(chains(tree)):
            yield np.flatnonzero(long), chain, slice(row, row + 1)


def _tensor(values: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)
