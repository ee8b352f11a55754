"""Monte-Carlo dropout on A: K stacked passes, each with one mask shared by tokens and items."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import LoraLayer
from starlearn_kernels.masks import feature_mask
from torch import Tensor, nn

from starlearn.errors import InputError


class StackedMasks(nn.Module):
    """Multiplies the input of A by the mask of its pass; stands in for the adapter's dropout."""

    def __init__(self, masks: Tensor) -> None:
        super().__init__()
        self.register_buffer("masks", masks, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mask K stacked passes.

        Parameters
        ----------
        x : Tensor of shape (K * B, T, D)
            Pass k in rows k * B to (k + 1) * B.
        """
        masks: Tensor = self.masks  # type: ignore[assignment]  # [K, D]
        stacked = x.reshape(masks.shape[0], -1, x.shape[-1])  # [K, B * T, D]
        return (stacked * masks[:, None, :].to(x.dtype)).reshape(x.shape)


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
def mc_dropout(model: Any, n_passes: int, seed: int) -> Iterator[int]:
    """Make the adapter's dropout random for K stacked passes, and nothing else.

    One mask is drawn per pass and module and shared by all tokens and all items:
    (x * m) A^T = x (A * m)^T, so the K passes are K networks drawn once (variational dropout,
    Gal and Ghahramani 2016), every item is judged by the same K, and the result depends on
    neither batch size nor order. Masks come from a counter, not from a generator's state.

    Parameters
    ----------
    model : peft.PeftModel
    n_passes : int
        K; inputs must be stacked to K * B rows, pass by pass.
    seed : int
        Decides the masks together with the position of the module in the model.

    Yields
    ------
    int
        The number of dropout modules that were switched on.

    Raises
    ------
    InputError
        When the adapter has no dropout, so that all passes would be the same.
    """
    switched: list[tuple[Any, str, nn.Module]] = []
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    try:
        for index, layer in enumerate(layers):
            for name in layer.active_adapters:
                dropout = layer.lora_dropout[name]
                if not isinstance(dropout, nn.Dropout):  # peft puts Identity where p is 0
                    continue
                weight = layer.lora_A[name].weight  # [r, D]
                masks = feature_mask(
                    seed=seed,
                    n_passes=n_passes,
                    layer=index,
                    module=0,
                    n_features=weight.shape[1],
                    p=dropout.p,
                    device=weight.device,
                    dtype=weight.dtype,
                )
                switched.append((layer, name, dropout))
                layer.lora_dropout[name] = StackedMasks(masks)
        if not switched:
            raise InputError(
                f"{n_passes} Monte-Carlo passes need dropout on the adapter, and it has none "
                "(LoRA(dropout=0) when it was trained). Train with LoRA(dropout=0.1), or ask for "
                "Acquisition(n_passes=1)."
            )
        yield len(switched)
    finally:
        for layer, name, dropout in switched:
            layer.lora_dropout[name] = dropout
