"""What tests of campaigns share: a learner on the tiny model, a pool, labels, and one round."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLOURS = ["red", "green", "blue"]
POOL = [
    f"{article} {size} {thing} {when} is"
    for article in ("the", "a")
    for size in ("big", "small")
    for thing in ("sky", "sea", "leaf", "rose")
    for when in ("day", "night")
]
CHUNK = 8


def make_learner(model: str, **changes: Any) -> Any:
    """Make the real learner on the tiny model, with two training steps."""
    from starlearn.learner.estimator import STARLearner
    from starlearn.settings import Acquisition, LoRA, Training
    from starlearn.tasks import ChoiceTask

    parameters: dict[str, Any] = {
        "task": ChoiceTask("{text} Answer :", choices=COLOURS),
        "adapter": LoRA(r=2, alpha=4, dropout=0.2, target_modules=["q_proj"]),
        "acquisition": Acquisition(n_passes=2, chunk_size=CHUNK),
        "training": Training(max_steps=2, batch_size=4, learning_rate=5e-3),
        "random_state": 7,
        "verbose": False,
    }
    return STARLearner(model, **{**parameters, **changes})


def answer_for(fields: dict[str, str]) -> str:
    """Return the correct answer."""
    return COLOURS[sum(map(ord, fields["text"])) % 3]


def label_all(campaign: Any, annotator: str = "ann") -> None:
    """Label every open item of the newest batch."""
    for item in campaign.open_items(annotator):
        campaign.label(item, answer_for(item.fields), annotator)


@contextmanager
def quick_folder() -> Iterator[Path]:
    """Make a temporary folder, in memory if possible, where a sync costs nothing."""
    parent = Path("/dev/shm")  # noqa: S108 - a new folder with a name of its own
    usable = parent.is_dir() and os.access(parent, os.W_OK)
    folder = Path(tempfile.mkdtemp(prefix="starlearn-test-", dir=parent if usable else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def store_with_batch(path: Path, items: int = 5, **how: Any) -> Any:
    """Make a label store in which a batch of items i0, i1, ... is issued."""
    from starlearn.campaign.store import Store

    store = Store.create(path, **how)
    fill(store, items)
    return store


def fill(store: Any, items: int) -> None:
    """Issue a batch of items i0, i1, ... in a new store."""
    from starlearn.campaign import rounds

    with store.transaction():
        store.set_meta(campaign="c0")
    rounds.begin(store, items, {})
    batch = [rounds.Issued(f"i{i}", '{"text":"t"}', i, 0.5, "why") for i in range(items)]
    rounds.issue(store, 1, batch, {})
