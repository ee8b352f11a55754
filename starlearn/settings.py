"""LoRA, Acquisition, Training: the knobs, as small scikit-learn estimators without a fit."""

from collections.abc import Sequence
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, ClassVar, cast

from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, InvalidParameterError, StrOptions

from starlearn.errors import InputError

PUBLISHED_SCHEDULE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Weight of the base model by round in the code published with arXiv 2403.01165."""
PUBLISHED = MappingProxyType({"measure": "entropy", "schedule": "published"})
"""STAR's choice of items as published: ``Acquisition(**PUBLISHED)``."""


class Settings(BaseEstimator):
    """A named group of parameters that checks itself; base of the groups below and of tasks."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    def check(self) -> None:
        """Check every parameter.

        Raises
        ------
        InputError
            Naming the parameter, what is allowed and what came.
        """
        try:
            self._validate_params()
        except InvalidParameterError as error:
            raise InputError(str(error)) from None


class LoRA(Settings):
    """The adapter: h = W0 x + (alpha / r) B A x, with dropout on the input of A.

    Parameters
    ----------
    r : int, default=64
        Rank of B A.
    alpha : float, default=16
        The product is scaled by alpha / r.
    dropout : float, default=0.1
        Probability with which an input feature of A is dropped, in training and in the
        Monte-Carlo passes of a query. 0 allows only
        ``Acquisition(n_passes=1, measure="entropy")``.
    target_modules : "all-linear" or sequence of str, default="all-linear"
        Which linear layers get an adapter; "all-linear" leaves out the output head.

    Notes
    -----
    Defaults are the published setting (arXiv 2403.01165, section 4.1).
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "r": [Interval(Integral, 1, None, closed="left")],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "target_modules": [StrOptions({"all-linear"}), "array-like"],
    }

    def __init__(
        self,
        r: int = 64,
        alpha: float = 16,
        dropout: float = 0.1,
        target_modules: str | Sequence[str] = "all-linear",
    ) -> None:
        self.r = r
        self.alpha = alpha
        self.dropout = dropout
        self.target_modules = target_modules


