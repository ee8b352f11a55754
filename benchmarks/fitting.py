"""Memory needs by a model's shape, computed: bytes of weights, adapter and activations.

Compared with one model on one GPU (docs/memory.md). What can be checked on a CPU is: the number of
parameters, the bytes of packed weights, and what autograd keeps for the backward pass of one layer.
"""

from dataclasses import dataclass

from starlearn.errors import InputError

PACKED = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a weight in NF4: 4 bits, an 8-bit scale for 64 weights, a float32 one for 256 scales."""
HALF, FLOAT = 2, 4
"""Bytes of a number in bfloat16, and in float32, in which the adapter is kept and trained."""
CONTEXT = 1e9
"""Bytes that the driver, libraries and kernels take; 0.65 to 0.81 GB on an H100."""
MARGIN = 1.1
"""Factor for allocation in blocks; 1.05 to 1.15 measured, and more while answers are written."""
CARDS = (8, 16, 24, 80)
"""GB of memory of common cards."""


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama kind: gated feed-forward part, no biases."""

    name: str
    layers: int
    width: int
    """D."""
    inner: int
    """Of the feed-forward part, F."""
    queries: int
    """Width of all query heads together, Q."""
    keys: int
    """Width of all key heads together; values have the same."""
    vocabulary: int
    """V."""
    tied: bool = False
    """Whether embedding and head are one matrix."""

    def __post_init__(self) -> None:
        sizes = (self.layers, self.width, self.inner, self.queries, self.keys, self.vocabulary)
        if min(sizes) < 1:
            raise InputError(f"Every size of a Shape must be at least 1, got {self}.")

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Input and output width of the linear layers of one layer: q, k, v, o, gate, up, down."""
        d, f, q, k = self.width, self.inner, self.queries, self.keys
        return [(d, q), (d, k), (d, k), (q, d), (d, f), (d, f), (f, d)]

    @property
    def linear(self) -> int:
        """Weights that are stored in 4 bits."""
        return self.layers * sum(i * o for i, o in self.matrices)

    @property
    def others(self) -> int:
        """Weights that stay as they are: embedding, head, norms."""
        tables = self.vocabulary * self.width * (1 if self.tied else 2)
        return tables + (2 * self.layers + 1) * self.width

    @property
    def parameters(self) -> int:
        """All of the base model's weights."""
        return self.linear + self.others


SHAPES = (
    Shape("Llama-3.2-1B", 16, 2048, 8192, 2048, 512, 128256, tied=True),
    Shape("Llama-3.2-3B", 28, 3072, 8192, 3072, 1024, 128256, tied=True),
    Shape("Llama-3.1-8B", 32, 4096, 14336, 4096, 1024, 128256),
    Shape("Llama-2-13B", 40, 5120, 13824, 5120, 5120, 32000),
    Shape("Qwen2.5-32B", 64, 5120, 27648, 5120, 1024, 152064),
    Shape("Llama-3.1-70B", 80, 8192, 28672, 8192, 1024, 128256),
)
"""By their published configurations (Qwen's biases on q, k, v are left out: 0.001 % of it)."""


def weight_bytes(shape: Shape) -> float:
    """Bytes of the base model in NF4 with double quantisation, the rest in bfloat16."""
    return shape.linear * PACKED + shape.others * HALF


def adapter_parameters(shape: Shape, r: int) -> int:
    """Return the number of weights in A [r, in] and B [out, r] of all linear layers."""
    return shape.layers * r * sum(i + o for i, o in shape.matrices)


def kept_bytes(shape: Shape, r: int, itemsize: int = HALF, mask: int = 1) -> float:
    """Bytes that autograd keeps of one token in one layer, for the backward pass.

    Parameters
    ----------
    shape : Shape
    r : int
        Rank of the adapter.
    itemsize : int
        Bytes of a number of the base model's computation.
    mask : int
        Bytes of a number of a dropout mask: 1 on a GPU, 4 on a CPU.

    Notes
    -----
    Norms keep their input in float32; each adapted layer its input after dropout, in float32, the
    dropout mask, and the r numbers of A's output; attention q, k, v and its output; the gated part
    gate, its activation, and up.
    """
    norms = 2 * FLOAT * shape.width
    adapters = (FLOAT + mask) * sum(i for i, _ in shape.matrices) + 7 * FLOAT * r
    attention = 2 * shape.queries + 2 * shape.keys
    return norms + adapters + itemsize * (attention + 3 * shape.inner)


def training_bytes(
    shape: Shape, r: int, tokens: int, *, checkpointing: bool = False, logits: int | None = None
) -> float:
    """Peak bytes of a training step.

    Parameters
    ----------
    shape : Shape
    r : int
    tokens : int
        Of a batch, padding counted.
    checkpointing : bool
        ``Training(gradient_checkpointing=True)``: each layer keeps its input alone, and one layer
        at a time is computed again.
    logits : int, optional
        Rows of the batch at which the head is computed; None is all.

    Returns
    -------
    float
    """
    layer = kept_bytes(shape, r)
    kept = shape.layers * HALF * shape.width + layer if checkpointing else shape.layers * layer
    rows = tokens if logits is None else logits
    # Logits in float32, their softmax, and its gradient.
    head = rows * shape.vocabulary * 3 * FLOAT
    # Weights, gradients and the two moments of AdamW, all in float32.
    state = adapter_parameters(shape, r) * 4 * FLOAT
    return CONTEXT + MARGIN * (weight_bytes(shape) + state + tokens * kept + head)


def query_bytes(shape: Shape, r: int, tokens: int, workspace: float = 64e6) -> float:
    """Peak bytes of scoring; smaller batches take less, and a query shrinks them by itself.

    Parameters
    ----------
    shape : Shape
    r : int
    tokens : int
        Padded tokens of a batch, over all passes.
    workspace : float
        Of the entropy kernel, which never stores logits of all rows.

    Returns
    -------
    float
    """
    adapter = adapter_parameters(shape, r) * FLOAT
    # One layer at a time: its input and output, q, k, v, attention's output, gate, up, product; and
    # the product once more in float32, for the adapter.
    working = HALF * (4 * shape.width + 4 * shape.queries + 3 * shape.inner) + FLOAT * shape.inner
    return CONTEXT + MARGIN * (weight_bytes(shape) + adapter + tokens * working + workspace)


def smallest_card(needed: float) -> str:
    """Return the smallest common card with that many bytes."""
    return next((f"{gb} GB" for gb in CARDS if needed <= gb * 1e9), f"over {CARDS[-1]} GB")


def fitting_table(r: int = 64, batch: int = 8, length: int = 256) -> str:
    """Make the table of what fits, in Markdown: GB, and the smallest card.

    Parameters
    ----------
    r : int
        Rank of the adapter.
    batch, length : int
        Sequences of a training step, and their tokens.

    Returns
    -------
    str
    """
    heads = (
        "model",
        "parameters",
        "weights",
        "query, choices",
        "training, checkpointing",
        "training",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    tokens = batch * length
    for shape in SHAPES:
        needs = (
            query_bytes(shape, r, 4096),
            training_bytes(shape, r, tokens, checkpointing=True),
            training_bytes(shape, r, tokens),
        )
        cells = [
            shape.name,
            f"{shape.parameters / 1e9:.2f} billion",
            f"{weight_bytes(shape) / 1e9:.1f} GB",
            *(f"{need / 1e9:.1f} GB: {smallest_card(need)}" for need in needs),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
