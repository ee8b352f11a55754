"""Simulated rounds: a learner buys labels from an oracle, and its accuracy is read each round."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from statistics import fmean
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from starlearn.data.containers import as_items
from starlearn.errors import InputError

Record = dict[str, Any]
OnEvent = Callable[[str, Record], object]

QUERY_FACTS = ("lambda", "mean_base", "mean_full", "mean_mixed")
"""What a learner records about a query in ``rounds_[-1]["query"]`` and a record repeats."""

LONGEST_CLASS_NAME = 80
"""Labels longer than this, or of several lines, are answers and not classes."""


class Learner(Protocol):
    """What a simulation needs of a learner; STARLearner has it, and modAL's ActiveLearner too."""

    def query(self, X_pool: Any, n_instances: int) -> tuple[Any, ...]:
        """Return the positions of the items to label, and what else comes with them."""

    def teach(self, X: Any, y: Any) -> Any:
        """Add labelled items and train."""

    def score(self, X: Any, y: Any) -> float:
        """Return the accuracy on a test set."""


def simulate(
    learner: Learner,
    X_pool: Any,
    y_pool: Any,
    X_test: Any,
    y_test: Any,
    *,
    n_initial: int,
    n_instances: int,
    n_rounds: int,
    random_state: int = 0,
    sub_pool: int | None = None,
    on_event: OnEvent | None = None,
) -> list[Record]:
    """Run rounds of query and teach, with labels that are revealed only when they are bought.

    Parameters
    ----------
    learner : object with query, teach and score
        Not yet fitted, so that it knows no label but those bought here.
    X_pool : collection of items, length m
        Without the initial set: that is drawn from it.
    y_pool : sequence of labels, length m
        Read only at the positions that are bought.
    X_test, y_test : collections of items and labels, length q
        The fixed test set.
    n_initial : int
        Labels drawn at random before the first query; learners that run with the same
        `random_state` get the same ones. 0 starts with a query, which a learner can answer
        only when it knows the possible answers.
    n_instances, n_rounds : int
        Labels bought in a round, and the number of rounds after the initial set.
    random_state : int
        Decides the initial set and the sub-pools, and nothing of the learner.
    sub_pool : int, optional
        Offer only so many random items of the pool in each round, to save time.
    on_event : callable, optional
        Called as ``on_event("step", {"round": 2, "step": "query"})`` before each of the steps
        query, teach and score, and as ``on_event("round", record)`` after each round.

    Returns
    -------
    list of dict
        One record a round, the initial set being round 0: round, n_labels, accuracy,
        seconds_query, seconds_teach, seconds_score, lambda, mean_base, mean_full, mean_mixed
        (None where nothing was scored), n_offered (items the query saw), chosen (content ids of
        the bought items), class_mix (label counts of the batch; empty for free-form answers)
        and mean_label_length (characters).

    Raises
    ------
    InputError
        When lengths or numbers do not fit together, before any model work, and when a query
        returns positions that cannot be bought.
    """
    items, test = as_items(X_pool, "X_pool"), as_items(X_test, "X_test")
    check_sizes(items, y_pool, test, y_test, n_initial, n_instances, n_rounds, sub_pool)
    tell = on_event or ignore
    rng = np.random.default_rng([random_state, 0])
    batch = [int(i) for i in rng.choice(len(items), n_initial, replace=False)]
    bought: list[int] = []
    records: list[Record] = []
    for number in range(0 if n_initial else 1, n_rounds + 1):
        facts: Record = {"seconds_query": 0.0, "n_offered": 0}
        if number > 0:
            tell("step", {"round": number, "step": "query"})
            offered = offer(len(items), bought, sub_pool, random_state, number)
            batch, facts = buy(learner, items, offered, n_instances)
        bought += batch
        labels = [label_at(y_pool, i) for i in batch]
        tell("step", {"round": number, "step": "teach"})
        _, seconds_teach = timed(learner.teach, [items[i] for i in batch], labels)
        tell("step", {"round": number, "step": "score"})
        accuracy, seconds_score = timed(learner.score, test, y_test)
        records.append(
            {
                "round": number,
                "n_labels": len(bought),
                "accuracy": float(accuracy),
                "seconds_teach": seconds_teach,
                "seconds_score": seconds_score,
                **dict.fromkeys(QUERY_FACTS),
                **facts,
                "chosen": [content_id(items[i]) for i in batch],
                **described(labels),
            }
        )
        tell("round", records[-1])
    return records