class Acquisition(Settings):
    """How a query turns a pool into the items worth labelling.

    The defaults had the highest mean on the built-in tasks, and passed a bar that was set
    beforehand (docs/evidence.md). STAR as published is
    ``Acquisition(measure="entropy", schedule="published")``.

    Parameters
    ----------
    strategy : {"star", "random"}, default="star"
        "random" is the baseline: a seeded draw of distinct texts that no model takes part in.
    measure : {"mutual_information", "entropy", "predictive_entropy"}, \
            default="mutual_information"
        The uncertainty of one item: the mutual information between answer and dropout mask (BALD,
        Houlsby et al. 2011, arXiv 1112.5745; Gal et al. 2017, arXiv 1703.02910), which is low
        where all K networks agree, also that nothing is known; entropy of the answer
        distribution (ME), or minus log-probability of the model's own answer (PE), both as in
        arXiv 2403.01165, section 3.2. The base model is deterministic and has no mutual
        information: before the first training, and in a mix, its entropy takes that place.
    n_passes : int, default=3
        K, the number of Monte-Carlo dropout passes. 1 scores once, without dropout, and needs
        another measure than mutual information.
    schedule : "published", float or sequence of float, default=0.0
        Weight lambda(t) of the base model's uncertainty in round t (0-based): the published
        0.9, 0.8, ..., 0.1, one number for all rounds, or one number a round. The last one stays.
        0 leaves the base model out of the ranking as soon as there is an adapter; it is scored all
        the same, in one pass an item, which is kept with choices.
    normalise : {"rank", "zscore", "none"}, default="rank"
        How base and full uncertainty are brought to one scale within the pool.
    reduce : {"mean", "sum", "residual"}, default="mean"
        How the tokens of a free-form answer become one number; "residual" is the sum after a
        linear regression on the number of tokens. Sums make long answers win.
    mask_mode : {"shared", "token"}, default="shared"
        Dropout masks: one per pass for all tokens and items, so that K networks judge the pool
        (variational dropout), or one per token, the noise of training. Neither depends on the
        batch or on the order of the pool.
    mc_layers : int or None, default=None
        Dropout in so many of the top layers only; the layers below run once for all passes.
        Another approximation of the same posterior: see the performance notes for what it changes.
    mc_scope : {"all", "answer"}, default="all"
        "answer": dropout acts at the answer's positions only (the prompt's last token is the
        first of them); the prompt runs once for all passes.
    screen : int or None, default=None
        Rank the pool without dropout first, and spend the K passes on the best ``screen * n``
        items only. The batch is drawn from these.
    sub_pool : int or None, default=None
        Score so many items only, drawn by the seed and by what the items say.
    distinct : {"exact", "none"} or float, default="exact"
        "exact": an item whose text equals that of a better one or of a labelled one, but for case,
        white space and punctuation at the ends, is passed over; where too few others are left
        they fill up the batch, with a warning. A number also passes over items whose base hidden
        state has at least this cosine to one of theirs.
    diversity : {"none", "kmeans++", "k-centre"}, default="none"
        Draw a batch of items that are unlike each other, by base hidden states weighted by
        uncertainty, from the ``candidates * n`` most uncertain.
    candidates : int, default=10
        How many times n the candidates of a diverse batch are.
    max_batch_tokens : int or None, default=None
        Upper bound of padded tokens in one forward pass, over all K passes together. None starts
        from what suits the device and shrinks when memory runs out. It decides memory and speed;
        scores do not depend on it (in float32, see the performance notes).
    chunk_size : int, default=2048
        Items that are scored at a time. Finished chunks are kept when a query is interrupted;
        scores do not depend on it.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "strategy": [StrOptions({"star", "random"})],
        "measure": [StrOptions({"entropy", "predictive_entropy", "mutual_information"})],
        "n_passes": [Interval(Integral, 1, None, closed="left")],
        "schedule": [StrOptions({"published"}), Interval(Real, 0, 1, closed="both"), "array-like"],
        "normalise": [StrOptions({"rank", "zscore", "none"})],
        "reduce": [StrOptions({"mean", "sum", "residual"})],
        "mask_mode": [StrOptions({"shared", "token"})],
        "mc_layers": [Interval(Integral, 1, None, closed="left"), None],
        "mc_scope": [StrOptions({"all", "answer"})],
        "screen": [Interval(Integral, 1, None, closed="left"), None],
        "sub_pool": [Interval(Integral, 1, None, closed="left"), None],
        "distinct": [StrOptions({"exact", "none"}), Interval(Real, 0, 1, closed="right")],
        "diversity": [StrOptions({"none", "kmeans++", "k-centre"})],
        "candidates": [Interval(Integral, 1, None, closed="left")],
        "max_batch_tokens": [Interval(Integral, 1, None, closed="left"), None],
        "chunk_size": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        strategy: str = "star",
        measure: str = "mutual_information",
        n_passes: int = 3,
        schedule: str | float | Sequence[float] = 0.0,
        normalise: str = "rank",
        reduce: str = "mean",
        mask_mode: str = "shared",
        mc_layers: int | None = None,
        mc_scope: str = "all",
        screen: int | None = None,
        sub_pool: int | None = None,
        distinct: str | float = "exact",
        diversity: str = "none",
        candidates: int = 10,
        max_batch_tokens: int | None = None,
        chunk_size: int = 2048,
    ) -> None:
        self.strategy = strategy
        self.measure = measure
        self.n_passes = n_passes
        self.schedule = schedule
        self.normalise = normalise
        self.reduce = reduce
        self.mask_mode = mask_mode
        self.mc_layers = mc_layers
        self.mc_scope = mc_scope
        self.screen = screen
        self.sub_pool = sub_pool
        self.distinct = distinct
        self.diversity = diversity
        self.candidates = candidates
        self.max_batch_tokens = max_batch_tokens
        self.chunk_size = chunk_size

    def check(self) -> None:
        """Check every parameter, the numbers of a schedule too."""
        super().check()
        if isinstance(self.distinct, bool):  # a number to Python: True would be a cosine of 1
            raise InputError(
                "The 'distinct' parameter of Acquisition must be 'exact', 'none' or a cosine. Got "
                f"{self.distinct!r} instead."
            )
        if self.measure == "mutual_information" and self.n_passes == 1 and self.strategy == "star":
            raise InputError(
                "Acquisition(measure='mutual_information', n_passes=1): with one pass the mutual "
                "information of answer and dropout mask is 0 for every item. Set n_passes=3, or "
                "measure='entropy'."
            )
        try:
            weights = self.weights()
        except (TypeError, ValueError):
            weights = []
        if not weights or not all(0 <= weight <= 1 for weight in weights):
            raise InputError(
                "The 'schedule' parameter of Acquisition must hold numbers from 0 to 1, at least "
                f"one. Got {self.schedule!r} instead."
            )

    @property
    def near(self) -> float | None:
        """The cosine from which two items count as one question, where there is one."""
        return None if isinstance(self.distinct, str) else float(self.distinct)

    def weights(self) -> list[float]:
        """Return lambda(0), lambda(1), ... as a list; the last one holds for all later rounds."""
        if isinstance(self.schedule, str):
            return list(PUBLISHED_SCHEDULE)
        if isinstance(self.schedule, Real):
            return [float(self.schedule)]
        return [float(weight) for weight in cast("Sequence[float]", self.schedule)]

    def base_weight(self, t: int) -> float:
        """Return lambda(t), the weight of the base model's uncertainty in round t (0-based)."""
        weights = self.weights()
        return weights[min(t, len(weights) - 1)]


