"""Near-duplicates are asked only once: by normalised text, and by cosine of hidden states."""

import unicodedata
from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

from starlearn.data.containers import as_count
from starlearn.errors import InputError
from starlearn.query.embeddings import checked_embeddings

SENTENCE_MARKS = ".,;:?。、؟،؛।॥"  # the full-width ones are these after NFKC
QUOTES = ("\u2018\u2019\u201a\u201b", "\u201c\u201d\u201e\u201f\u00ab\u00bb")
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
TYPEWRITER = str.maketrans(
    dict.fromkeys(QUOTES[0], "'") | dict.fromkeys(QUOTES[1], '"') | dict.fromkeys(DASHES, "-")
)
BLOCK = 256  # rows of a ranking that are compared with the labelled items at a time


def normalised_text(text: str) -> str:
    """Return a text without what does not change a question.

    Texts count as the same when they are equal after

    1. invisible format characters taken out (zero-width spaces, soft hyphens, byte order marks);
    2. Unicode's compatibility form NFKC: one way to write each character, whatever keyboard,
       font or PDF it came through. Superscripts and vulgar fractions are kept apart first,
       because NFKC alone makes "5²" the number 52 and "3½" 31⁄2;
    3. case folding, the Unicode way ("Straße" is "STRASSE");
    4. typographic quotation marks and dashes made those of a typewriter;
    5. runs of white space, line breaks among them, made one space, none at the ends;
    6. sentence marks at the end taken off (. , ; : ? and those of other scripts), the opening ¿,
       and quotation marks around the whole; unless nothing would be left.

    Marks that may carry meaning stay: "-5" is not "5", "50 %" not "50", "5!" not "5", "[0, 1)" not
    "0, 1", and everything inside the text. A pair that this misses is asked twice; a pair that it
    takes for one wrongly would lose a question, so it is on the careful side.

    Parameters
    ----------
    text : str

    Returns
    -------
    str

    Examples
    --------
    >>> normalised_text("  “Who has  more COINS?” ")
    'who has more coins'
    >>> normalised_text("5²") == normalised_text("52")
    False
    """
    # Before folding: what stood between two characters may have kept them from joining.
    text = "".join(_apart(c) for c in text if unicodedata.category(c) != "Cf")
    # Taken apart first, as the Unicode Standard's caseless matching wants it (D145, D146): a
    # composed letter with a further mark would be folded in another form.
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", text).casefold())
    return _bare(" ".join(text.translate(TYPEWRITER).split()))


def _bare(text: str) -> str:
    """Take sentence marks and quotation marks off the ends, as long as there are any."""
    inner = text.rstrip(SENTENCE_MARKS + " ").lstrip("¿ ")
    for mark in "'\"":
        if len(inner) > 1 and inner[0] == inner[-1] == mark and mark not in inner[1:-1]:
            inner = inner[1:-1].strip()
    if not inner or inner == text:
        return text
    return _bare(inner)


def _apart(character: str) -> str:
    """Keep a superscript or fraction apart from the digit before it."""
    kind = unicodedata.decomposition(character).partition(" ")[0]
    return {"<super>": "^", "<fraction>": " "}.get(kind, "") + character


def text_digest(*texts: str) -> bytes:
    """Return 128 bits that are equal for texts that are equal once normalised.

    Parameters
    ----------
    *texts : str
        An item's text, or its fields one by one in a fixed order.
    """
    digest = blake2b(digest_size=16)
    for text in map(normalised_text, texts):
        # Lone surrogates, as a careless reader of JSON leaves them, have no UTF-8.
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(encoded)}:".encode() + encoded)
    return digest.digest()