def check_sizes(
    items: Sequence[Any],
    y_pool: Any,
    test: Sequence[Any],
    y_test: Any,
    n_initial: int,
    n_instances: int,
    n_rounds: int,
    sub_pool: int | None,
) -> None:
    """Refuse numbers that do not fit together, with the numbers in the message."""
    for name, value, least in (
        ("n_initial", n_initial, 0),
        ("n_instances", n_instances, 1),
        ("n_rounds", n_rounds, 0 if n_initial else 1),
        ("sub_pool", n_instances if sub_pool is None else sub_pool, n_instances),
    ):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
    for name, X, y in (("pool", items, y_pool), ("test", test, y_test)):
        if len(X) != len(y):
            raise InputError(f"Found {len(X)} {name} items and {len(y)} labels; give one an item")
        if len(X) == 0:
            raise InputError(f"X_{name} is empty; give at least one item")
    wanted = n_initial + n_rounds * n_instances
    if wanted > len(items):
        raise InputError(
            f"{n_initial} initial labels and {n_rounds} rounds of {n_instances} are {wanted} "
            f"labels, the pool has {len(items)} items; ask for fewer"
        )


def offer(
    m: int, bought: Sequence[int], sub_pool: int | None, random_state: int, number: int
) -> NDArray[np.intp]:
    """Return the positions that this round's query may choose from, in pool order.

    The draw depends on the seed and the round alone, so that arms with the same seed see nearly
    the same sub-pool: they differ only by what each has bought already.
    """
    order = np.random.default_rng([random_state, 1, number]).permutation(m)
    left = order[~np.isin(order, np.asarray(bought, dtype=np.intp))]
    return np.sort(left[:sub_pool])


def buy(
    learner: Learner, items: Sequence[Any], offered: NDArray[np.intp], n_instances: int
) -> tuple[list[int], Record]:
    """Query, and return the pool positions of the batch with what the learner recorded.

    The learner never sees a label here.
    """
    shown = [items[i] for i in offered]
    answer, seconds = timed(learner.query, shown, n_instances=n_instances)
    chosen = np.asarray(answer[0]).ravel()
    if (
        len(chosen) != n_instances
        or len(np.unique(chosen)) != n_instances
        or not all(0 <= i < len(offered) for i in chosen)
    ):
        raise InputError(
            f"query was asked for {n_instances} distinct positions below {len(offered)} and "
            f"returned {chosen.tolist()!r:.200}; mend the learner's query"
        )
    history = getattr(learner, "rounds_", None) or [{}]
    seen = history[-1].get("query") or {}
    facts: Record = {name: seen.get(name) for name in QUERY_FACTS}
    facts |= {"seconds_query": seconds, "n_offered": len(offered)}
    return [int(i) for i in offered[chosen]], facts


def timed(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """Return what a call returns, and the seconds that it took."""
    started = perf_counter()
    result = call(*args, **kwargs)
    return result, round(perf_counter() - started, 3)


def label_at(y: Any, position: int) -> Any:
    """Reveal one label, by position."""
    return y.iloc[position] if hasattr(y, "iloc") else y[position]


def described(labels: Sequence[Any]) -> Record:
    """Describe a batch by its labels: how often each class, and how long the answers are."""
    texts = [str(label) for label in labels]
    are_classes = all(len(text) <= LONGEST_CLASS_NAME and "\n" not in text for text in texts)
    return {
        "class_mix": dict(Counter(texts).most_common()) if are_classes else {},
        "mean_label_length": round(fmean(map(len, texts)), 2),
    }


def content_id(item: str | Mapping[str, Any]) -> str:
    """Return a short id that depends on an item's content alone, not on its position.

    Examples
    --------
    >>> content_id({"a": "1", "b": "2"}) == content_id({"b": "2", "a": "1"})
    True
    """
    content = json.dumps(item, sort_keys=True, ensure_ascii=True, default=str)
    return sha256(content.encode()).hexdigest()[:16]


def ignore(kind: str, payload: Record) -> None:
    """Listen to an event and do nothing."""
