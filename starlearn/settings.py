"""LoRA, Acquisition, Training: groups of settings, as small scikit-learn estimators."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar, cast

from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, InvalidParameterError, StrOptions

from starlearn.errors import InputError

Init = TypeVar("Init", bound=Callable[..., None])

PUBLISHED_SCHEDULE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Weight of the base model by round in the code published with arXiv 2403.01165."""
PUBLISHED_ACQUISITION: Mapping[str, Any] = MappingProxyType(
    {"measure": "entropy", "schedule": "published"}
)
"""How the published STAR chooses items: ``Acquisition(**PUBLISHED_ACQUISITION)``."""

SYNONYMS = {"bald": "mutual_information"}
"""Other names of a measure in the literature, and the name that is used here."""

NAMES_ELSEWHERE = {
    "lora_alpha": "LoRA(alpha=...)",
    "lora_dropout": "LoRA(dropout=...)",
    "lora_rank": "LoRA(r=...)",
    "num_train_epochs": "Training(epochs=...)",
    "per_device_train_batch_size": "Training(batch_size=...)",
    "gradient_accumulation_steps": "Training(gradient_accumulation=...)",
    "lr": "Training(learning_rate=...)",
    "lr_scheduler_type": "Training(scheduler=...)",
    "warmup_ratio": "Training(warmup_steps=...), a number of optimiser steps",
    "weight_decay": "Training(b_weight_decay=...), which acts on B alone",
    "load_in_4bit": "STARLearner(quantization='nf4')",
    "bnb_4bit_quant_type": "STARLearner(quantization='nf4')",
    "model_name": "STARLearner(model=...)",
    "seed": "STARLearner(random_state=...)",
    "load_in_8bit": "STARLearner(quantization=BitsAndBytesConfig(load_in_8bit=True))",
    "choices": "ChoiceTask(choices=...)",
    "prompt": "ChoiceTask(prompt=...)",
}
"""Parameters by the names of peft, transformers and TRL, or of the learner: where each is."""


def check_names(kind: str, known: Collection[str], names: Collection[str]) -> None:
    """Raise InputError unless a class has parameters of these names; name the one that is meant."""
    for name in names:
        if name in known:
            continue
        close = get_close_matches(name, known, n=1)
        owners = [own for own in (LoRA, Acquisition, Training) if name in own._get_param_names()]
        hint = f"Its parameters are {', '.join(sorted(known))}."
        if name in NAMES_ELSEWHERE:
            hint = f"Use {NAMES_ELSEWHERE[name]}."
        elif owners:
            hint = f"Use {owners[0].__name__}({name}=...)."
        elif close:
            hint = f"Did you mean {close[0]!r}?"
        raise InputError(f"{kind} has no parameter {name!r}. {hint}")


def with_hints(init: Init) -> Init:
    """Return a constructor that raises InputError with a hint for an unknown name."""
    known = list(signature(init).parameters)[1:]  # without self

    @wraps(init)
    def checked(self: Any, *args: Any, **parameters: Any) -> None:
        check_names(init.__qualname__.partition(".")[0], known, parameters)
        init(self, *args, **parameters)

    return cast("Init", checked)


class Settings(BaseEstimator):
    """Base of the groups of settings below and of tasks: parameters that check themselves."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters by name; raises InputError for an unknown one."""
        check_names(type(self).__name__, self._get_param_names(), parameters)
        super().set_params(**parameters)
        return self

    def check(self) -> None:
        """Check every parameter; raise InputError with its name, what is allowed and what came."""
        try:
            self._validate_params()
        except InvalidParameterError as error:
            raise InputError(str(error)) from None


