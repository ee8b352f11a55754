"""From prompts and answers to token ids, and from token ids to length-bucketed batches."""

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.data.chat import escaped, in_chat
from starlearn.errors import InputError, listed
from starlearn.tasks import Fields, Task

GRAINS = 16
"""Padded lengths between two powers of two: at most one token in 16 is padding. An item's padded
length depends on the item alone, so its attention sums have the same length, and its scores the
same bits, in every batch."""

ANCHORS = ("a", "\n", ".", "1")
"""Characters to put before a text that does not stand at the beginning."""

_LOCK = threading.Lock()
"""Clones in threads share a tokenizer, and transformers sets it anew to the way of each call."""


def encode_prompts(
    tokenizer: Any,
    task: Task,
    fields: Sequence[Fields],
    *,
    context: int,
    room: int,
    rows: Sequence[int] | None = None,
) -> list[list[int]]:
    """Turn items into prompt tokens; special tokens come from the template alone.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    task : Task
    fields : sequence of dict, length m
        From :meth:`starlearn.tasks.Task.fill`.
    context : int
        Longest sequence in tokens that the model was made for.
    room : int
        Tokens to leave free for the answer.
    rows : sequence of int, optional
        What to call the items in complaints; by default 0 .. m - 1.

    Returns
    -------
    list of list of int, length m

    Raises
    ------
    InputError
        Naming the rows that have no token, or whose prompt and answer exceed the context: a
        model with rotary positions would give finite nonsense there, not an error.
    """
    rows = range(len(fields)) if rows is None else rows
    parts = _template_parts(tokenizer, task)
    start = bos_ids(tokenizer)
    if task.chat or parts[0] in start:
        start = []  # a chat template writes the beginning itself, and so may a prompt
    prompts: list[list[int]] = [list(start) for _ in fields]
    for place, part in enumerate(parts):
        if isinstance(part, int):
            for ids in prompts:
                ids.append(part)
            continue
        texts = [part.format(**filled) for filled in fields]
        if place == len(parts) - 1 and task.joint:
            texts = [text.rstrip(" ") for text in texts]
        tokenise = _tokenise if place == 0 else _tokenise_behind_special
        for ids, more in zip(prompts, tokenise(tokenizer, texts, rows), strict=True):
            ids.extend(more)
    empty = [f"row {row}" for row, ids in zip(rows, prompts, strict=True) if not ids]
    if empty:
        raise InputError(f"Prompts without a single token for this tokenizer: {listed(empty)}.")
    complaints = [
        f"row {row}: {len(ids)} tokens"
        for row, ids in zip(rows, prompts, strict=True)
        if len(ids) + room > context
    ]
    if complaints:
        raise InputError(
            f"{len(complaints)} of {len(prompts)} prompts do not fit the model's context of "
            f"{context} tokens, of which {room} are for the answer: {listed(complaints)}. "
            "Shorten or remove these items."
        )
    return prompts


@dataclass(frozen=True)
class Encoder:
    """What turns items of a pool into prompts that leave room for the answer."""

    tokenizer: Any
    task: Task
    context: int
    """Longest sequence in tokens that the model was made for."""
    room: int
    """Tokens of the answer."""

    def __call__(
        self, fields: Sequence[Fields], rows: NDArray[np.intp], room: int | None = None
    ) -> list[list[int]]:
        """Return the prompts of items; `rows` say what to call them, `room` is for another answer.

        Raises
        ------
        InputError
            As :func:`encode_prompts`.
        """
        return encode_prompts(
            self.tokenizer,
            self.task,
            fields,
            context=self.context,
            room=self.room if room is None else room,
            rows=rows.tolist(),
        )


def encode_answers(tokenizer: Any, task: Task, answers: Sequence[str]) -> list[list[int]]:
    """Turn answers into the tokens that follow the prompt, without the end of sequence.

    An answer is tokenised behind the last character of the template, and that character's
    tokens are taken off again, so that the joint looks as it does in running text whatever
    the tokenizer makes of leading spaces. (Not with ``separator=""`` behind a prompt that ends
    in a space: there the space is a token of its own. Both training and scoring see the same.)
    """
    last = _template_parts(tokenizer, task)[-1]
    literal = last.rsplit("}", 1)[-1] if isinstance(last, str) else ""
    anchors = (literal.rstrip(" ")[-1], *ANCHORS) if literal.strip() else ANCHORS
    encoded = _tokenise_behind(tokenizer, anchors, [task.joint + answer for answer in answers])
    empty = [repr(answer) for answer, ids in zip(answers, encoded, strict=True) if not ids]
    if empty:
        raise InputError(f"Answers without a single token for this tokenizer: {listed(empty)}.")
    return encoded


def bos_ids(tokenizer: Any) -> list[int]:
    """Return the special tokens that the tokenizer itself puts before a text."""
    plain = _ids(tokenizer, "a", add_special_tokens=False)
    full = _ids(tokenizer, "a", add_special_tokens=True)
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return list(full[:start])
    return []


def _ids(tokenizer: Any, texts: Any, **how: bool) -> Any:
    with _LOCK:
        return tokenizer(texts, **how).input_ids


