"""What scikit-learn asks of an estimator besides fit and predict: tags, clones, pickles."""

from typing import Any, Self

from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)

from starlearn.learner.inputs import has_choices
from starlearn.learner.session import Bases, Engine
from starlearn.tasks import DEFAULTS

LOADED = ("_loaded_engine", "_shared_bases")
"""Where a learner keeps the base model: no failure need load it again."""


class EstimatorProtocol(
    ClassNamePrefixFeaturesOutMixin, ClassifierMixin, TransformerMixin, BaseEstimator
):
    """Base of STARLearner: a classifier of texts that also turns them into points.

    Clones share the base model in memory with the learner that they were made of, as do members
    of a committee (:func:`share_bases`). Only their adapters are their own.
    """

    model: Any
    task: Any
    quantization: Any
    random_state: Any
    cache_dir: Any
    verbose: int

    def set_params(self, **params: Any) -> Self:
        """Set parameters, those of a part too, as in ``set_params(adapter__r=8)``."""
        for name in {key.partition("__")[0] for key in params if "__" in key}:
            if name in DEFAULTS and params.get(name, getattr(self, name)) is None:
                params[name] = DEFAULTS[name][0]()
        super().set_params(**params)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.non_deterministic = self.random_state is None
        tags.transformer_tags.preserves_dtype = []
        if not has_choices(self):
            tags.estimator_type = None
            tags.classifier_tags = None
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "adapter_")

    def __sklearn_clone__(self) -> Self:
        copy: Self = super().__sklearn_clone__()
        copy._shared_bases = self._bases()
        return copy

    def __getstate__(self) -> dict[str, Any]:
        # The base model is loaded anew where the pickle is opened; the adapter goes along.
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_loaded_engine", None)
        state.pop("_trackers", None)
        return state

    @property
    def _n_features_out(self) -> int:
        """D, what get_feature_names_out counts."""
        return self._engine().width

    def _bases(self) -> Bases:
        if not hasattr(self, "_shared_bases"):
            self._shared_bases = Bases()
        return self._shared_bases

    def _engine(self) -> Engine:
        wanted = (self.model, self.quantization, self.cache_dir)
        engine: Engine | None = getattr(self, "_loaded_engine", None)
        if engine is None or not engine.serves(*wanted):
            engine = self._loaded_engine = self._bases().get(*wanted, verbose=self.verbose)
        return engine


def share_bases(learners: list[Any]) -> None:
    """Let learners of the same base model use one copy of it in memory.

    Parameters
    ----------
    learners : list of STARLearner
        Those of other models or quantisations keep their own.
    """
    if not learners:
        return
    bases = learners[0]._bases()
    for learner in learners:
        learner._shared_bases = bases
        engine = getattr(learner, "_loaded_engine", None)
        if engine is not None:
            learner._loaded_engine = bases.adopted(engine)
