"""The memory table: its parts against real models on a CPU, and the page against the table."""

import csv
import os
from pathlib import Path
from typing import Any

import fitting
import pytest
import torch
from fitting import SHAPES, Shape
from tiny_models import build_model

from starlearn.errors import InputError

PAGE = Path(__file__).parent.parent / "docs" / "memory.md"
MARKS = "<!-- table -->\n", "\n<!-- end -->"
PUBLISHED = {
    "Llama-3.2-1B": 1.24e9,
    "Llama-3.2-3B": 3.21e9,
    "Llama-3.1-8B": 8.03e9,
    "Llama-2-13B": 13.02e9,
    "Qwen2.5-32B": 32.76e9,
    "Llama-3.1-70B": 70.55e9,
}
SMALL = Shape("small", 2, 128, 352, 128, 64, 70)


def small_model(folder: Path, layers: int) -> Any:
    from starlearn.model.backbone import Backbone

    sizes = {"hidden_size": SMALL.width, "intermediate_size": SMALL.inner}
    build_model(folder, num_hidden_layers=layers, **sizes)
    return Backbone(str(folder), "nf4", verbose=False)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_the_number_of_parameters_is_the_published_one(shape: Shape) -> None:
    assert shape.parameters == pytest.approx(PUBLISHED[shape.name], rel=0.005)


def test_weights_take_the_bytes_of_a_packed_model(tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    backbone = small_model(tmp_path, SMALL.layers)
    layers = [m for m in backbone.model.modules() if isinstance(m, Linear4bit)]
    weights = sum(m.in_features * m.out_features for m in layers)
    packed = sum(m.weight.untyped_storage().nbytes() for m in layers)
    for layer in layers:
        state = layer.weight.quant_state
        packed += state.absmax.nbytes + state.state2.absmax.nbytes
    assert weights == SMALL.linear
    # Scales are rounded up to whole blocks, which shows in matrices as small as these.
    assert packed == pytest.approx(weights * fitting.PACKED, rel=0.01)
    others = [p for p in backbone.model.parameters() if p.dtype.is_floating_point]
    vocabulary = backbone.config.vocab_size
    expected = Shape("small", 2, 128, 352, 128, 64, vocabulary).others
    assert sum(p.numel() for p in others) == expected


def kept(folder: Path, layers: int, tokens: int, r: int) -> int:
    """Count the bytes that autograd keeps of a forward pass, weights left out."""
    from starlearn.model.adapter import attach_fresh
    from starlearn.settings import LoRA

    model = attach_fresh(small_model(folder, layers), LoRA(r=r), 0).train()
    own = [*model.parameters(), *model.buffers()]
    weights = {tensor.untyped_storage().data_ptr() for tensor in own}
    found: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:  # a view of part of it is kept no cheaper than the whole
            found[place] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=torch.full((1, tokens), 5)).logits.sum()
    return sum(size for size, _ in found.values())


def test_training_keeps_what_is_computed(tmp_path: Path) -> None:
    tokens, r = 48, 16
    two, four = (kept(tmp_path / str(n), n, tokens, r) for n in (2, 4))
    measured = (four - two) / 2 / tokens
    # On a CPU all is float32 and a dropout mask has 4 bytes a number.
    assert measured == pytest.approx(fitting.kept_bytes(SMALL, r, itemsize=4, mask=4), rel=0.01)


def test_the_adapter_has_the_parameters_of_a_real_one(tmp_path: Path) -> None:
    from starlearn.model.adapter import attach_fresh
    from starlearn.settings import LoRA

    model = attach_fresh(small_model(tmp_path, SMALL.layers), LoRA(r=8), 0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == fitting.adapter_parameters(SMALL, 8)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_more_needs_more(shape: Shape) -> None:
    query = fitting.query_bytes(shape, 64, 1000)
    saving = fitting.training_bytes(shape, 64, 1000, checkpointing=True)
    full = fitting.training_bytes(shape, 64, 1000)
    assert fitting.weight_bytes(shape) < query < saving < full
    assert fitting.training_bytes(shape, 64, 2000) > full
    assert fitting.training_bytes(shape, 8, 1000) < full
    assert fitting.training_bytes(shape, 64, 1000, logits=100) < full


def test_cards_and_sizes() -> None:
    assert fitting.smallest_card(8e9) == "8 GB"
    assert fitting.smallest_card(8.1e9) == "16 GB"
    assert fitting.smallest_card(81e9) == "over 80 GB"
    with pytest.raises(InputError, match="at least 1"):
        Shape("none", 0, 1, 1, 1, 1, 1)


def test_tensors_computed_are_within_a_tenth_of_those_measured_on_a_gpu() -> None:
    rows = Path(__file__).parents[1] / "benchmarks" / "results" / "gpu_memory.csv"
    shapes = {shape.name: shape for shape in SHAPES}
    with rows.open(newline="", encoding="utf-8") as file:
        # Keys and values of answers that are being written are not computed.
        lines = [line for line in csv.DictReader(file) if "free-form" not in line["what"]]
    assert len(lines) >= 5
    for line in lines:
        shape, r, tokens = shapes[line["shape"]], int(line["r"] or 0), int(line["tokens"] or 0)
        if line["what"] == "weights":
            bare = fitting.weight_bytes(shape)
        else:
            if line["what"] == "training":
                checkpointing = line["checkpointing"] == "True"
                whole = fitting.training_bytes(shape, r, tokens, checkpointing=checkpointing)
            else:
                whole = fitting.query_bytes(shape, r, tokens)
            assert float(line["computed_gb"]) == pytest.approx(whole / 1e9, abs=1e-3)
            bare = (whole - fitting.CONTEXT) / fitting.MARGIN
        measured = float(line["measured_allocated_gb"]) * 1e9
        assert measured == pytest.approx(bare, rel=0.1), line["what"]
        assert float(line["context_gb"]) * 1e9 < fitting.CONTEXT


def test_the_page_shows_the_table_and_says_that_it_is_computed() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    shown, _, after = rest.partition(MARKS[1])
    table = fitting.fitting_table()
    if os.environ.get("STARLEARN_WRITE_DOCS"):
        PAGE.write_text(before + MARKS[0] + table + MARKS[1] + after, encoding="utf-8")
        shown = table
    assert shown == table
    assert "computed, not measured" in text
