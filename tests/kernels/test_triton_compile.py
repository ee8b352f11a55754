"""The Triton kernels compile without a GPU, and hardly any register spills with our tiles."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="the Triton routes need triton")

from starlearn_kernels import launch, triton_entropy  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

FLOATS = ("alpha", "cap")
WHOLE = (
    "n_rows", "vocabulary", "splits", "tiles_per_split", "total", "offset", "stride", "used",
    "tokens",
)  # fmt: skip
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# Every branch of the step from products to logits.
FULL = {"HAS_BIAS": True, "HAS_CAP": True}
SHAPE = {"D": 4096, "TAIL": True, "UPCAST": False, "GROUP": launch.GROUP}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET=1: nothing is compiled")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def report(
    name: str,
    dtype: torch.dtype,
    constants: dict[str, object],
    options: dict[str, int | bool],
    architecture: int = 90,
    tma: dict[str, list[int]] | None = None,
) -> tuple[int, str]:
    """Compile a kernel; return the number of bytes that it spills, and its PTX."""
    kernel = getattr(triton_entropy, name)
    inputs = ("hidden", "hidden_ptr", "weight", "bias_ptr")
    signature, aligned = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if tma and argument in tma:
            block = ",".join(map(str, tma[argument]))
            signature[argument] = f"tensordesc<{NAMES[dtype]}[{block}]>"
        elif argument in constants:
            signature[argument] = "constexpr"
        elif argument in FLOATS:
            signature[argument] = "fp32"
        elif argument in WHOLE:
            signature[argument] = "i32"
        else:
            signature[argument] = "*" + (NAMES[dtype] if argument in inputs else "fp32")
            aligned[(place,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", architecture, 32),
        options={"enable_fp_fusion": True, **options},
    )
    return assemble(compiled.asm["ptx"]), compiled.asm["ptx"]


def assemble(ptx: str) -> int:
    target = re.search(r"\.target (\w+)", ptx)
    assert target
    tool = triton.knobs.nvidia.ptxas_blackwell.path
    command = [tool, "-v", f"--gpu-name={target[1]}", "--regAllocOptLevel=2", "-o", "/dev/null"]
    result = subprocess.run([*command, "-"], input=ptx, capture_output=True, text=True, check=True)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", result.stderr)
    assert spills, f"ptxas reported nothing on spills: {result.stderr}"
    return sum(map(int, spills))


def first_look(
    tiles: launch.Tiles, dtype: torch.dtype, architecture: int = 90, *, capped: bool = True
) -> tuple[int, str]:
    constants = {**FULL, **SHAPE, **tiles.blocks, "HAS_CAP": capped}
    constants["TMA"] = tiles.descriptors
    blocks = {"hidden": [tiles.rows, tiles.depth], "weight": [tiles.columns, tiles.depth]}
    tma = blocks if tiles.descriptors else None
    return report("first_look", dtype, constants, tiles.options, architecture, tma)


def second_look(
    tiles: launch.Tiles,
    dtype: torch.dtype,
    passes: int,
    architecture: int = 90,
    *,
    capped: bool = True,
) -> tuple[int, str]:
    padded = triton.next_power_of_2(passes)
    constants = {**FULL, **SHAPE, **tiles.blocks, "K": passes, "K_PAD": padded, "HAS_CAP": capped}
    constants["TMA"] = tiles.descriptors
    blocks = {
        "hidden": [padded, tiles.rows // padded, tiles.depth],
        "weight": [tiles.columns, tiles.depth],
    }
    tma = blocks if tiles.descriptors else None
    return report("second_look", dtype, constants, tiles.options, architecture, tma)


def hopper_second(
    dtype: torch.dtype = torch.bfloat16, *, aligned: bool = True, capped: bool = True
) -> launch.Tiles:
    return launch.second_tiles(dtype, 4096, hopper=True, aligned=aligned, capped=capped)


def test_first_look_with_descriptors() -> None:
    tiles = launch.first_tiles(torch.bfloat16, 4096, hopper=True, aligned=True)
    assert tiles.descriptors
    spilled, ptx = first_look(tiles, torch.bfloat16)
    assert spilled == 0
    assert ".target sm_90a" in ptx
    assert "wgmma.mma_async" in ptx, "the product must use Hopper's tensor cores"
    assert "cp.async.bulk.tensor" in ptx, "the tiles must come by descriptors"
    # Flattened, it spills a little, but was measured to be faster.
    assert first_look(tiles, torch.bfloat16, capped=False)[0] <= 128


def test_second_look() -> None:
    tiles = hopper_second(capped=False)
    assert tiles.descriptors
    spilled, ptx = second_look(tiles, torch.bfloat16, 8, capped=False)
    assert spilled == 0
    assert "cp.async.bulk.tensor" in ptx
    assert "wgmma.mma_async" in ptx


@pytest.mark.parametrize("name", ["cached_first", "cached_second", "merge", "add_splits"])
def test_small_kernels(name: str) -> None:
    constants: dict[str, dict[str, object]] = {
        "cached_first": {**FULL, "BLOCK_M": launch.CACHED_ROWS, "BLOCK_V": launch.CACHED_COLUMNS},
        "cached_second": {**FULL, "K": 8, "K_PAD": 8, "BLOCK_V": launch.CACHED_COLUMNS},
        "merge": {"BLOCK_M": launch.MERGE_ROWS},
        "add_splits": {"BLOCK_M": launch.MERGE_ROWS},
    }
    options = launch.CACHED if name.startswith("cached") else {}
    spilled, _ = report(name, torch.bfloat16, constants[name], options)
    assert spilled == 0


@pytest.mark.slow
@pytest.mark.parametrize("passes", [2, 3, 4, 16, 32, 64])
def test_second_look_of_any_number_of_passes(passes: int) -> None:
    for capped in (True, False):
        tiles = hopper_second(capped=capped)
        assert second_look(tiles, torch.bfloat16, passes, capped=capped)[0] == 0


@pytest.mark.parametrize("dtype", list(NAMES), ids=str)
def test_every_dtype_and_alignment(dtype: torch.dtype) -> None:
    for aligned in (True, False):
        tiles = launch.first_tiles(dtype, 4096, hopper=True, aligned=aligned)
        assert first_look(tiles, dtype)[0] == 0
        assert second_look(hopper_second(dtype, aligned=aligned), dtype, 4)[0] == 0


@pytest.mark.parametrize("architecture", [80, 89, 120])
def test_other_than_hopper(architecture: int) -> None:
    tiles = launch.first_tiles(torch.bfloat16, 4096, hopper=False, aligned=True)
    assert first_look(tiles, torch.bfloat16, architecture)[0] == 0
    tiles = launch.second_tiles(torch.bfloat16, 4096, hopper=False, aligned=True, capped=True)
    assert second_look(tiles, torch.bfloat16, 8, architecture)[0] == 0


@pytest.mark.slow
def test_the_report_contains_spills() -> None:
    # A tile that does not fit, because half the warps hold twice the numbers.
    tiles = launch.Tiles(128, 128, 64, warps=4, stages=3)
    assert second_look(tiles, torch.bfloat16, 4)[0] > 0
