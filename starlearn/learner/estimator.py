"""STARLearner: the estimator. A thin face: every method validates, calls one stage, records."""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self, Unpack, overload

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score

from starlearn.data.containers import as_count, as_items, object_array, take
from starlearn.data.pool import Pool, Rows, rows_of
from starlearn.distributed.ray_workers import workers_of
from starlearn.export.face import ExportMixin
from starlearn.learner.calibration import best_temperature, folds, tempered
from starlearn.learner.inputs import (
    Parts,
    check_label_type,
    check_passes,
    checked_labels,
    checked_parts,
    checked_pool,
    checked_rows,
    has_choices,
)
from starlearn.learner.protocol import LOADED, EstimatorProtocol
from starlearn.learner.rollback import unchanged_on_error
from starlearn.learner.session import Prompts, answer_room
from starlearn.learner.tracking import ReportMixin
from starlearn.learner.typed import (
    Asked,
    AskedPerhaps,
    AskedToo,
    Batch,
    Items,
    Measured,
    PoolT,
    available_if,
)
from starlearn.model.adapter import Adapter
from starlearn.model.backbone import check_quantization
from starlearn.query.acquisition import Plan
from starlearn.query.budget import Budget, budget_for
from starlearn.query.estimate import Estimate, estimate
from starlearn.query.pool_scores import Uncertainty
from starlearn.randomness import derived_seed, drawn_seed
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.tasks import ChoiceTask, GenerationTask, Item


