"""Monte-Carlo dropout on the adapter: K stacked passes with masks drawn from a counter."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from peft.tuners.lora import LoraLayer
from starlearn_kernels.masks import feature_mask, lora_product, token_mask
from torch import Tensor, nn

from starlearn.errors import InputError


@dataclass
class MonteCarlo:
    """State of K passes with dropout, shared by the modules and by the code that runs them."""

    n_passes: int
    """K; a batch of B items becomes K * B rows, pass k in rows k * B to (k + 1) * B - 1."""
    answer_only: bool = False
    """Whether dropout acts only on the prompt's last token and on the answer; the rest of the
    prompt then runs once for all passes."""
    active: bool = True
    """False while the shared part of the prompt runs, without dropout and without copies."""
    item_keys: Tensor | None = None
    """Number of each item, [B]; for masks per token."""
    positions: Tensor | None = None
    """Position of each token in its item, [B, T]; for masks per token."""
    n_modules: int = field(default=0, init=False)
    """Number of dropout modules that are switched on."""

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Run the adapter as in prediction."""
        self.active = False
        try:
            yield
        finally:
            self.active = True


class MaskedA(nn.Module):
    """Replacement of A [r, D] in which each pass has one mask m for all tokens and items, [K, D].

    Masking A instead of the input gives the same product, (x * m) A^T = x (A * m)^T, and touches
    r * D numbers instead of B * T * D. See `starlearn_kernels.lora_product`.
    """

    def __init__(self, linear: nn.Linear, masks: Tensor, passes: MonteCarlo) -> None:
        super().__init__()
        self.linear = linear
        self.passes = passes
        self.register_buffer("masks", masks, persistent=False)

    @property
    def weight(self) -> Tensor:
        """A; peft reads its dtype."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        """Multiply K stacked passes, each by its own A: [K * B, T, D] to [K * B, T, r]."""
        if not self.passes.active:
            return self.linear(x)
        masks: Tensor = self.masks  # type: ignore[assignment]  # [K, D]
        stacked = x.reshape(masks.shape[0], -1, x.shape[-1])  # [K, B * T, D]
        return lora_product(stacked, self.weight, masks).reshape(*x.shape[:-1], -1)


class TokenMasks(nn.Module):
    """Replacement of the adapter's dropout with a mask per token, keyed by item and position.

    The noise has the distribution of training, where ``nn.Dropout`` draws a mask per token, but it
    does not depend on the batch.
    """

    def __init__(self, draw: Callable[..., Tensor], passes: MonteCarlo) -> None:
        super().__init__()
        self.draw = draw
        self.passes = passes

    def forward(self, x: Tensor) -> Tensor:
        """Mask K stacked passes, x of shape (K * B, T, D)."""
        if not self.passes.active:
            return x
        keys, positions = self.passes.item_keys, self.passes.positions
        if keys is None or positions is None:
            raise ValueError("masks per token need item_keys and positions before the model runs")
        masks = self.draw(item_keys=keys, positions=positions, dtype=x.dtype)  # [K, B, T, D]
        return x * masks.reshape(x.shape)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch every module to evaluation, and restore each module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def mc_dropout(
    model: Any,
    n_passes: int,
    seed: int,
    *,
    mask_mode: str = "shared",
    answer_only: bool = False,
) -> Iterator[MonteCarlo]:
    """Switch on the adapter's dropout, and nothing else, for K stacked passes.

    With `mask_mode` "shared" there is one mask per pass and module for all tokens and all items.
    The K passes are then K networks drawn once (variational dropout, Gal and Ghahramani 2016), and
    the same K score every item. With "token" there is one mask per token, as in training. Both are
    drawn from a counter by the seed and the module's place in the model, so that the result depends
    on neither the batch size nor the order.
    """
    adapted = [module for module in model.modules() if isinstance(module, LoraLayer)]
    passes = MonteCarlo(n_passes, answer_only=answer_only)
    undo: list[tuple[nn.ModuleDict, str, nn.Module]] = []

    def replace(modules: nn.ModuleDict, name: str, module: nn.Module) -> None:
        undo.append((modules, name, modules[name]))
        modules[name] = module

    try:
        for index, layer in enumerate(adapted):
            for name in layer.active_adapters:
                dropout = layer.lora_dropout[name]
                if not isinstance(dropout, nn.Dropout):  # peft puts Identity where p is 0
                    continue
                linear = layer.lora_A[name]
                of_module: dict[str, Any] = {
                    "seed": seed,
                    "n_passes": n_passes,
                    "layer": index,
                    "module": 0,
                    "n_features": linear.weight.shape[1],
                    "p": dropout.p,
                    "device": linear.weight.device,
                }
                if mask_mode == "token":
                    masked = TokenMasks(partial(token_mask, **of_module), passes)
                    replace(layer.lora_dropout, name, masked)
                else:
                    masks = feature_mask(dtype=linear.weight.dtype, **of_module)  # [K, D]
                    replace(layer.lora_dropout, name, nn.Identity())
                    replace(layer.lora_A, name, MaskedA(linear, masks, passes))
                passes.n_modules += 1
        if not passes.n_modules:
            raise InputError(
                f"{n_passes} Monte-Carlo passes need dropout on the adapter, but it was trained "
                "with LoRA(dropout=0). Train with LoRA(dropout=0.1), or use "
                "Acquisition(n_passes=1, measure='entropy')."
            )
        yield passes
    finally:
        for modules, name, module in reversed(undo):
            modules[name] = module