class LoRA(Settings):
    """Settings of the adapter: h = W0 x + (alpha / r) B A x, with dropout on the input of A.

    Parameters
    ----------
    r : int, default=64
        Rank of B A.
    alpha : float, default=16
        The product is scaled by alpha / r.
    dropout : float, default=0.1
        Probability of dropping an input feature of A, in training and in the Monte-Carlo passes of
        a query. With 0 only ``Acquisition(n_passes=1, measure="entropy")`` is possible.
    target_modules : "all-linear" or sequence of str, default="all-linear"
        Linear layers that get an adapter. "all-linear" means all but the output head.

    Defaults are the published setting (arXiv 2403.01165, section 4.1).
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "r": [Interval(Integral, 1, None, closed="left")],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "target_modules": [StrOptions({"all-linear"}), "array-like"],
    }

    @with_hints
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
    """Settings of a query: how it chooses the items to label.

    The defaults had the highest mean accuracy on the built-in tasks and passed a criterion that
    was set in advance (docs/evidence/default.md). STAR as published is
    ``Acquisition(measure="entropy", schedule="published")``.

    Parameters
    ----------
    strategy : {"uncertainty", "random"}, default="uncertainty"
        "random" is the baseline: a seeded draw of distinct texts without any model.
    measure : {"mutual_information", "bald", "entropy", "predictive_entropy"}, \
            default="mutual_information"
        The uncertainty of one item. "mutual_information", or "bald", is the mutual information
        between answer and dropout mask (BALD, Houlsby et al. 2011, arXiv 1112.5745; Gal et al.
        2017, arXiv 1703.02910). It is low where the K networks agree, even if they agree on being
        unsure. "entropy" is the entropy of the answer distribution (ME), "predictive_entropy" minus
        the log-probability of the model's own answer (PE), both as in arXiv 2403.01165, section
        3.2. The base model is deterministic and has no mutual information. Its entropy is used
        before the first training and in a mix.
    n_passes : int, default=3
        K, the number of Monte-Carlo dropout passes. 1 scores once, without dropout, and needs
        another measure than mutual information.
    schedule : "published", float or sequence of float, default=0.0
        Weight lambda(t) of the base model's uncertainty in round t (0-based): the published
        0.9, 0.8, ..., 0.1, one number for all rounds, or one number per round. The last number
        holds for all later rounds. With 0 a query does not run the base model once there is an
        adapter.
    normalise : {"rank", "zscore", "none"}, default="rank"
        How base and full uncertainty are brought to one scale within the pool.
    reduce : {"mean", "sum", "residual"}, default="mean"
        How the tokens of a free-form answer become one number. "residual" is the sum after a
        linear regression on the number of tokens. With "sum" long answers rank first.
    mask_mode : {"shared", "token"}, default="shared"
        "shared" draws one dropout mask per pass for all tokens and items, so that the same K
        networks judge every item (variational dropout). "token" draws one mask per token, as in
        training. Neither depends on the batch or on the order of the pool.
    mc_scope : {"all", "answer"}, default="all"
        With "answer" dropout acts only at the answer's positions, from the prompt's last token on.
        The prompt runs once for all passes.
    screen : int or None, default=None
        Rank the pool without dropout first. Only the best ``screen * n`` items then go through the
        K passes, and the batch is chosen from these.
    sub_pool : int or None, default=None
        Score only this many items, drawn by the seed and by their text.
    distinct : {"exact", "none"} or float, default="exact"
        "exact" skips an item whose text equals that of a better or labelled item, except for case,
        white space and punctuation at the ends. If too few others are left, skipped items complete
        the batch, with a warning. A number also skips items whose base hidden state has at least
        this cosine similarity to one of those.
    diversity : {"none", "kmeans++", "k-centre"}, default="none"
        Choose items that differ from each other among the ``candidates * n`` most uncertain, by
        base hidden states weighted by uncertainty.
    candidates : int, default=10
        Number of candidates of a diverse batch, as a multiple of n.
    select : callable or None, default=None
        A query strategy of your own, ``select(scores, n, rng) -> indices``. It receives what the
        query ranks by, an array of shape (m,), and a NumPy generator, and returns n indices. With
        `sub_pool` or `screen`, m counts only the items that remain. `distinct` and `diversity` have
        no effect, and a `budget` removes items that it cannot pay.
    max_batch_tokens : int or None, default=None
        Largest number of padded tokens in one forward pass, over all K passes together. None starts
        with what suits the device and shrinks when memory runs out. Memory and speed depend on it,
        scores do not (in float32, see the performance notes).
    chunk_size : int, default=2048
        Number of items scored at a time. An interrupted query keeps its finished chunks. Scores do
        not depend on it.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "strategy": [StrOptions({"uncertainty", "random"})],
        "measure": [StrOptions({"entropy", "predictive_entropy", "mutual_information", "bald"})],
        "n_passes": [Interval(Integral, 1, None, closed="left")],
        "schedule": [StrOptions({"published"}), Interval(Real, 0, 1, closed="both"), "array-like"],
        "normalise": [StrOptions({"rank", "zscore", "none"})],
        "reduce": [StrOptions({"mean", "sum", "residual"})],
        "mask_mode": [StrOptions({"shared", "token"})],
        "mc_scope": [StrOptions({"all", "answer"})],
        "screen": [Interval(Integral, 1, None, closed="left"), None],
        "sub_pool": [Interval(Integral, 1, None, closed="left"), None],
        "distinct": [StrOptions({"exact", "none"}), Interval(Real, 0, 1, closed="right")],
        "diversity": [StrOptions({"none", "kmeans++", "k-centre"})],
        "candidates": [Interval(Integral, 1, None, closed="left")],
        "select": [callable, None],
        "max_batch_tokens": [Interval(Integral, 1, None, closed="left"), None],
        "chunk_size": [Interval(Integral, 1, None, closed="left")],
    }

    @with_hints
    def __init__(
        self,
        strategy: str = "uncertainty",
        measure: str = "mutual_information",
        n_passes: int = 3,
        schedule: str | float | Sequence[float] = 0.0,
        normalise: str = "rank",
        reduce: str = "mean",
        mask_mode: str = "shared",
        mc_scope: str = "all",
        screen: int | None = None,
        sub_pool: int | None = None,
        distinct: str | float = "exact",
        diversity: str = "none",
        candidates: int = 10,
        select: Callable[..., Any] | None = None,
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
        self.mc_scope = mc_scope
        self.screen = screen
        self.sub_pool = sub_pool
        self.distinct = distinct
        self.diversity = diversity
        self.candidates = candidates
        self.select = select
        self.max_batch_tokens = max_batch_tokens
        self.chunk_size = chunk_size

    def check(self) -> None:
        """Check every parameter, including the numbers of a schedule."""
        super().check()
        if isinstance(self.distinct, bool):  # True is the number 1 in Python
            raise InputError(
                "The 'distinct' parameter of Acquisition must be 'exact', 'none' or a cosine. Got "
                f"{self.distinct!r} instead."
            )
        uses_masks = self.strategy == "uncertainty" and self.resolved().measure not in (
            "entropy",
            "predictive_entropy",
        )
        if uses_masks and self.n_passes == 1:
            raise InputError(
                f"Acquisition(measure={self.measure!r}, n_passes=1): with one pass the mutual "
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

    def resolved(self) -> "Acquisition":
        """Return these settings with the measure by the name that is used here."""
        if self.measure not in SYNONYMS:
            return self
        found = copy(self)  # not `clone`, which copies the user's strategy too
        found.measure = SYNONYMS[self.measure]
        return found

    def without_select(self) -> "Acquisition":
        """Return these settings without the user's strategy, which scores do not depend on."""
        if self.select is None:
            return self
        found = copy(self)
        found.select = None
        return found

    @property
    def skips_labelled(self) -> bool:
        """Whether a batch is compared with the labelled items."""
        own = self.select is not None and self.strategy != "random"
        return self.distinct != "none" and not own

    @property
    def cosine_threshold(self) -> float | None:
        """Cosine similarity from which two items count as duplicates; None without one."""
        return None if isinstance(self.distinct, str) else float(self.distinct)

    def weights(self) -> list[float]:
        """Return lambda(0), lambda(1), ...; the last one holds for all later rounds."""
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
    """Settings of the training of one round.

    Parameters
    ----------
    epochs : int, default=3
        Passes over the labelled set. Ignored when `max_steps` is given.
    max_steps : int or None, default=None
        Number of optimiser steps, independent of the number of labels. Rounds then differ in their
        labels and not in the length of the training.
    batch_size : int, default=8
        Labelled items per forward pass of a step.
    learning_rate : float, default=1.5e-4
        Peak learning rate.
    scheduler : {"linear", "cosine", "constant"}, default="linear"
        Learning-rate schedule over the real number of optimiser steps.
    warmup_steps : int, default=0
        Steps over which the learning rate rises from 0.
    b_weight_decay : float, default=0.5
        Decoupled weight decay (AdamW) on B alone. A has none (arXiv 2403.01165, section 3.3).
    b_shrinkage : float from 0 to 20 or None, default=None
        The same penalty by its effect: without gradients, B would shrink by the factor
        exp(-b_shrinkage) over a whole training. It replaces `b_weight_decay`. The published value
        shrinks B by a few per cent.
    gradient_accumulation : int, default=1
        Forward passes per optimiser step. The result equals that of one large batch.
    gradient_checkpointing : bool, default=False
        Compute activations a second time in the backward pass. This takes less memory and about a
        third more time.
    max_grad_norm : float, default=1.0
        Gradients are clipped to this norm.
    warm_start : bool, default=False
        Continue with the previous round's adapter instead of a new one.

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
        """Check every parameter, and that the penalty shrinks B without changing its sign."""
        super().check()
        step = self.learning_rate * self.b_weight_decay
        if self.b_shrinkage is None and step >= 1:
            raise InputError(
                f"Training(learning_rate={self.learning_rate}, b_weight_decay="
                f"{self.b_weight_decay}) would multiply B by {1 - step:g} per step. Their product "
                "must be below 1. b_shrinkage sets how much B shrinks over a whole training."
            )

    @with_hints
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


class _Published(Mapping[str, Settings]):
    """Settings of STAR as published, created at each use, because they can be changed in place."""

    _made: ClassVar[dict[str, Callable[[], Settings]]] = {
        "adapter": lambda: LoRA(r=64, alpha=16, dropout=0.1),
        "acquisition": lambda: Acquisition(n_passes=3).set_params(**PUBLISHED_ACQUISITION),
        "training": lambda: Training(
            epochs=3, batch_size=8, learning_rate=1.5e-4, b_weight_decay=0.5
        ),
    }

    def __getitem__(self, name: str) -> Settings:
        return self._made[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


PUBLISHED: Mapping[str, Any] = _Published()
"""STAR as published (arXiv 2403.01165, section 4.1): ``STARLearner(model, task=task,
**PUBLISHED)``."""