class STARLearner(ExportMixin, ReportMixin, EstimatorProtocol):
    """Active learning with a 4-bit language model and a LoRA adapter.

    Each round trains a fresh adapter with a penalty on B, and asks it K times, with dropout on A
    (STAR, arXiv 2403.01165). By default items are ranked by the mutual information of answer and
    mask; STAR's mix with the base model: ``Acquisition(measure="entropy", schedule="published")``.

    Parameters
    ----------
    model : str, path or None, default=None
        Folder or hub id of a causal language model; None is the small model in the package.
    task : ChoiceTask or GenerationTask, default=None
        How items become prompts and answers become labels; None is ``ChoiceTask()``.
    quantization : {"nf4", "fp4", "none"} or transformers.BitsAndBytesConfig, default="nf4"
        Format of the base model's linear weights.
    adapter : LoRA, default=None
    acquisition : Acquisition, default=None
    training : Training, default=None
        The settings; None stands for the part's defaults. ``set_params(adapter__r=8)`` works
        either way.
    random_state : int, RandomState or None, default=None
        Decides initial weights, order of training, dropout masks and ties. With the same number
        the same items are picked, whatever the batch size and the order of the pool.
    cache_dir : path or None, default=None
        Folder in which scores are kept, so that the base model's are computed once for all rounds
        and an interrupted query goes on where it was, in another process too. None keeps them in
        memory, up to 256 MB.
    verbose : bool or int, default=True
        0 or False: nothing is written. 1: progress bars. 2: the loss of a training as well.
    callbacks : sequence or None, default=None
        Functions that are given a :class:`starlearn.Progress` as a long step goes on, and
        instances of ``transformers.TrainerCallback``, which take part in every training.
    report_to : str or sequence of {"tensorboard", "wandb", "mlflow", "trackio"}, default=()
        Trackers that are told each round's figures: labels, loss, uncertainties, seconds, and what
        :meth:`record` is given. No text goes there. By default nobody is told anything.

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Sorted labels; only with a ChoiceTask.
    adapter_ : starlearn.model.adapter.Adapter
        The weights of the last training.
    X_training, y_training : ndarray of shape (N,)
        The labelled set.
    rounds_ : list of dict
        One record a training, with the query that followed it.

    Examples
    --------
    >>> from starlearn import STARLearner, ChoiceTask
    >>> learner = STARLearner(task=ChoiceTask("{question}", choices=["yes", "no"]))
    >>> learner.set_params(training__learning_rate=3e-3).training
    Training(learning_rate=0.003)
    """

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

    # Labelled data in, adapter out

    def fit(self, X: Any, y: Any) -> Self:
        """Replace the labelled set and train a fresh adapter on it.

        Parameters
        ----------
        X : N items in any container that :func:`starlearn.data.containers.as_items` takes
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
            When the loss or a weight becomes NaN or infinite. The learner is then what it was
            before the call, as after any error and after Ctrl-C: mend the cause and call again.
        """
        parts = self._parts()
        items, labels = checked_labels(X, y, parts.task)
        with unchanged_on_error(self, LOADED):
            self._begin()
            self._remember(items, labels)
            return self._train(parts, items, labels)

    def teach(self, X: Any, y: Any, bootstrap: bool = False, only_new: bool = False) -> Self:
        """Add items to the labelled set and train the next round's adapter.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.
        bootstrap : bool
            Train on a sample of the labelled set, drawn with replacement.
        only_new : bool
            Train on these items alone. They join the labelled set all the same.

        Returns
        -------
        self
        """
        parts = self._parts()
        items, labels = checked_labels(X, y, parts.task)
        with unchanged_on_error(self, LOADED):
            if not hasattr(self, "rounds_"):
                self._begin()
            self._add_training_data(items, labels)
            if not only_new:
                items, labels = list(self.X_training), self.y_training
            if bootstrap:
                generator = np.random.default_rng(self._seed("bootstrap", len(self.rounds_)))
                drawn = generator.integers(len(items), size=len(items))
                items, labels = [items[i] for i in drawn], labels[drawn]
            return self._train(parts, items, labels)

    # A pool in, the items worth labelling out

    @overload
    def query(self, X_pool: Pool, n_instances: int = 1, **how: Unpack[Asked]) -> Batch[Items]: ...
    @overload
    def query(self, X_pool: PoolT, n_instances: int = 1, **how: Unpack[Asked]) -> Batch[PoolT]: ...
    @overload
    def query(
        self, X_pool: Pool, n_instances: int = 1, **how: Unpack[AskedToo]
    ) -> Measured[Items]: ...
    @overload
    def query(
        self, X_pool: PoolT, n_instances: int = 1, **how: Unpack[AskedToo]
    ) -> Measured[PoolT]: ...
    @overload
    def query(
        self, X_pool: Any, n_instances: int = 1, **how: Unpack[AskedPerhaps]
    ) -> tuple[Any, ...]: ...
    def query(
        self,
        X_pool: Any,
        n_instances: int = 1,
        *,
        return_metrics: bool = False,
        budget: Budget | None = None,
        engine: Any = None,
    ) -> tuple[Any, ...]:
        """Choose the items whose labels are worth most.

        Before the first fit the base model's uncertainty decides, if the task's answers are known.

        Parameters
        ----------
        X_pool : m unlabelled items in any container that `fit` takes, or a Pool on disk
        n_instances : int
            n, from 1 to m.
        return_metrics : bool
            Also return what each chosen item was ranked by: by default its place, from 0 to 1.
        budget : Budget, optional
            What labels may cost. Items that cost more than what is left are passed over, and the
            batch is smaller than n when the money ends.
        engine : None, "ray", RayEngine or "accelerate", default=None
            Who scores: this process, workers of a Ray cluster, or all processes of this program
            (`accelerate launch`, each calls this method); with the same result.

        Returns
        -------
        indices : ndarray of shape (n,)
            Positions in the pool, most uncertain first; in the order in which they were drawn with
            ``Acquisition(diversity=...)``.
        batch : n items in a container of the pool's kind
        metrics : ndarray of shape (n,)
            Only with `return_metrics`; NaN for a random draw.
        """
        began = time.perf_counter()
        parts = self._parts()
        rows = checked_rows(X_pool, parts.task, "X_pool")
        n_instances = as_count(n_instances, "n_instances", len(rows))
        budget = budget_for(budget, rows)
        record: dict[str, Any] = {"n_pool": len(rows)}
        scored = parts.acquisition.strategy != "random"
        plan = self._plan(parts, rows, scores=scored, engine=engine)
        asked = list(getattr(self, "X_training", []))
        if not scored:
            indices, metrics = plan.random(n_instances, parts.task, asked, budget)
        else:
            ranked = plan.ranked(n_instances)
            indices, metrics = plan.chosen(ranked, n_instances, parts.task, asked, budget)
            record["lambda"] = plan.weight
            record |= ranked.means()
        record["n_instances"] = len(indices)  # fewer than n where the money ends
        record["seconds"] = time.perf_counter() - began
        if budget is not None:
            record["cost"] = math.fsum(budget.costs(rows_of(rows, indices)))
        self._note_query(parts, record)
        batch = take(X_pool if hasattr(X_pool, "__getitem__") else rows, indices)
        return (indices, batch, metrics) if return_metrics else (indices, batch)

    def uncertainty(self, pool: Any, *, engine: Any = None) -> Uncertainty:
        """Return what a query ranks by, and what it is made of, for every item.

        Parameters
        ----------
        pool : m items in any container that `fit` takes
        engine : as in `query`

        Returns
        -------
        Uncertainty
            Arrays of shape (m,) in the pool's order: base, full, mixed, entropy,
            mutual_information, n_tokens, confidence, answers.
        """
        parts = self._parts()
        plan = self._plan(parts, checked_rows(pool, parts.task, "pool"), engine=engine)
        scores = plan.uncertainty()
        if plan.scorer.tree is None:
            return replace(scores, answers=object_array(self._engine().texts(scores.answers)))
        return replace(
            scores,
            n_tokens=plan.scorer.tree.n_tokens[scores.answers],
            answers=self._classes(parts)[scores.answers],
        )

    def estimate(self, pool: Any, n_instances: int = 1) -> Estimate:
        """Tell what a query of this pool will take, from a sample of it.

        Parameters
        ----------
        pool : m items in any container that `query` takes
        n_instances : int
            n; decides how many items are screened.

        Returns
        -------
        Estimate
            Seconds, peak memory, and rates; ``print`` it.
        """
        parts = self._parts()
        rows = checked_rows(pool, parts.task, "pool")
        return estimate(self._plan(parts, rows), as_count(n_instances, "n_instances", len(rows)))

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Return items as points: the base model's hidden states, averaged over the prompt.

        They do not change over the rounds, and serve for density, diversity and plots.

        Parameters
        ----------
        X : m items in any container that `fit` takes

        Returns
        -------
        ndarray of shape (m, D)
        """
        parts = self._parts()
        rows = checked_rows(X, parts.task, "X")
        return self._plan(parts, rows, scores=False).embeddings(rows[:])

    # Items in, answers out

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the label of each item; for a GenerationTask the parsed answer.

        Parameters
        ----------
        X : m items in any container that `fit` takes

        Returns
        -------
        ndarray of shape (m,)
        """
        if has_choices(self):
            probabilities = self.predict_proba(X)
            return np.asarray(self.classes_[probabilities.argmax(axis=1)])
        return object_array([self._parts().task.parse(text) for text in self._written(X)])

    @available_if(has_choices)
    def predict_proba(self, X: Any, *, n_passes: int = 1) -> NDArray[np.float64]:
        """Return the probability of each choice.

        Parameters
        ----------
        X : m items in any container that `fit` takes
        n_passes : int, default=1
            K. With more than one, the mean over an ensemble of K dropout masks, those of a query
            in this round; it takes K times as long (arXiv 1506.02142, equation 6).

        Returns
        -------
        ndarray of shape (m, C)
            Columns in the order of ``classes_``; rows sum to 1.

        Raises
        ------
        InputError
            When K is no whole number from 1, or there is no dropout to draw masks from.
        """
        parts, tree, prompts = self._to_predict(X)
        check_passes(parts, n_passes, "predict_proba(n_passes={})")
        seed = self._seed("masks", self._round)
        found = self._engine().probabilities(
            parts, self.adapter_, prompts, tree, n_passes=n_passes, seed=seed, verbose=self.verbose
        )
        return tempered(found, self.rounds_[-1].get("temperature", 1.0)) if n_passes == 1 else found

    @available_if(has_choices)
    def calibrate(self, *, n_splits: int = 5) -> Self:
        """Find the temperature of `predict_proba` by cross-fitting on the labelled set.

        For each part of the labelled set a fresh adapter is trained on the others and judged on
        this part; they are not kept (with ``warm_start`` they are of another kind than the
        learner's). Items of the same text are in one part. The temperature that fits all of them,
        ``rounds_[-1]["temperature"]``, holds until the next training, for one pass. It changes no
        answer and no query; a strategy that asks `predict_proba` may rank otherwise.

        Parameters
        ----------
        n_splits : int, default=5
            From 2 to the number of distinct items. It takes about as many trainings.

        Returns
        -------
        self

        Raises
        ------
        InputError
            When `n_splits` does not fit the labelled set, or the task has other choices by now.
        """
        parts, tree, prompts = self._to_predict(self.X_training)
        items, labels = checked_labels(self.X_training, self.y_training, parts.task)
        examples, t = self._engine().examples(parts, items, labels), self._round
        splits = folds(parts.task.fill(items), n_splits, self._seed("folds", t))
        how: dict[str, Any] = {"seed": self._seed("training", t), "verbose": self.verbose}
        found = self._engine().unseen_probabilities(parts, examples, prompts, tree, splits, **how)
        right = np.searchsorted(self.classes_, labels)
        self.rounds_[-1]["temperature"] = best_temperature(found, right)
        return self

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy; for a GenerationTask the share of parsed answers that are equal.

        Parameters
        ----------
        X : m items in any container that `fit` takes
        y : sequence of labels or answer texts, length m
        sample_weight : array-like of shape (m,), optional

        Returns
        -------
        float
        """
        self._require_fit()
        task = self._parts().task
        items, labels = checked_labels(X, y, task)
        if isinstance(task, GenerationTask):
            right = task.correct(self._written(items), labels.tolist())
        else:
            check_label_type(labels, self.classes_)
            right = (self.predict(items) == labels).tolist()
        return float(accuracy_score(np.ones(len(right)), right, sample_weight=sample_weight))

    # modAL's learner interface

    @property
    def estimator(self) -> Self:
        """The learner itself: it is its own estimator."""
        return self

    def _add_training_data(self, X: Any, y: Any) -> None:
        if hasattr(self, "X_training"):
            X, y = [*self.X_training, *as_items(X)], [*self.y_training, *y]
        # All of them: the task's choices may have changed since the first were taught.
        self._remember(*checked_labels(X, y, self._parts().task))

    # Inner steps

    def _parts(self) -> Parts:
        check_quantization(self.quantization)
        return checked_parts(self)

    @property
    def _round(self) -> int:
        """t: how many trainings lie behind, less one; 0 also before the first."""
        return max(len(getattr(self, "rounds_", [])) - 1, 0)

    def _begin(self) -> None:
        self._end_report()
        self.seed_ = drawn_seed(self.random_state)
        self.rounds_: list[dict[str, Any]] = []

    def _seed(self, purpose: str, t: int) -> int:
        if not hasattr(self, "seed_"):
            self.seed_ = drawn_seed(self.random_state)
        return derived_seed(self.seed_, purpose, t)

    def _remember(self, items: list[Item], labels: NDArray[Any]) -> None:
        self.X_training = object_array(items)
        self.y_training = labels

    def _classes(self, parts: Parts, training: bool = False) -> NDArray[Any]:
        """Labels in the order of the columns: those of the adapter, or of its next training."""
        if hasattr(self, "classes_") and not training:
            return self.classes_
        if isinstance(parts.task, ChoiceTask) and parts.task.choices is not None:
            return object_array(sorted(parts.task.choices))
        if not hasattr(self, "y_training"):
            raise NotFittedError(
                "The choices are not known yet: call fit first, or name them: "
                "ChoiceTask(choices=[...])."
            )
        return np.unique(self.y_training)

    def _tree_and_prompts(self, parts: Parts, items: list[Item]) -> tuple[Any, Prompts]:
        tree = None
        if has_choices(self):
            tree = self._engine().tree(parts, self._classes(parts).tolist())
        return tree, self._engine().prompts(parts, items, room=answer_room(parts, tree))

    def _to_predict(self, X: Any) -> tuple[Parts, Any, Prompts]:
        self._require_fit()
        parts = self._parts()
        return (parts, *self._tree_and_prompts(parts, checked_pool(X, parts.task)))

    def _written(self, X: Any) -> list[str]:
        parts, _, prompts = self._to_predict(X)
        return self._engine().write(parts, self.adapter_, prompts, self.verbose)

    def _require_fit(self) -> None:
        if not hasattr(self, "adapter_"):
            raise NotFittedError("This STARLearner has no adapter yet: call fit(X, y) first.")

    def _train(self, parts: Parts, items: list[Item], labels: NDArray[Any]) -> Self:
        began = time.perf_counter()
        if has_choices(self):
            classes = self._classes(parts, training=True)
            self._engine().check_classes(parts, classes.tolist())
        examples = self._engine().examples(parts, items, labels)
        self._report(parts)  # what is wrong with a tracker shows before the training
        warm = parts.training.warm_start and len(self.rounds_) > 0
        t = len(self.rounds_)
        previous: Adapter | None = getattr(self, "adapter_", None)
        self.adapter_, record = self._engine().train(
            parts,
            examples,
            seed=self._seed("training", t),
            start=previous if warm else None,
            verbose=self.verbose,
        )
        if has_choices(self):
            self.classes_ = classes
        self._note_training(parts, record, time.perf_counter() - began)
        return self

    def _plan(self, parts: Parts, rows: Rows, *, scores: bool = True, engine: Any = None) -> Plan:
        """Say how a pool is scored in the current round, or only drawn from."""
        workers = workers_of(engine, self)
        stages, trained = self._engine(), hasattr(self, "adapter_")
        tree = None
        if scores and has_choices(self):
            tree = stages.tree(parts, self._classes(parts).tolist())
        seeds = {purpose: self._seed(purpose, self._round) for purpose in ("masks", "draw")}
        return Plan(
            scorer=stages.scorer(parts, getattr(self, "adapter_", None), tree, seeds["masks"]),
            rows=rows,
            encode=stages.encode(parts, answer_room(parts, tree)),
            weight=parts.acquisition.base_weight(self._round) if trained else 1.0,
            seed=seeds["draw"],
            verbose=self.verbose,
            callbacks=parts.callbacks,
            workers=workers,
        )
