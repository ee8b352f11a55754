"""Near-duplicates are asked once: what counts as one, and how a ranking is walked."""

import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from starlearn.errors import NotFiniteError
from starlearn.query.duplicates import normalised_text, split_duplicates, text_digest

SAME = [
    ("Who has more coins?", "who has  more\ncoins"),
    ("\ufeffWho has more coins ?", "Who has more co\u00adins?"),  # byte order mark, soft hyphen
    ("“Who has more coins?”", "'Who has more coins'"),
    ("Don\u2019t go.", "don't go"),
    ("fine", "ﬁne"),  # a ligature
    ("Straße", "STRASSE"),
    ("caf\u00e9", "cafe\u0301"),
    ("\uff12\uff0b\uff13\uff1d\uff1f", "2+3=?"),  # full width
    ("¿Qué hora es?", "qué hora es"),
    ("pages 3\u20135", "pages 3-5"),
    ("Wer?  ", "wer:"),
    ("\u0391\u03a3", "\u03b1\u03c2"),  # final sigma
]
DIFFERENT = [
    ("5²", "52"),  # what NFKC alone makes of it
    ("3½ cups", "31\u20442 cups"),
    ("-5", "5"),
    (".5", "5"),
    ("50 %", "50"),
    ("5!", "5"),
    ("5'", "5"),
    ("C#", "C"),
    ("[0, 1)", "0, 1"),
    ("1,000", "1000"),
    ("2 3", "23"),
    ("'a' or 'b'", "a' or 'b"),
    ("?", "."),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_counts_as_the_same_question(one: str, other: str) -> None:
    assert normalised_text(one) == normalised_text(other)
    assert text_digest(one) == text_digest(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_does_not(one: str, other: str) -> None:
    assert normalised_text(one) != normalised_text(other)
    assert text_digest(one) != text_digest(other)


marks = st.text(alphabet=" .,;:?'\"“”\u2018\u2019¿²½ﬁßİ\u0345\u0301\u200baB5", max_size=12)


@settings(deadline=None)
@example("\u0345\u200b\u0300")  # two marks that join once nothing stands between them
@given(st.text() | marks)
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalised_text(text)
    assert normalised_text(once) == once


@settings(deadline=None)
@example("\u1ffc\u0308")  # composed letters are folded otherwise than those taken apart
@example("\u0345\u0300")  # folded as it stands, the second mark would move to another letter
@given(st.text() | marks)
def test_case_form_and_white_space_do_not_matter(text: str) -> None:
    once = normalised_text(text)
    assert normalised_text(f" \n{text}\t") == once
    decomposed = unicodedata.normalize("NFD", text)
    assert normalised_text(decomposed) == once
    # Unicode's order (definition D145), which an invisible character between marks would disturb.
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    assert normalised_text(unicodedata.normalize("NFD", visible).casefold()) == once


def test_digests_tell_fields_apart() -> None:
    digests = {
        text_digest("ab"),
        text_digest("a", "b"),
        text_digest("b", "a"),
        text_digest("ab", ""),
        text_digest("", "ab"),
    }
    assert len(digests) == 5
    assert {len(d) for d in digests} == {16}
    assert text_digest("Is it?", "YES") == text_digest("is it", "yes")
    text_digest("\ud800")  # a lone surrogate, as from broken JSON


def naive(
    order: list[int],
    digests: list[bytes],
    embeddings: np.ndarray,
    threshold: float,
    labelled: set[bytes],
    labelled_embeddings: np.ndarray,
) -> tuple[list[int], list[int]]:
    """The same rule without blocks and products."""

    def near(x: np.ndarray, y: np.ndarray) -> bool:
        size = np.linalg.norm(x) * np.linalg.norm(y)
        return bool(size > 0 and x @ y / size >= threshold - 1e-9)

    distinct: list[int] = []
    for i in order:
        if (
            digests[i] not in labelled
            and all(digests[i] != digests[j] for j in distinct)
            and not any(near(embeddings[i], embeddings[j]) for j in distinct)
            and not any(near(embeddings[i], row) for row in labelled_embeddings)
        ):
            distinct.append(i)
    return distinct, [i for i in order if i not in distinct]


def split(*args: Any, **options: Any) -> tuple[list[int], list[int]]:
    distinct, repeated = split_duplicates(*args, **options)
    return distinct.tolist(), repeated.tolist()


@settings(deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(-2, 2)] * 2, st.integers(0, 8)), min_size=1, max_size=12),
    st.lists(st.tuples(*[st.integers(-2, 2)] * 2), max_size=2),
    st.sets(st.integers(0, 8), max_size=2),
    st.sampled_from([0.5, 0.9, 1.0]),
    st.data(),
)
def test_the_split_follows_the_rule_for_each_pair(
    items: list[tuple[int, int, int]],
    labelled_rows: list[tuple[int, int]],
    labelled_texts: set[int],
    threshold: float,
    data: st.DataObject,
) -> None:
    embeddings = np.array([item[:2] for item in items], dtype=float)
    digests = [text_digest(str(item[2])) for item in items]
    labelled = {text_digest(str(text)) for text in labelled_texts}
    rows = np.array(labelled_rows, dtype=float).reshape(-1, 2)
    order = data.draw(st.permutations(range(len(items))))
    order = order[: data.draw(st.integers(1, len(items)))]
    found = split(
        order,
        digests,
        embeddings=embeddings,
        threshold=threshold,
        labelled=labelled,
        labelled_embeddings=rows,
    )
    assert found == naive(order, digests, embeddings, threshold, labelled, rows)
    nothing_near = np.zeros((len(items), 2))
    by_text = split(order, digests, labelled=labelled)
    assert by_text == naive(order, digests, nothing_near, threshold, labelled, rows)


def test_the_best_of_several_copies_is_kept() -> None:
    digests = [text_digest(text) for text in ("a", "B", "b", "A?", "c")]
    assert split([3, 2, 1, 0, 4], digests) == ([3, 2, 4], [1, 0])
    assert split([3, 2, 4], digests, labelled=[text_digest("a")]) == ([2, 4], [3])


def test_a_copy_has_cosine_one_in_any_precision() -> None:
    rng = np.random.default_rng(0)
    for dtype in (np.float16, np.float32, np.float64):
        rows = rng.normal(size=(200, 33)).astype(dtype)
        embeddings = np.concatenate([rows, rows])
        digests = [bytes([i % 256, i // 256]) for i in range(400)]
        _, repeated = split(np.arange(400), digests, embeddings=embeddings, threshold=1.0)
        assert len(repeated) == 200


def test_a_ranking_longer_than_a_block_is_split_to_its_end() -> None:
    embeddings = np.ones((700, 2))
    embeddings[650] = [1, -1]
    digests = [i.to_bytes(2, "big") for i in range(700)]
    near = {"embeddings": embeddings, "threshold": 0.9}
    assert split(np.arange(700), digests, **near)[0] == [0, 650]
    assert split(np.arange(700), digests, **near, labelled_embeddings=embeddings[:1])[0] == [650]


def test_what_cannot_be_used_is_said() -> None:
    digests, points = [b"a", b"b"], np.eye(2)
    with pytest.raises(NotFiniteError, match=r"labelled_embeddings .* row 0"):
        split_duplicates(
            [0, 1],
            digests,
            embeddings=points,
            threshold=0.9,
            labelled_embeddings=np.full((1, 2), np.inf),
        )
