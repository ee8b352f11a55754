"""Token ids of prompts and answers, and batches of sequences of equal padded length."""

import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.data.chat import escaped, in_chat
from starlearn.embedded.location import built_in_hint
from starlearn.errors import InputError, listed
from starlearn.tasks import Fields, Task

GRAINS = 16
"""Padded lengths between two powers of two, so that at most one token in 16 is padding. An item's
padded length depends on the item alone, so that its scores have the same bits in every batch."""

ANCHORS = ("a", "\n", ".", "1")
"""Characters to put before a text that does not start a sequence."""

MOST_UNKNOWN = 0.1
"""Largest usual share of unknown tokens; above it the model hardly reads the texts."""

_LOCK = threading.Lock()
"""Clones in threads share a tokenizer, and every call changes its padding and truncation."""


def encode_prompts(
    tokenizer: Any,
    task: Task,
    fields: Sequence[Fields],
    *,
    context: int,
    room: int,
    rows: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the prompt tokens of m items. Special tokens come from the template only.

    `fields` are those of :meth:`starlearn.tasks.Task.fill`. `context` is the longest sequence in
    tokens that the model was made for, of which `room` are left free for the answer. A longer
    prompt is an error: a model with rotary positions raises none there, and its scores have no
    meaning. `rows` are the numbers of the items in error messages, by default 0 .. m - 1.
    """
    rows = range(len(fields)) if rows is None else rows
    parts = _template_parts(tokenizer, task)
    start = bos_ids(tokenizer)
    if task.chat or parts[0] in start:
        start = []  # a chat template starts with these tokens itself, and so may a prompt
    prompts: list[list[int]] = [list(start) for _ in fields]
    for place, part in enumerate(parts):
        if isinstance(part, int):
            for ids in prompts:
                ids.append(part)
            continue
        texts = [part.format(**filled) for filled in fields]
        if place == len(parts) - 1 and task.joint:
            texts = [text.rstrip(" ") for text in texts]
        tokenise = _tokenise if place == 0 else _tokenise_after_special
        for ids, more in zip(prompts, tokenise(tokenizer, texts, rows), strict=True):
            ids.extend(more)
    empty = [f"row {row}" for row, ids in zip(rows, prompts, strict=True) if not ids]
    if empty:
        raise InputError(f"The tokenizer makes no token of these prompts: {listed(empty)}.")
    too_long = [
        f"row {row}: {len(ids)} tokens"
        for row, ids in zip(rows, prompts, strict=True)
        if len(ids) + room > context
    ]
    if too_long:
        raise InputError(
            f"{len(too_long)} of {len(prompts)} prompts do not fit the model's context of "
            f"{context} tokens, of which {room} are for the answer: {listed(too_long)}. "
            "Shorten or remove these items."
        )
    return prompts


@dataclass(frozen=True)
class Encoder:
    """Converter from items of a pool to prompts that leave room for the answer."""

    tokenizer: Any
    task: Task
    context: int
    """Longest sequence in tokens that the model was made for."""
    room: int
    """Tokens of the answer."""

    def __call__(
        self, fields: Sequence[Fields], rows: NDArray[np.intp], room: int | None = None
    ) -> list[list[int]]:
        """Return the prompts of the items at `rows`; `room` replaces that of the task."""
        return encode_prompts(
            self.tokenizer,
            self.task,
            fields,
            context=self.context,
            room=self.room if room is None else room,
            rows=rows.tolist(),
        )


def unknown_tokens(tokenizer: Any, prompts: Sequence[Sequence[int]]) -> NDArray[np.intp]:
    """Return the number of unknown tokens in prompts, and of all their tokens, shape [2]."""
    unknown = tokenizer.unk_token_id
    # Byte-level tokenizers know every text, and some name another token as the unknown one.
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return np.zeros(2, np.intp)
    return np.array([sum(ids.count(unknown) for ids in prompts), sum(map(len, prompts))])


def warn_of_unknown_tokens(tokenizer: Any, counts: NDArray[np.intp]) -> None:
    """Warn when more than a tenth of the tokens are unknown; `counts` is of `unknown_tokens`."""
    unknown, total = counts.tolist()
    if unknown <= MOST_UNKNOWN * total:
        return
    hint = built_in_hint(tokenizer.name_or_path) or "Use a model for this language or script."
    warnings.warn(
        f"{unknown / total:.0%} of the tokens of the texts are unknown to the model's tokenizer, "
        f"so the model cannot tell these texts apart by them. {hint}",
        UserWarning,
        stacklevel=5,
    )


def encode_answers(tokenizer: Any, task: Task, answers: Sequence[str]) -> list[list[int]]:
    """Return the tokens of answers after the prompt, without the end of sequence.

    An answer is tokenised after the last character of the template, and this character's tokens
    are removed, so that a space between them becomes the same tokens as in running text. A
    prompt that ends in a space with ``separator=""`` keeps the space as a token of its own, in
    training and in scoring.
    """
    last = _template_parts(tokenizer, task)[-1]
    literal = last.rsplit("}", 1)[-1] if isinstance(last, str) else ""
    anchors = (literal.rstrip(" ")[-1], *ANCHORS) if literal.strip() else ANCHORS
    encoded = _tokenise_after(tokenizer, anchors, [task.joint + answer for answer in answers])
    empty = [repr(answer) for answer, ids in zip(answers, encoded, strict=True) if not ids]
    if empty:
        raise InputError(f"The tokenizer makes no token of these answers: {listed(empty)}.")
    return encoded


def bos_ids(tokenizer: Any) -> list[int]:
    """Return the special tokens that the tokenizer puts before a text."""
    plain = _ids(tokenizer, "a", add_special_tokens=False)
    full = _ids(tokenizer, "a", add_special_tokens=True)
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return list(full[:start])
    return []


def _ids(tokenizer: Any, texts: Any, **options: bool) -> Any:
    with _LOCK:
        return tokenizer(texts, **options).input_ids


def _tokenise(
    tokenizer: Any, texts: list[str], rows: Sequence[int] | None = None
) -> list[list[int]]:
    # split_special_tokens: "<|im_end|>" in a user's text is text, not the end of a turn.
    encoded = _ids(tokenizer, texts, add_special_tokens=False, split_special_tokens=True)
    # A tokenizer of whole words cannot split its special tokens: they become unknown tokens.
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
                "Texts contain a special token of the model, and this tokenizer cannot read it as "
                f"text: {listed(found)}. Remove it from the texts."
            )
    return [[unknown if token in special else token for token in ids] for ids in encoded]


def _tokenise_after_special(
    tokenizer: Any, texts: list[str], rows: Sequence[int] | None = None
) -> list[list[int]]:
    """Return the tokens of texts after a special token.

    SentencePiece tokenizers put a space before a text, some of them only at its start.
    """
    special = tokenizer.all_special_tokens[0]
    after = _ids(tokenizer, special + "a", add_special_tokens=False)
    if after[1:] == _tokenise(tokenizer, ["a"])[0]:
        return _tokenise(tokenizer, texts, rows)
    return _tokenise_after(tokenizer, ANCHORS, texts, rows)


def _tokenise_after(
    tokenizer: Any, anchors: Sequence[str], texts: list[str], rows: Sequence[int] | None = None
) -> list[list[int]]:
    """Return the tokens of texts after a character (anchor), without the character's own tokens.

    When the sequence starts with the anchor's tokens, no token spans both, and the rest belongs to
    the text. Otherwise, as when "a" and "nd" become "and", the next anchor is tried, and finally
    none.
    """
    found = _tokenise(tokenizer, texts, rows)
    left = list(range(len(texts)))
    for anchor in anchors:
        if not left:
            break
        before = _tokenise(tokenizer, [anchor])[0]
        joined = _tokenise(tokenizer, [anchor + texts[i] for i in left], left)
        spanned = []
        for i, ids in zip(left, joined, strict=True):
            if ids[: len(before)] == before:
                found[i] = ids[len(before) :]
            else:
                spanned.append(i)
        left = spanned
    return found


def _template_parts(tokenizer: Any, task: Task) -> list[str | int]:
    """Split the template at its special tokens, which become ids; the rest stays text."""
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
    """Items of the same padded length that are computed together."""

    indices: NDArray[np.intp]
    """Positions of the items, shape [B]."""
    parts: tuple[int, ...]
    """Padded length of each part of an item, in tokens."""

    @property
    def length(self) -> int:
        """T, the padded length in tokens."""
        return sum(self.parts)

    def tokens(self, copies: int | tuple[int, ...] = 1) -> int:
        """Return the padded tokens of all items; `copies` is the number of runs per part."""
        return int(len(self.indices) * (np.asarray(self.parts) * np.asarray(copies)).sum())


def padded_lengths(lengths: Any, grains: int = GRAINS) -> NDArray[np.intp]:
    """Round lengths up to a grid with `grains` points between two powers of two.

    Examples
    --------
    >>> padded_lengths([5, 21, 40, 300]).tolist()
    [5, 21, 40, 304]
    """
    exact = np.maximum(np.asarray(lengths, dtype=np.intp), 1)
    grain = np.maximum(2 ** np.floor(np.log2(exact)).astype(np.intp) // grains, 1)
    return np.asarray(-(-exact // grain) * grain)


def batches(lengths: Any, max_tokens: int, copies: int | tuple[int, ...] = 1) -> Iterator[Batch]:
    """Split m items into batches of equal padded length, B * T <= max_tokens with copies.

    `lengths`, [m] or [m, parts], are the tokens of each item; several parts are padded one by one.
    `copies` is the number of times that a pass runs each part. A longer item is a batch of its own.
    The longest batch is first, so that a lack of memory shows at once.
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