class Training(Settings):
    """How the adapter of a round is trained.

    Parameters
    ----------
    epochs : int, default=3
        Passes over the labelled set, unless `max_steps` is given.
    max_steps : int or None, default=None
        A fixed number of optimiser steps whatever the number of labels, so that label counts can
        be compared without comparing training lengths.
    batch_size : int, default=8
        Labelled items in one optimiser step (with `gradient_accumulation`, in one part of it).
    learning_rate : float, default=1.5e-4
        Peak learning rate.
    scheduler : {"linear", "cosine", "constant"}, default="linear"
        Learning-rate schedule over the real number of optimiser steps.
    warmup_steps : int, default=0
        Steps over which the learning rate rises from 0.
    b_weight_decay : float, default=0.5
        Decoupled weight decay (AdamW) on B alone; A has none (arXiv 2403.01165, section 3.3).
    b_shrinkage : float from 0 to 20 or None, default=None
        The same penalty in terms of what it does: without gradients B would shrink by the factor
        exp(-b_shrinkage) over a whole training. Replaces `b_weight_decay` when given. The
        published value amounts to a few per cent.
    gradient_accumulation : int, default=1
        Batches that make one optimiser step together, as one large batch would.
    gradient_checkpointing : bool, default=False
        Recompute activations in the backward pass: less memory, about a third more time.
    max_grad_norm : float, default=1.0
        Gradients are clipped to this norm.
    warm_start : bool, default=False
        Continue from the previous round's adapter instead of a fresh one.

    Notes
    -----
    Defaults are the published setting (arXiv 2403.01165, section 4.1).
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "max_steps": [Interval(Integral, 1, None, closed="left"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "scheduler": [StrOptions({"linear", "cosine", "constant"})],
        "warmup_steps": [Interval(Integral, 0, None, closed="left")],
        "b_weight_decay": [Interval(Real, 0, None, closed="left")],
        "b_shrinkage": [Interval(Real, 0, 20, closed="both"), None],
        "gradient_accumulation": [Interval(Integral, 1, None, closed="left")],
        "gradient_checkpointing": ["boolean"],
        "max_grad_norm": [Interval(Real, 0, None, closed="neither")],
        "warm_start": ["boolean"],
    }

    def check(self) -> None:
        """Check every parameter, and that the penalty shrinks B instead of turning it round."""
        super().check()
        step = self.learning_rate * self.b_weight_decay
        if self.b_shrinkage is None and step >= 1:
            raise InputError(
                f"Training(learning_rate={self.learning_rate}, b_weight_decay="
                f"{self.b_weight_decay}) would multiply B by {1 - step:g} in a step. Their product "
                "must stay below 1; b_shrinkage says how much B shrinks over a whole training."
            )

    def __init__(
        self,
        epochs: int = 3,
        max_steps: int | None = None,
        batch_size: int = 8,
        learning_rate: float = 1.5e-4,
        scheduler: str = "linear",
        warmup_steps: int = 0,
        b_weight_decay: float = 0.5,
        b_shrinkage: float | None = None,
        gradient_accumulation: int = 1,
        gradient_checkpointing: bool = False,
        max_grad_norm: float = 1.0,
        warm_start: bool = False,
    ) -> None:
        self.epochs = epochs
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.scheduler = scheduler
        self.warmup_steps = warmup_steps
        self.b_weight_decay = b_weight_decay
        self.b_shrinkage = b_shrinkage
        self.gradient_accumulation = gradient_accumulation
        self.gradient_checkpointing = gradient_checkpointing
        self.max_grad_norm = max_grad_norm
        self.warm_start = warm_start
