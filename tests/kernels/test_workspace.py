"""Memory: no tensor exceeds the workspace for any N, and the plan computes it correctly."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import make_case
from starlearn_kernels import linear_entropy, lora_product
from starlearn_kernels.__main__ import main
from starlearn_kernels.plan import ALIGN, GRAIN, plan_torch, slack
from starlearn_kernels.routes import Choice
from torch.utils._python_dispatch import TorchDispatchMode


class LargestResult(TorchDispatchMode):
    """Remembers the storage of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor):
                # oneDNN's tensors have no storage
                plain = value.layout == torch.strided
                size = value.untyped_storage().nbytes() if plain else value.nbytes
                self.bytes = max(self.bytes, size)
        return result


def largest(call: Callable[[], object]) -> int:
    with LargestResult() as seen:
        call()
    return seen.bytes


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_tensor_grows_with_the_rows(seed: int, passes: int, dtype: torch.dtype) -> None:
    sizes = []
    for rows in (200, 1600):
        case = make_case(seed, passes=passes, rows=rows, width=8, vocabulary=4000, dtype=dtype)
        inputs = case.hidden.nbytes + case.weight.nbytes
        found = largest(lambda c=case: linear_entropy(c.hidden, c.weight, max_workspace_mb=3))
        assert found <= max(3e6, inputs)
        sizes.append(found)
    assert sizes[0] == sizes[1]


def test_the_lora_product_keeps_one_masked_a(seed: int) -> None:
    x, A, mask = torch.ones(8, 2, 3, 64), torch.ones(512, 64), torch.ones(8, 64)
    with torch.no_grad():
        found = largest(lambda: lora_product(x, A, mask))
    assert found <= A.nbytes


@given(
    st.integers(1, 200),
    st.sampled_from([1, 64, 777, 4096]),
    st.sampled_from([1, 97, 32000, 128256]),
    st.sampled_from([20, 64, 600]),
    st.booleans(),
)
def test_plans_fit_and_cover(
    passes: int, width: int, vocabulary: int, megabytes: int, copy: bool
) -> None:
    try:
        plan = plan_torch(
            "cpu", passes, width, vocabulary,
            itemsize=4, copy_weight=copy, max_workspace_mb=megabytes,
        )  # fmt: skip
    except ValueError as error:
        assert "`max_workspace_mb` must be at least" in str(error)  # noqa: PT017
        assert megabytes == 20
        return
    assert plan.workspace_bytes <= megabytes * 1e6
    assert plan.columns % ALIGN == 0
    assert plan.n_tiles * plan.columns >= vocabulary
    assert plan.rows == plan.tokens * passes
    assert plan.copy_weight or vocabulary % ALIGN == 0


@given(st.integers(1, 2**23), st.integers(1, 100))
def test_slack_makes_whole_vectors_of_every_threads_part(count: int, threads: int) -> None:
    padded = count + slack(count, threads)
    used = min(threads, -(-padded // GRAIN))  # as torch divides an elementwise operation
    assert padded % (ALIGN * used) == 0
    assert padded < count + ALIGN * threads


def test_a_larger_workspace_avoids_the_second_product() -> None:
    def keeps(megabytes: float) -> bool:
        return plan_torch(
            "cpu", 4, 512, 128256, itemsize=4, copy_weight=False, max_workspace_mb=megabytes
        ).keep

    assert keeps(64)
    assert not keeps(16)


PEAK = """
import sys, torch
from starlearn_kernels import linear_entropy
torch.set_num_threads(1)
rows, width, vocabulary, passes, megabytes = map(int, sys.argv[1:])
def kilobytes(name):
    return int(next(l for l in open("/proc/self/status") if l.startswith(name)).split()[1])
linear_entropy(torch.zeros(passes, 2, width), torch.zeros(64, width))
hidden, weight = torch.randn(passes, rows, width), torch.randn(vocabulary, width)
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
linear_entropy(hidden, weight, max_workspace_mb=megabytes)
print((kilobytes("VmHWM") - before) * 1024 / 1e6)
"""


def peak(*sizes: int) -> float:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    command = [sys.executable, "-c", PEAK, *map(str, sizes)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("passes", [1, 4])
def test_peak_memory(passes: int) -> None:
    # 5 MB for the library's own buffers and the outputs; all logits would be 131 MB per pass.
    assert peak(1024, 16, 32000, passes, 20) < 25


@pytest.mark.parametrize(
    ("passes", "rows"), [(1, 8192), pytest.param(4, 8192, marks=pytest.mark.slow)]
)
def test_peak_memory_at_full_size(passes: int, rows: int) -> None:
    # All logits would be 4.2 GB per pass.
    assert peak(rows, 16, 128256, passes, 64) <= 64


def test_the_command_prints_the_route_and_the_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--k", "4", "--v", "32000", "--d", "512", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "route: torch" in text
    assert "why: the fastest measured at K = 4" in text
    assert "computed once" in text
    assert main(["--max-workspace-mb", "0.001", "--device", "cpu"]) == 2
    assert "`max_workspace_mb` must be at least" in capsys.readouterr().out
    assert main(["--device", "mps"]) == 0
    assert "the table has no row for mps" in capsys.readouterr().out
    monkeypatch.setattr(
        "starlearn_kernels.__main__.choose_route", lambda *_: Choice("triton-fused", "so it was")
    )
    assert main(["--device", "cuda", "--k", "3"]) == 0
    assert "tiles stay on the chip; the product is computed twice" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--k", "0"])