def _tokenise(
    tokenizer: Any, texts: list[str], rows: Sequence[int] | None = None
) -> list[list[int]]:
    # split_special_tokens: "<|im_end|>" in a user's text is text, not the end of a turn.
    encoded = _ids(tokenizer, texts, add_special_tokens=False, split_special_tokens=True)
    # A vocabulary of whole words holds its special tokens as words, and cannot split them.
    unknown = tokenizer.unk_token_id
    special = set(tokenizer.all_special_ids) - {unknown}
    if unknown is None:
        rows = range(len(texts)) if rows is None else rows
        found = [
            f"row {row}"
            for row, ids in zip(rows, encoded, strict=True)
            if special.intersection(ids)
        ]
        if found:
            raise InputError(
                f"Texts hold a special token of the model, which this tokenizer cannot read as "
                f"text: {listed(found)}. Remove it from the text."
            )
    return [[unknown if token in special else token for token in ids] for ids in encoded]


def _tokenise_behind_special(
    tokenizer: Any, texts: list[str], rows: Sequence[int] | None = None
) -> list[list[int]]:
    """Tokenise texts as they stand behind a special token, not at the beginning.

    Tokenizers of the sentencepiece kind put a space before a text, some of them only where it
    begins.
    """
    special = tokenizer.all_special_tokens[0]
    behind = _ids(tokenizer, special + "a", add_special_tokens=False)
    if behind[1:] == _tokenise(tokenizer, ["a"])[0]:
        return _tokenise(tokenizer, texts, rows)
    return _tokenise_behind(tokenizer, ANCHORS, texts, rows)


def _tokenise_behind(
    tokenizer: Any, anchors: Sequence[str], texts: list[str], rows: Sequence[int] | None = None
) -> list[list[int]]:
    """Tokenise texts as they stand behind a character: put it there, and take its tokens off.

    Where these are the same as those of the character alone, no token spans the joint, and the rest
    is the text's own. Where they are not, as when "a" and "nd" become "and", the next character is
    tried, and in the end none.
    """
    found = _tokenise(tokenizer, texts, rows)
    left = list(range(len(texts)))
    for anchor in anchors:
        if not left:
            break
        before = _tokenise(tokenizer, [anchor])[0]
        joined = _tokenise(tokenizer, [anchor + texts[i] for i in left], left)
        apart = [ids[: len(before)] == before for ids in joined]
        for i, ids, is_apart in zip(left, joined, apart, strict=True):
            if is_apart:
                found[i] = ids[len(before) :]
        left = [i for i, is_apart in zip(left, apart, strict=True) if not is_apart]
    return found


def _template_parts(tokenizer: Any, task: Task) -> list[str | int]:
    """Cut the template at its special tokens: ids for these, template text between them."""
    template = in_chat(tokenizer, task.prompt, task.system) if task.chat else task.prompt
    named = tokenizer.all_special_tokens
    special: dict[str, int] = dict(zip(named, tokenizer.convert_tokens_to_ids(named), strict=True))
    for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        special[str(token)] = index
    if not special:
        return [template]
    pattern = "|".join(re.escape(escaped(text)) for text in sorted(special, key=len, reverse=True))
    by_escaped = {escaped(text): index for text, index in special.items()}
    pieces = re.split(f"({pattern})", template)
    return [by_escaped.get(piece, piece) for piece in pieces if piece]


@dataclass(frozen=True)
class Batch:
    """Items that are computed together: all have the same padded length."""

    indices: NDArray[np.intp]
    """Positions of the items, shape [B]."""
    parts: tuple[int, ...]
    """Padded length of each part of an item in tokens."""

    @property
    def length(self) -> int:
        """T, the padded length in tokens."""
        return sum(self.parts)

    def tokens(self, copies: int | tuple[int, ...] = 1) -> int:
        """Padded tokens of all items, each part counted as often as it runs."""
        return int(len(self.indices) * (np.asarray(self.parts) * np.asarray(copies)).sum())


def padded_lengths(lengths: Any, grains: int = GRAINS) -> NDArray[np.intp]:
    """Round lengths up to a grid that is as fine as the lengths are short.

    Parameters
    ----------
    lengths : array of int
    grains : int
        Points of the grid between two powers of two.

    Returns
    -------
    ndarray of the same shape

    Examples
    --------
    >>> padded_lengths([5, 21, 40, 300]).tolist()
    [5, 21, 40, 304]
    """
    exact = np.maximum(np.asarray(lengths, dtype=np.intp), 1)
    grain = np.maximum(2 ** np.floor(np.log2(exact)).astype(np.intp) // grains, 1)
    return np.asarray(-(-exact // grain) * grain)


def batches(lengths: Any, max_tokens: int, copies: int | tuple[int, ...] = 1) -> Iterator[Batch]:
    """Cut items into batches of equal padded length within a token budget, longest first.

    Parameters
    ----------
    lengths : array of int, shape (m,) or (m, parts)
        Tokens of each item; with several parts, each is padded by itself.
    max_tokens : int
        Upper bound of B * T, copies counted; an item that exceeds it alone is a batch of its own.
    copies : int or tuple of int, shape (parts,)
        How many times a pass runs each part.

    Yields
    ------
    Batch
        Longest first, so that a lack of memory shows at once.
    """
    if not len(lengths):
        return
    padded = padded_lengths(lengths).reshape(len(lengths), -1)  # [m, parts]
    kinds, kind = np.unique(padded, axis=0, return_inverse=True)
    costs = (kinds * np.asarray(copies)).sum(axis=1)
    for number in np.argsort(-costs, kind="stable"):
        members = np.flatnonzero(kind.ravel() == number)
        parts = tuple(int(part) for part in kinds[number])
        size = max(1, max_tokens // int(costs[number]))
        for start in range(0, len(members), size):
            yield Batch(members[start : start + size], parts)
