"""Base models in memory, shared by a learner and its clones."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any
from weakref import WeakSet

from starlearn.model.backbone import Backbone, quantization_to_json
from starlearn.query.score_store import ScoreStore

LOADED = ("_base", "_shared_bases")
"""Attributes of a learner that hold the base model. They stay when a call fails."""


Key = tuple[str | None, str, Any]
"""Model, quantisation and cache_dir of a learner."""


@dataclass(eq=False)
class Base:
    """A base model and its stored scores."""

    key: Key
    backbone: Backbone
    store: ScoreStore


class SharedBases:
    """Base models that several learners use, so that one copy in memory serves all of them.

    A learner shares it with its clones. The base used last stays in memory while one of them
    exists, so that a search over parameters loads the base model once.
    """

    def __init__(self) -> None:
        self._bases: WeakSet[Base] = WeakSet()
        self._latest: Base | None = None
        self._lock = RLock()  # two threads must not load the same base model

    def __reduce__(self) -> Any:
        return SharedBases, ()  # a pickle holds no base model

    def get(self, learner: Any) -> Base:
        """Return a learner's base; a new one uses a model in memory, if it can."""
        with self._lock:
            key = _key_of(learner)
            for base in self._bases:
                if base.key == key:
                    self._latest = base
                    return base
            backbone = self._backbone(key)
            if backbone is None:
                backbone = Backbone(learner.model, learner.quantization, learner.verbose)
            self._latest = Base(key, backbone, ScoreStore(learner.cache_dir))
            self._bases.add(self._latest)
            return self._latest

    def adopted(self, base: Base) -> Base:
        """Add the base of another learner, or return the equal one that is here already."""
        with self._lock:
            for known in self._bases:
                if known.key == base.key:
                    return known
            base.backbone = self._backbone(base.key) or base.backbone
            self._bases.add(base)
            return base

    def _backbone(self, key: Key) -> Backbone | None:
        """Return the backbone of the same model and quantisation, if it is in memory."""
        return next((known.backbone for known in self._bases if known.key[:2] == key[:2]), None)


def base_of(learner: Any) -> Base:
    """Return a learner's base model, found or made on first use; loads no weights."""
    base: Base | None = getattr(learner, "_base", None)
    if base is None or base.key != _key_of(learner):
        base = learner._base = shared_bases(learner).get(learner)
    return base


def share_bases(learners: Sequence[Any]) -> None:
    """Make learners of the same base model and quantisation use one copy of it in memory."""
    if not learners:
        return
    shared = shared_bases(learners[0])
    for learner in learners:
        learner._shared_bases = shared
        base = getattr(learner, "_base", None)
        if base is not None:
            learner._base = shared.adopted(base)


def shared_bases(learner: Any) -> SharedBases:
    """Return the base models that a learner shares with its clones."""
    if not hasattr(learner, "_shared_bases"):
        learner._shared_bases = SharedBases()
    shared: SharedBases = learner._shared_bases
    return shared


def _key_of(learner: Any) -> Key:
    # As text: two BitsAndBytesConfigs are equal in Python, whatever they hold.
    form = json.dumps(quantization_to_json(learner.quantization), default=str, sort_keys=True)
    return None if learner.model is None else str(learner.model), form, learner.cache_dir
