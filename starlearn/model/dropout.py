"""Monte-Carlo dropout on A: K stacked passes, each with masks drawn from a counter."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from starlearn_kernels.masks import feature_mask, lora_product, token_mask
from torch import Tensor, nn

from starlearn.errors import InputError


@dataclass
class MonteCarlo:
    """K passes whose dropout is switched on, as the modules and their caller both see them."""

    n_passes: int
    """K; a batch of B items becomes K * B rows, pass k in rows k * B to (k + 1) * B - 1."""
    answer_only: bool = False
    """Dropout acts on the last token of the prompt and on the answer; the rest of the prompt is
    computed once for all passes."""
    per_token: bool = False
    """Each token has masks of its own."""
    active: bool = True
    """False while the shared part of the prompt is computed, without dropout and without copies."""
    item_keys: Tensor | None = None
    """A number for each item, [B]; with masks per token."""
    positions: Tensor | None = None
    """Place of each token in its item, [B, T]; with masks per token."""
    n_modules: int = field(default=0, init=False)
    """Dropout modules that were switched on."""

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Run the adapter as it is in prediction."""
        self.active = False
        try:
            yield
        finally:
            self.active = True


class MaskedA(nn.Module):
    """Stands in for A: (x * m) A^T = x (A * m)^T, with one mask m a pass for all tokens and items.

    Parameters
    ----------
    linear : nn.Linear
        A, weight of shape (r, D).
    masks : Tensor of shape (K, D)
    passes : MonteCarlo
    """

    def __init__(self, linear: nn.Linear, masks: Tensor, passes: MonteCarlo) -> None:
        super().__init__()
        self.linear = linear
        self.passes = passes
        self.register_buffer("masks", masks, persistent=False)

    @property
    def weight(self) -> Tensor:
        """A, whose type peft asks for."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        """Multiply K stacked passes, each by its own A.

        Parameters
        ----------
        x : Tensor of shape (K * B, T, D)

        Returns
        -------
        Tensor of shape (K * B, T, r)
        """
        if not self.passes.active:
            return self.linear(x)
        masks: Tensor = self.masks  # type: ignore[assignment]  # [K, D]
        stacked = x.reshape(masks.shape[0], -1, x.shape[-1])  # [K, B * T, D]
        return lora_product(stacked, self.weight, masks).reshape(*x.shape[:-1], -1)


class TokenMasks(nn.Module):
    """Stands in for the adapter's dropout: a mask for each token, keyed by item and position.

    It is the noise of training, where ``nn.Dropout`` draws a mask for each token, made
    independent of the batch.
    """

    def __init__(self, draw: Callable[[Tensor, Tensor, torch.dtype], Tensor], passes: MonteCarlo):
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
        return x * self.draw(keys, positions, x.dtype).reshape(x.shape)


@dataclass(frozen=True)
class Draw:
    """Draws the masks of one module: weight A [r, D], its number in the model, p, K, seed."""

    weight: Tensor
    layer: int
    p: float
    n_passes: int
    seed: int

    def shared(self) -> Tensor:
        """Masks of shape (K, D)."""
        return feature_mask(dtype=self.weight.dtype, **self._arguments())

    def by_token(self, item_keys: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """Masks of shape (K, B, T, D)."""
        return token_mask(
            item_keys=item_keys, positions=positions, dtype=dtype, **self._arguments()
        )

    def _arguments(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "n_passes": self.n_passes,
            "layer": self.layer,
            "module": 0,
            "n_features": self.weight.shape[1],
            "p": self.p,
            "device": self.weight.device,
        }


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch every module to evaluation, and give each its own mode back afterwards."""
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
    """Make the adapter's dropout random for K stacked passes, and nothing else.

    Parameters
    ----------
    model : peft.PeftModel
    n_passes : int
        K.
    seed : int
        Decides the masks together with the place of the module in the model.
    mask_mode : {"shared", "token"}
        "shared": one mask per pass and module for all tokens and all items, so that the K passes
        are K networks drawn once (variational dropout, Gal and Ghahramani 2016) and every item is
        judged by the same K. "token": a mask for each token, as in training. Either comes from a
        counter, so the result depends on neither batch size nor order.
    answer_only : bool
        Dropout at the answer's positions only; the prompt runs once for all passes.

    Yields
    ------
    MonteCarlo

    Raises
    ------
    InputError
        When the adapter has no dropout, so that all passes would be the same.
    """
    adapted = [module for module in model.modules() if isinstance(module, LoraLayer)]
    passes = MonteCarlo(n_passes, answer_only=answer_only, per_token=mask_mode == "token")
    undo: list[tuple[nn.ModuleDict, str, nn.Module]] = []

    def stand_in(modules: nn.ModuleDict, name: str, module: nn.Module) -> None:
        undo.append((modules, name, modules[name]))
        modules[name] = module

    try:
        for index, layer in enumerate(adapted):
            for name in layer.active_adapters:
                dropout = layer.lora_dropout[name]
                if not isinstance(dropout, nn.Dropout):  # peft puts Identity where p is 0
                    continue
                draw = Draw(layer.lora_A[name].weight, index, dropout.p, n_passes, seed)
                if not passes.per_token:
                    stand_in(layer.lora_dropout, name, nn.Identity())
                    masked = MaskedA(layer.lora_A[name], draw.shared(), passes)
                    stand_in(layer.lora_A, name, masked)
                else:
                    stand_in(layer.lora_dropout, name, TokenMasks(draw.by_token, passes))
                passes.n_modules += 1
        if not passes.n_modules:
            raise InputError(
                f"{n_passes} Monte-Carlo passes need dropout on the adapter, and it has none "
                "(LoRA(dropout=0) when it was trained). Train with LoRA(dropout=0.1), or ask for "
                "Acquisition(n_passes=1, measure='entropy')."
            )
        yield passes
    finally:
        for modules, name, module in reversed(undo):
            modules[name] = module