def first_distinct(
    order: Sequence[int] | NDArray[np.intp],
    digests: Sequence[bytes],
    n: int,
    *,
    embeddings: Any = None,
    threshold: float | None = None,
    labelled: Collection[bytes] = (),
    labelled_embeddings: Any = None,
) -> tuple[NDArray[np.intp], int]:
    """Take the best n items of a ranking, passing over near-duplicates of better ones.

    Parameters
    ----------
    order : sequence of int, length r
        Distinct positions, best first.
    digests : sequence of length m
        Of each item, by :func:`text_digest`.
    n : int
        From 1 to r.
    embeddings : array-like of shape (m, D), optional
        Base hidden states; needs `threshold`.
    threshold : float, optional
        Above 0, up to 1. An item whose cosine to a better chosen one is at least this (less
        1e-9, for rounding) is a near-duplicate. An embedding of zeros is like nothing.
    labelled : collection of digests
        Of the labelled items.
    labelled_embeddings : array-like of shape (a, D), optional
        Of the labelled items; needs `embeddings`.

    Returns
    -------
    positions : ndarray of shape (n,)
        Best first. When fewer than n are distinct, the best of those passed over fill up at the
        end.
    n_repeated : int
        How many those are, 0 where all are distinct.

    Raises
    ------
    InputError
        When n, the threshold or a shape cannot be used, or a position comes twice.
    NotFiniteError
        When an embedding is NaN or infinite.

    Notes
    -----
    It walks only as far as it must. Memory for embeddings: n x D of the chosen and a x D of the
    labelled items in double precision, and 256 x (n + a) cosines at a time; time grows with r x n
    products of D numbers.
    """
    order = np.asarray(order, dtype=np.intp)
    n = as_count(n, "n", len(order))
    if len(np.unique(order)) != len(order):
        raise InputError("The ranking holds a position twice. Give each position once.")
    near = _NearDuplicates(n, len(digests), embeddings, threshold, labelled_embeddings)
    seen = set(labelled)
    chosen: list[int] = []
    passed_over: list[int] = []
    for position, unit, known in near.walk(order):
        if known or digests[position] in seen or near.to_chosen(unit):
            passed_over.append(position)
            continue
        chosen.append(position)
        seen.add(digests[position])
        near.choose(unit)
        if len(chosen) == n:
            break
    n_repeated = n - len(chosen)
    return np.array(chosen + passed_over[:n_repeated], dtype=np.intp), n_repeated


Unit = NDArray[np.float64] | None


class _NearDuplicates:
    """Cosines to the chosen and the labelled items; without embeddings nothing is near."""

    def __init__(
        self, n: int, n_items: int, embeddings: Any, threshold: float | None, labelled: Any
    ) -> None:
        if (embeddings is None) != (threshold is None):
            raise InputError("Near-duplicates by cosine need both `embeddings` and `threshold`.")
        if labelled is not None and embeddings is None:
            raise InputError("`labelled_embeddings` need `embeddings` to be compared with.")
        if threshold is not None and not 0 < threshold <= 1:
            raise InputError(f"`threshold` must be above 0 and at most 1, got {threshold!r}.")
        self.level = 0.0 if threshold is None else threshold - 1e-9
        self.embeddings: NDArray[Any] | None = None
        self.labelled: Unit = None
        self.chosen = np.empty((0, 0))
        self.n_before = self.n_chosen = 0
        if embeddings is None:
            return
        self.embeddings = checked_embeddings(embeddings, n_items)
        self.chosen = np.empty((n, self.embeddings.shape[1]))
        if labelled is not None and len(labelled):
            labelled = checked_embeddings(labelled, len(labelled), "labelled_embeddings")
            if labelled.shape[1] != self.embeddings.shape[1]:
                raise InputError(
                    f"`labelled_embeddings` are {labelled.shape[1]} wide, `embeddings` "
                    f"{self.embeddings.shape[1]}. Take both from the same model."
                )
            self.labelled = normalize(labelled.astype(np.float64))

    def walk(self, order: NDArray[np.intp]) -> Iterator[tuple[int, Unit, bool]]:
        """Give each position with its unit vector, and whether it is near a labelled item or one
        that was chosen before its block."""
        for start in range(0, len(order), BLOCK):
            block = order[start : start + BLOCK]
            if self.embeddings is None:
                yield from ((int(position), None, False) for position in block)
                continue
            units = normalize(self.embeddings[block].astype(np.float64))
            known = np.zeros(len(block), dtype=bool)
            # Against all that are known so far in one product; in the block, one by one.
            self.n_before = self.n_chosen
            for others in (self.labelled, self.chosen[: self.n_before]):
                if others is not None and len(others):
                    known |= (units @ others.T).max(axis=1) >= self.level
            for position, unit, is_known in zip(block, units, known, strict=True):
                yield int(position), unit, bool(is_known)

    def to_chosen(self, unit: Unit) -> bool:
        if unit is None or self.n_chosen == self.n_before:
            return False
        return bool((self.chosen[self.n_before : self.n_chosen] @ unit).max() >= self.level)

    def choose(self, unit: Unit) -> None:
        if unit is not None:
            self.chosen[self.n_chosen] = unit
            self.n_chosen += 1
