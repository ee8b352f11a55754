"""Base models in memory, shared by a learner and its clones."""

import json
import os
from collections.abc import Sequence
from threading import RLock
from typing import Any
from weakref import WeakSet

from starlearn.model.backbone import Backbone, quantization_to_json
from starlearn.query.score_store import ScoreStore

LOADED = ("_base", "_shared_bases")
"""Attributes of a learner that hold the base model. They stay when a call fails."""


class Base:
    """A base model, loaded already or from its source, and its stored scores."""

    def __init__(
        self,
        source: str | os.PathLike[str] | None,
        quantization: Any,
        cache_dir: str | os.PathLike[str] | None,
        verbose: int = True,
        backbone: Backbone | None = None,
    ) -> None:
        self.backbone = backbone or Backbone(source, quantization, verbose)
        self.store = ScoreStore(cache_dir)
        self.model = _model_name(source, quantization)
        self.cache_dir = cache_dir

    def serves(
        self,
        source: str | os.PathLike[str] | None,
        quantization: Any,
        cache_dir: str | os.PathLike[str] | None,
    ) -> bool:
        """Whether this is the base of a learner with these parameters."""
        return self.model == _model_name(source, quantization) and self.cache_dir == cache_dir


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

    def get(
        self,
        source: str | os.PathLike[str] | None,
        quantization: Any,
        cache_dir: str | os.PathLike[str] | None,
        *,
        verbose: int,
    ) -> Base:
        """Return the base for these parameters; a new one uses a model in memory, if it can."""
        with self._lock:
            for base in self._bases:
                if base.serves(source, quantization, cache_dir):
                    self._latest = base
                    return base
            backbone = self._backbone(_model_name(source, quantization))
            self._latest = Base(source, quantization, cache_dir, verbose, backbone)
            self._bases.add(self._latest)
            return self._latest

    def adopted(self, base: Base) -> Base:
        """Add the base of another learner, or return the equal one that is here already."""
        with self._lock:
            for known in self._bases:
                if known is base or (known.model, known.cache_dir) == (base.model, base.cache_dir):
                    return known
            base.backbone = self._backbone(base.model) or base.backbone
            self._bases.add(base)
            return base

    def _backbone(self, model: tuple[str | None, str]) -> Backbone | None:
        return next((known.backbone for known in self._bases if known.model == model), None)


def base_of(learner: Any) -> Base:
    """Return a learner's base model, found or made on first use; loads no weights."""
    wanted = (learner.model, learner.quantization, learner.cache_dir)
    base: Base | None = getattr(learner, "_base", None)
    if base is None or not base.serves(*wanted):
        base = learner._base = shared_bases(learner).get(*wanted, verbose=learner.verbose)
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


def _model_name(source: Any, quantization: Any) -> tuple[str | None, str]:
    # As text: two BitsAndBytesConfigs are equal in Python, whatever they hold.
    form = json.dumps(quantization_to_json(quantization), default=str, sort_keys=True)
    return None if source is None else str(source), form
