"""The public operation `linear_entropy`: checks, choice of a route, and the call."""

from collections.abc import Callable

import torch
from torch import Tensor

from starlearn_kernels.checks import check_choice, check_head, check_number
from starlearn_kernels.chunked import chunked
from starlearn_kernels.reference import reference
from starlearn_kernels.routes import ROUTES, choose_route
from starlearn_kernels.stats import EntropyStats, Head


def linear_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    target: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    route: str = "auto",
    max_workspace_mb: float = 64,
) -> EntropyStats:
    """Return entropies of softmax(head(hidden)) without storing the logits.

    The logits are ``cap(scale * hidden @ weight.T + bias)``, where ``cap(x) = softcap *
    tanh(x / softcap)`` if there is a soft cap. Only the reference stores N x V numbers.

    Parameters
    ----------
    hidden : Tensor [N, D] or [K, N, D]
        Hidden states after the final norm, of one pass or of K; float32, bfloat16 or float16.
    weight : Tensor [V, D]
        Weight of the head, on the same device, in any of the three dtypes.
    bias : Tensor [V], optional
        Added after ``scale`` and before the soft cap. -inf masks a column where there is no cap.
    target : Tensor [N], optional
        Token ids in 0 .. V - 1, int64 or int32, for ``logprob``.
    scale : float
        Logit scale (Cohere: ``logit_scale``; Granite: 1 / ``logits_scaling``).
    softcap : float, optional
        Final soft cap (Gemma 2).
    route : {"auto", "reference", "torch", "triton-fused", "triton-chunk"}
        "auto" takes the route that was fastest in the benchmark at the nearest device, dtype, K, D
        and V (routes.csv). N and the values do not matter.
    max_workspace_mb : float
        Upper bound on memory without inputs and outputs, in MB of 10^6 bytes. With K > 1 a larger
        one may be faster: if the logits of a block fit, the product is not computed twice. The
        reference ignores it.

    Returns
    -------
    EntropyStats
        float32, in nats, without gradients. Fields [K, N], or [N] for two-dimensional ``hidden``.

    Notes
    -----
    On a CPU the bits of a row do not depend on the other rows. The routes differ from each other by
    rounding. Rows are computed in blocks of 128, so collect small batches before the call. The
    README states what holds on a GPU.

    Examples
    --------
    >>> import math
    >>> stats = linear_entropy(torch.zeros(3, 4), torch.ones(8, 4))
    >>> bool((stats.entropy - math.log(8)).abs().max() < 1e-6)
    True
    """
    head = check_head(hidden, weight, bias, target, scale, softcap)
    check_choice("route", route, ("auto", *ROUTES))
    budget = check_number("max_workspace_mb", max_workspace_mb, "a number above 0")
    passes, _, width, vocabulary = head.sizes
    if route == "auto":
        device, dtype = hidden.device, weight.dtype
        route = choose_route(
            device, dtype, passes, width, vocabulary, hidden_dtype=hidden.dtype
        ).route
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.no_grad(), torch.cuda.device_of(hidden):
        stats = _route(route)(head, budget)
    return stats if hidden.dim() == 3 else stats.squeezed()


def _route(name: str) -> Callable[[Head, float], EntropyStats]:
    if name == "reference":
        return lambda head, _: reference(head)
    if name == "torch":
        return chunked
    # triton is a large library that a CPU does not need, so only these routes import it.
    try:
        from starlearn_kernels.launch import cached, fused
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"`route` {name!r} needs triton (pip install triton); use 'torch' or 'auto'"
        ) from error
    return fused if name == "triton-fused" else cached
