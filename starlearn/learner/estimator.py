"""STARLearner: the estimator. Every method checks its input, uses a session, and records."""

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score

from starlearn.data.containers import as_count, as_items, as_labels, object_array, take
from starlearn.data.pool import rows_of
from starlearn.distributed.ray_workers import workers_of
from starlearn.errors import InputError, listed
from starlearn.export import hub, merged, saving
from starlearn.learner import inputs, tracking
from starlearn.learner.base_models import LOADED, base_of, shared_bases
from starlearn.learner.calibration import best_temperature, folds, tempered
from starlearn.learner.locking import alone, calls_one_at_a_time
from starlearn.learner.rollback import unchanged_on_error
from starlearn.learner.session import Prompts, Session, classes_of, seed_of, session_of
from starlearn.model.adapter import check_base
from starlearn.model.processes import processes
from starlearn.query.budget import Budget, budget_for
from starlearn.query.estimate import Estimate, estimate
from starlearn.query.score_table import Uncertainty
from starlearn.randomness import drawn_seed
from starlearn.settings import Acquisition, LoRA, Training, check_names, with_hints
from starlearn.tasks import DEFAULTS, ChoiceTask, Fields, GenerationTask, Item


@calls_one_at_a_time
class STARLearner(
    ClassNamePrefixFeaturesOutMixin, ClassifierMixin, TransformerMixin, BaseEstimator
):
    """Active learning with a 4-bit language model and a LoRA adapter.

    Each round trains a new adapter with a penalty on B. A query scores the pool in K passes with
    dropout on A (STAR, arXiv 2403.01165). By default it ranks items by the mutual information
    between answer and dropout mask. STAR as published is ``STARLearner(model, task=task,
    **starlearn.PUBLISHED)``.

    Parameters
    ----------
    model : str, path or None, default=None
        Folder or hub id of a causal language model. None is the small model in the package.
    task : ChoiceTask or GenerationTask, default=None
        How prompts are made from items and labels from answers. None is ``ChoiceTask()``.
    quantization : {"nf4", "fp4", "none"} or transformers.BitsAndBytesConfig, default="nf4"
        Format of the base model's linear weights.
    adapter : LoRA, default=None
    acquisition : Acquisition, default=None
    training : Training, default=None
        Settings by group. None is the group's defaults, and ``set_params(adapter__r=8)`` works
        either way.
    random_state : int, RandomState or None, default=None
        Seed of initial weights, order of training, dropout masks and ties. With the same number the
        same items are chosen, whatever the batch size and the order of the pool.
    cache_dir : path or None, default=None
        Folder that keeps scores. The base model's are then computed once for all rounds, and an
        interrupted query resumes, also in another process. None keeps them in memory, up to 256 MB.
    verbose : bool or int, default=True
        0 or False prints nothing, 1 shows progress bars, 2 also the loss of a training.
    callbacks : sequence or None, default=None
        Functions that receive a :class:`starlearn.Progress` during long steps, and instances of
        ``transformers.TrainerCallback`` for every training.
    report_to : str or sequence of {"tensorboard", "wandb", "mlflow", "trackio"}, default=()
        Trackers that receive each round's metrics: labels, loss, uncertainties, seconds, and the
        figures of :meth:`record`. They receive no text.

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Sorted labels; only with a ChoiceTask.
    adapter_ : starlearn.model.adapter.Adapter
        The weights of the last training.
    X_training, y_training : ndarray of shape (N,)
        The labelled set.
    rounds_ : list of dict
        One record per training, with the query that followed it.
    """

    @with_hints
    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        task: ChoiceTask | GenerationTask | None = None,
        quantization: Any = "nf4",
        adapter: LoRA | None = None,
        acquisition: Acquisition | None = None,
        training: Training | None = None,
        random_state: int | np.random.RandomState | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        verbose: int = True,
        callbacks: Sequence[Any] | None = None,
        report_to: str | Sequence[str] = (),
    ) -> None:
        self.model = model
        self.task = task
        self.quantization = quantization
        self.adapter = adapter
        self.acquisition = acquisition
        self.training = training
        self.random_state = random_state
        self.cache_dir = cache_dir
        self.verbose = verbose
        self.callbacks = callbacks
        self.report_to = report_to

    # Training

    def fit(self, X: Any, y: Any) -> Self:
        """Replace the labelled set and train a new adapter on it.

        Parameters
        ----------
        X : N items in any container that :func:`starlearn.data.containers.as_items` accepts
            Strings, or dicts of the prompt's fields.
        y : sequence of str, int or bool, length N
            Labels; for a GenerationTask the whole answer texts.

        Returns
        -------
        self

        Raises
        ------
        InputError
            When parameters, items or labels cannot be used; before the model is loaded.
        TrainingDivergedError
            When the loss or a weight becomes NaN or infinite. The learner stays as it was.
        """
        parts = inputs.checked_parts(self)
        items, fields, labels = inputs.checked_labels(X, y, parts.task)
        with unchanged_on_error(self, LOADED):
            self._begin()
            self._remember(items, labels)
            return self._train(fields, labels)

    def teach(self, X: Any, y: Any, bootstrap: bool = False, only_new: bool = False) -> Self:
        """Add items to the labelled set and train the next round's adapter.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.
        bootstrap : bool
            Train on a sample of the labelled set, drawn with replacement.
        only_new : bool
            Train on these items alone; they join the labelled set all the same.
        """
        parts = inputs.checked_parts(self)
        items, fields, labels = inputs.checked_labels(X, y, parts.task)
        with unchanged_on_error(self, LOADED):
            if not hasattr(self, "rounds_"):
                self._begin()
            known = self._add_training_data(items, labels)
            if not only_new:
                fields, labels = [*known, *fields], self.y_training
            if bootstrap:
                seed = seed_of(self, "bootstrap", len(self.rounds_))
                drawn = np.random.default_rng(seed).integers(len(fields), size=len(fields))
                fields, labels = [fields[i] for i in drawn], labels[drawn]
            return self._train(fields, labels)

    # Queries

    def query(
        self,
        X_pool: Any,
        n_instances: int = 1,
        *,
        return_metrics: bool = False,
        budget: Budget | None = None,
        engine: Any = None,
    ) -> tuple[Any, ...]:
        """Choose the items to label.

        Before the first fit items are ranked by the base model's uncertainty.

        Parameters
        ----------
        X_pool : m unlabelled items in any container that `fit` accepts, or a Pool on disk
        n_instances : int
            n, from 1 to m.
        return_metrics : bool
            Also return the values that the chosen items were ranked by.
        budget : Budget, optional
            Limit on the cost of the labels; the batch may have fewer than n items.
        engine : None, "ray", RayEngine or "accelerate", default=None
            Processes that score: this one, the workers of a Ray cluster, or all processes of this
            program (`accelerate launch`). The result is the same.

        Returns
        -------
        indices : ndarray of shape (n,)
            Positions in the pool, best first.
        batch : n items in a container of the pool's kind
        metrics : ndarray of shape (n,)
            Only with `return_metrics`; NaN for a random draw.
        """
        began = time.perf_counter()
        parts = inputs.checked_parts(self)
        rows, fields = inputs.checked_pool(X_pool, parts.task, "X_pool", read=engine is not None)
        n_instances = as_count(n_instances, "n_instances", len(rows))
        budget = budget_for(budget, rows)
        workers = workers_of(engine, self)
        known = getattr(self, "X_training", ()) if parts.acquisition.skips_labelled else ()
        labelled = parts.task.fill(known) if len(known) else ()
        session, scored = session_of(self, parts), parts.acquisition.strategy != "random"
        plan = session.plan(rows, fields, uses_scores=scored, labelled=labelled, workers=workers)
        plan = plan.for_query()
        found: dict[str, Any] = {"n_pool": len(rows)}
        if scored:
            ranked = plan.ranked(n_instances)
            indices, metrics = plan.chosen(ranked, n_instances, budget)
            found |= {"lambda": plan.weight, **ranked.means()}
            if session.adapter is not None:
                items, labels = self.X_training, self.y_training
                session.warn_if_nothing_was_learned(items, labels, found["max_full"])
        else:
            indices, metrics = plan.random(n_instances, budget)
        found["n_instances"] = len(indices)  # fewer than n at the end of a budget
        found["seconds"] = time.perf_counter() - began
        if budget is not None:
            found["cost"] = math.fsum(budget.costs(rows_of(rows, indices)))
        tracking.note_query(self, session.parts, session.round, found)
        batch = take(X_pool if hasattr(X_pool, "__getitem__") else rows, indices)
        return (indices, batch, metrics) if return_metrics else (indices, batch)

    def uncertainty(self, pool: Any, *, engine: Any = None) -> Uncertainty:
        """Return the values that a query ranks by, and their components, for every item.

        Parameters
        ----------
        pool : m items in any container that `fit` accepts
        engine : as in `query`

        Returns
        -------
        Uncertainty
            Arrays of shape (m,) in the pool's order.
        """
        parts, workers = inputs.checked_parts(self), workers_of(engine, self)
        rows, fields = inputs.checked_pool(pool, parts.task, "pool", read=engine is not None)
        session = session_of(self, parts)
        return session.uncertainty(session.plan(rows, fields, workers=workers))

    def estimate(self, pool: Any, n_instances: int = 1) -> Estimate:
        """Estimate the time and memory of a query of this pool from a sample of it.

        Parameters
        ----------
        pool : m items in any container that `query` accepts
        n_instances : int
            n. The number of screened items depends on it.

        Returns
        -------
        Estimate
        """
        parts = inputs.checked_parts(self)
        rows, fields = inputs.checked_pool(pool, parts.task, "pool", read=True)
        n_instances = as_count(n_instances, "n_instances", len(rows))
        session, scored = session_of(self, parts), parts.acquisition.strategy != "random"
        return estimate(session.plan(rows, fields, uses_scores=scored).for_query(), n_instances)

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Return the base model's hidden states of items, averaged over the prompt.

        Parameters
        ----------
        X : m items in any container that `fit` accepts

        Returns
        -------
        ndarray of shape (m, D)
        """
        parts = inputs.checked_parts(self)
        rows, fields = inputs.checked_pool(X, parts.task, "X")
        session = session_of(self, parts)
        return session.plan(rows, fields, uses_scores=False).embeddings(fields[:])

    # Predictions

    def predict(self, X: Any, *, raw: bool = False) -> NDArray[Any]:
        """Return the label of each item; for a GenerationTask the parsed answer.

        Parameters
        ----------
        X : m items in any container that `fit` accepts
        raw : bool, default=False
            With a GenerationTask, return the whole texts, which show the working.

        Returns
        -------
        ndarray of shape (m,)
        """
        if inputs.has_choices(self):
            probabilities = self.predict_proba(X)
            return np.asarray(self.classes_[probabilities.argmax(axis=1)])
        session, _, prompts = self._to_predict(X)
        texts = session.written(prompts)
        return object_array(texts if raw else [session.parts.task.parse(text) for text in texts])

    @inputs.only_with_choices
    def predict_proba(self, X: Any, *, n_passes: int = 1) -> NDArray[np.float64]:
        """Return the probability of each choice.

        Parameters
        ----------
        X : m items in any container that `fit` accepts
        n_passes : int, default=1
            K. With more than one, the mean over K dropout masks, those of a query in this round
            (arXiv 1506.02142, equation 6). It takes K times as long.

        Returns
        -------
        ndarray of shape (m, C)
            Columns in the order of ``classes_``; rows sum to 1.

        Raises
        ------
        InputError
            When K is not a whole number of at least 1, or the adapter has no dropout.
        """
        session, tree, prompts = self._to_predict(X)
        inputs.check_passes(session.parts, n_passes, "predict_proba(n_passes={})")
        found = session.probabilities(prompts, tree, n_passes=n_passes)
        return tempered(found, self.rounds_[-1].get("temperature", 1.0)) if n_passes == 1 else found

    @inputs.only_with_choices
    def calibrate(self, *, n_splits: int = 5) -> Self:
        """Set the temperature of `predict_proba` by cross-fitting on the labelled set.

        For each part of the labelled set a new adapter is trained on the other parts and predicts
        this one. Items with the same text are in one part. The temperature that fits all of them,
        ``rounds_[-1]["temperature"]``, holds until the next training, for a single pass.

        Parameters
        ----------
        n_splits : int, default=5
            From 2 to the number of distinct items. It takes about as many trainings.
        """
        self._require_fit()
        session = session_of(self)
        X, y = self.X_training, self.y_training
        _, fields, labels = inputs.checked_labels(X, y, session.parts.task)
        splits = folds(fields, n_splits, session.seed_for("folds", session.round))
        found = session.held_out_probabilities(fields, labels, splits)
        right = np.searchsorted(self.classes_, labels)
        self.rounds_[-1]["temperature"] = best_temperature(found, right)
        return self

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy; for a GenerationTask the share of equal parsed answers.

        Parameters
        ----------
        X : m items in any container that `fit` accepts
        y : sequence of labels or answer texts, length m
        sample_weight : array-like of shape (m,), optional

        Returns
        -------
        float
        """
        self._require_fit()
        session = session_of(self)
        _, fields, labels = inputs.checked_labels(X, y, session.parts.task)
        right = session.correct(fields, labels)
        return float(accuracy_score(np.ones(len(right)), right, sample_weight=sample_weight))

    # Records and files

    def record(self, **figures: float) -> Self:
        """Add figures of your own to the last round's record, for its card and trackers.

        Parameters
        ----------
        **figures : float
            By name, such as ``accuracy=learner.score(X_validation, y_validation)``. A name that the
            record itself uses is refused.
        """
        self._require_fit()
        tracking.record_figures(self, inputs.checked_parts(self), figures)
        return self

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write adapter, settings and labelled set to a new folder, which peft can open too."""
        self._on_main(lambda content, backbone: saving.save(content, folder, backbone))

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], model: str | os.PathLike[str] | None = None
    ) -> Self:
        """Read a saved learner; `model` is where the base model is now, if it moved.

        Errors: :func:`starlearn.export.saving.load`.
        """
        saved = saving.load(folder)
        if unknown := sorted(set(saved.parameters) - set(cls._get_param_names())):
            raise InputError(
                f"{folder} has parameters that this starlearn does not know: {listed(unknown)}. "
                "It was written by a newer one: update starlearn."
            )
        learner = cls(**saved.parameters)
        if model is not None:
            learner.model = model
        inputs.checked_parts(learner)
        check_base(base_of(learner).backbone, saved.adapter)
        learner.adapter_, learner.seed_, learner.rounds_ = saved.adapter, saved.seed, saved.rounds
        if saved.classes is not None:
            # An earlier version did not compose labels, which can change their order.
            learner.classes_ = np.unique(as_labels(saved.classes, len(saved.classes)))
        learner._remember(list(saved.items), as_labels(saved.labels, len(saved.items)))
        return learner

    def merge(
        self,
        to: str | os.PathLike[str],
        *,
        dtype: str = "auto",
        dequantize: bool = False,
        max_shard_size: str = "5GB",
    ) -> merged.Merged:
        """Write the base model with the adapter merged into it.

        The base model is loaded a second time, into the CPU's memory and in full precision. The
        adapter was trained on the quantised one, so some answers differ from the learner's. See
        :func:`starlearn.export.merged.merge`.
        """
        options: dict[str, Any] = {"dtype": dtype, "dequantize": dequantize}
        options["max_shard_size"] = max_shard_size
        return self._on_main(
            lambda content, backbone: merged.merge(content, backbone, to, **options)
        )

    def write_hub_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        include: Sequence[str] = (),
        base_model: str | None = None,
        license: str | None = None,
    ) -> None:
        """Write to a new folder what `push_to_hub` would upload, and upload nothing."""
        page: dict[str, Any] = {"include": include, "base_model": base_model, "license": license}
        self._on_main(
            lambda content, backbone: hub.write_hub_folder(content, backbone, Path(folder), **page)
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        include: Sequence[str] = (),
        base_model: str | None = None,
        license: str | None = None,
        token: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the adapter and a model card to a hub; see :func:`starlearn.export.hub.push`.

        The card holds counts, settings, the learning curve and versions. No text of an item, no
        label, no choice and no prompt is uploaded unless `include` names it.

        Returns the address of the commit.
        """
        page: dict[str, Any] = {"include": include, "base_model": base_model, "license": license}
        options: dict[str, Any] = {"private": private, "token": token}
        options["commit_message"] = commit_message
        return self._on_main(
            lambda content, backbone: hub.push(content, backbone, repo_id, **options, **page)
        )

    # modAL's learner interface

    @property
    def estimator(self) -> Self:
        """The learner itself: it is its own estimator."""
        return self

    def _add_training_data(self, X: Any, y: Any) -> list[Fields]:
        """Add to the labelled set; return the fields of the items that were there before."""
        task = inputs.checked_parts(self).task
        known = list(getattr(self, "X_training", ()))
        fields = task.fill(known) if known else []
        labels = [*self.y_training, *y] if known else y
        items = [*known, *as_items(X)]
        labels = as_labels(labels, len(items))
        # The task's choices may have changed since the last round.
        inputs.check_labels(labels, task)
        self._remember(items, labels)
        return fields

    # scikit-learn's estimator interface

    def set_params(self, **params: Any) -> Self:
        """Set parameters, also those of a group, as in ``set_params(adapter__r=8)``."""
        names = {name.partition("__")[0] for name in params}
        check_names(type(self).__name__, self._get_param_names(), names)
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
        if not inputs.has_choices(self):
            tags.estimator_type = None
            tags.classifier_tags = None
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "adapter_")

    def __sklearn_clone__(self) -> Self:
        copy: Self = super().__sklearn_clone__()
        copy._shared_bases = shared_bases(self)
        return copy

    def __getstate__(self) -> dict[str, Any]:
        # The base model is loaded again where the pickle is opened.
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_base", None)
        state.pop("_trackers", None)
        return state

    @property
    def _n_features_out(self) -> int:
        """D, the number of outputs that get_feature_names_out counts."""
        return session_of(self).width

    def _begin(self) -> None:
        tracking.end_report(self)
        self.seed_ = drawn_seed(self.random_state)
        self.rounds_: list[dict[str, Any]] = []

    def _remember(self, items: list[Item], labels: NDArray[Any]) -> None:
        # Copies: the caller may change its dicts later.
        self.X_training = object_array([x if isinstance(x, str) else dict(x) for x in items])
        self.y_training = labels

    def _require_fit(self) -> None:
        if not hasattr(self, "adapter_"):
            raise NotFittedError("This STARLearner has no adapter yet: call fit(X, y) first.")

    def _to_predict(self, X: Any) -> tuple[Session, Any, Prompts]:
        self._require_fit()
        parts = inputs.checked_parts(self)
        fields = inputs.checked_items(X, parts.task)
        session = session_of(self, parts)
        return (session, *session.tree_and_prompts(fields))

    def _train(self, fields: list[Fields], labels: NDArray[Any]) -> Self:
        began = time.perf_counter()
        session = session_of(self)
        classes = classes_of(session.parts.task, self.y_training)
        if classes is not None:
            session.check_classes(classes.tolist(), first=not self.rounds_)
        examples = session.examples(fields, labels)
        session.check_answers(labels, examples)
        tracking.report(self, session.parts)  # errors of a tracker appear before the training
        t = len(self.rounds_)
        start = session.adapter if session.parts.training.warm_start and t > 0 else None
        seed = session.seed_for("training", t)
        self.adapter_, record = session.train(examples, seed=seed, start=start)
        if classes is not None:
            self.classes_ = classes
        tracking.note_training(self, session.parts, record, time.perf_counter() - began)
        return self

    def _on_main(self, act: Callable[[Any, Any], Any]) -> Any:
        """Call a function with the learner's content, in the first of several processes."""
        self._require_fit()
        backbone = base_of(self).backbone
        check_base(backbone, self.adapter_)
        with alone(self):
            content = saving.content_of(self)
        return processes().on_main(lambda: act(content, backbone))
