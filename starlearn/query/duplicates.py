"""Near-duplicates: found by normalised text and by the cosine of hidden states."""

import unicodedata
from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

from starlearn.query.diversity import checked_embeddings

SENTENCE_MARKS = ".,;:?。、؟،؛।॥"  # the full-width ones are these after NFKC
QUOTES = ("\u2018\u2019\u201a\u201b", "\u201c\u201d\u201e\u201f\u00ab\u00bb")
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
TYPEWRITER = str.maketrans(
    dict.fromkeys(QUOTES[0], "'") | dict.fromkeys(QUOTES[1], '"') | dict.fromkeys(DASHES, "-")
)
BLOCK = 256  # items of a ranking that are compared with the known ones in one product


def normalised_text(text: str) -> str:
    """Return a text without differences that do not change its meaning.

    Two texts are duplicates if they are equal after these steps:

    1. Invisible format characters are removed (zero-width spaces, soft hyphens, byte order marks).
    2. Characters get Unicode's compatibility form NFKC, which is the same for all keyboards, fonts
       and PDF files. Superscripts and fractions are separated first, because NFKC alone changes
       "5²" to 52 and "3½" to 31⁄2.
    3. Case is folded as in Unicode ("Straße" is "STRASSE").
    4. Typographic quotation marks and dashes become those of ASCII.
    5. White space, with line breaks, becomes one space, and none at the ends.
    6. Sentence marks at the end (. , ; : ? and those of other scripts), an opening ¿, and quotation
       marks around the whole text are removed, unless nothing would be left.

    Marks that may carry meaning remain: "-5" is not "5", "50 %" not "50", "5!" not "5", and "[0,
    1)" not "0, 1". A duplicate that is missed is labelled twice. Two questions taken for one would
    lose a question, so these steps are cautious.

    Examples
    --------
    >>> normalised_text("  “Who has  more COINS?” ")
    'who has more coins'
    >>> normalised_text("5²") == normalised_text("52")
    False
    """
    # Before folding, because a removed character may have separated two others.
    text = "".join(_apart(c) for c in text if unicodedata.category(c) != "Cf")
    # Decomposed first, as the Unicode Standard's caseless matching requires (D145, D146): a
    # composed letter with a further mark would be folded to another form.
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", text).casefold())
    return _bare(" ".join(text.translate(TYPEWRITER).split()))


def _bare(text: str) -> str:
    """Remove sentence marks and quotation marks from the ends, repeatedly."""
    inner = text.rstrip(SENTENCE_MARKS + " ").lstrip("¿ ")
    for mark in "'\"":
        if len(inner) > 1 and inner[0] == inner[-1] == mark and mark not in inner[1:-1]:
            inner = inner[1:-1].strip()
    if not inner or inner == text:
        return text
    return _bare(inner)


def _apart(character: str) -> str:
    """Separate a superscript or fraction from the digit before it."""
    kind = unicodedata.decomposition(character).partition(" ")[0]
    return {"<super>": "^", "<fraction>": " "}.get(kind, "") + character


def text_digest(*texts: str) -> bytes:
    """Return 128 bits that are equal for texts, or fields in order, with equal normalised forms."""
    digest = blake2b(digest_size=16)
    for text in map(normalised_text, texts):
        # Lone surrogates, which some JSON readers produce, have no UTF-8 form.
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(encoded)}:".encode() + encoded)
    return digest.digest()


def split_duplicates(
    order: Sequence[int] | NDArray[np.intp],
    digests: Sequence[bytes],
    *,
    embeddings: Any = None,
    threshold: float | None = None,
    labelled: Collection[bytes] = (),
    labelled_embeddings: Any = None,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split a ranking into distinct items and near-duplicates of better or labelled ones.

    An item is a near-duplicate if it has the digest of such an item, or if the cosine similarity of
    their base hidden states is at least the threshold (less 1e-9, for rounding). Embeddings are
    [m, D], those of the labelled items [a, D]. An embedding of zeros has no duplicate.

    Memory for r positions: r x D numbers of distinct and a x D of labelled items in double
    precision, and 256 x (r + a) cosines at a time. Time: r x (r + a) products of D numbers.
    """
    order = np.asarray(order, dtype=np.intp)
    near = _NearDuplicates(len(order), len(digests), embeddings, threshold, labelled_embeddings)
    seen = set(labelled)
    distinct: list[int] = []
    repeated: list[int] = []
    for position, unit, is_near in near.walk(order):
        if is_near or digests[position] in seen or near.to_distinct(unit):
            repeated.append(position)
            continue
        distinct.append(position)
        seen.add(digests[position])
        near.add(unit)
    return np.array(distinct, dtype=np.intp), np.array(repeated, dtype=np.intp)


Unit = NDArray[np.float64] | None


class _NearDuplicates:
    """Cosine similarities to distinct and labelled items; without embeddings nothing is near."""

    def __init__(
        self, n: int, n_items: int, embeddings: Any, threshold: float | None, labelled: Any
    ) -> None:
        self.level = 0.0 if threshold is None else threshold - 1e-9
        self.embeddings: NDArray[Any] | None = None
        self.labelled: Unit = None
        self.distinct = np.empty((0, 0))
        self.n_before = self.n_distinct = 0
        if embeddings is None:
            return
        self.embeddings = checked_embeddings(embeddings, n_items)
        self.distinct = np.empty((n, self.embeddings.shape[1]))
        if labelled is not None and len(labelled):
            labelled = checked_embeddings(labelled, len(labelled), "labelled_embeddings")
            self.labelled = normalize(labelled.astype(np.float64))

    def walk(self, order: NDArray[np.intp]) -> Iterator[tuple[int, Unit, bool]]:
        """Yield each position, its unit vector, and whether it is near an item known so far."""
        for start in range(0, len(order), BLOCK):
            block = order[start : start + BLOCK]
            if self.embeddings is None:
                yield from ((int(position), None, False) for position in block)
                continue
            units = normalize(self.embeddings[block].astype(np.float64))
            known = np.zeros(len(block), dtype=bool)
            # One product with all items of earlier blocks. Within the block: one by one.
            self.n_before = self.n_distinct
            for others in (self.labelled, self.distinct[: self.n_before]):
                if others is not None and len(others):
                    known |= (units @ others.T).max(axis=1) >= self.level
            for position, unit, is_known in zip(block, units, known, strict=True):
                yield int(position), unit, bool(is_known)

    def to_distinct(self, unit: Unit) -> bool:
        if unit is None or self.n_distinct == self.n_before:
            return False
        return bool((self.distinct[self.n_before : self.n_distinct] @ unit).max() >= self.level)

    def add(self, unit: Unit) -> None:
        if unit is not None:
            self.distinct[self.n_distinct] = unit
            self.n_distinct += 1
