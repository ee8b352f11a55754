"""The table of routes: written from the benchmark's results, and read at the nearest shape."""

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import starlearn_kernels.routes as routes_module
import torch
from kernel_cases import assert_same_bits, make_case
from starlearn_kernels.routes import Choice, Row, choose_route, read_table, write_table

CUDA = torch.device("cuda")


def row(dtype: str, sizes: tuple[int, int, int], route: str, device: str = "cuda") -> Row:
    return Row(device, dtype, *sizes, route, "some times", "some card")


def choose(
    table: tuple[Row, ...],
    *sizes: int,
    device: torch.device = CUDA,
    dtype: torch.dtype = torch.bfloat16,
    hidden_dtype: torch.dtype | None = None,
) -> Choice:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes_module, "read_table", lambda: table)
        return choose_route(device, dtype, *sizes, hidden_dtype=hidden_dtype)


def chosen(table: tuple[Row, ...], *sizes: int, dtype: torch.dtype = torch.bfloat16) -> str:
    return choose(table, *sizes, dtype=dtype).route


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_module, "find_spec", lambda name: name)


def test_the_table_in_the_package_was_written_from_the_committed_rows(tmp_path: Path) -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "linear_entropy.csv"
    if not results.exists():
        pytest.skip("the results come with the repository, not with an installed package")
    assert write_table(results, tmp_path / "table.csv") == len(read_table())
    assert read_table(tmp_path / "table.csv") == read_table()


@pytest.mark.usefixtures("with_triton")
def test_every_row_in_the_package_names_a_route_that_auto_may_take() -> None:
    assert read_table()
    for line in read_table():
        assert line.route in routes_module.BOUNDED
        device = torch.device(line.device)
        dtype = getattr(torch, line.dtype)
        found = choose_route(device, dtype, line.passes, line.width, line.vocabulary)
        assert found.route == line.route
        assert line.hardware in found.reason


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_was_not_measured_takes_the_plain_route(device: str) -> None:
    table = (row("bfloat16", (4, 4096, 32000), "triton-fused", "cpu"),)
    found = choose(table, 4, 4096, 32000, device=torch.device(device))
    assert found.route == "torch"
    assert f"no row for {device}" in found.reason


@pytest.mark.usefixtures("with_triton")
def test_the_nearest_geometry_decides() -> None:
    table = (
        row("bfloat16", (1, 4096, 32000), "triton-fused"),
        row("bfloat16", (8, 4096, 32000), "triton-chunk"),
        row("bfloat16", (8, 64, 32000), "torch"),
        row("float32", (1, 4096, 32000), "torch"),
    )
    assert chosen(table, 1, 4096, 32000) == "triton-fused"
    assert chosen(table, 2, 4096, 32000) == "triton-fused"
    assert chosen(table, 6, 4096, 128256) == "triton-chunk"
    assert chosen(table, 8, 100, 32000) == "torch"
    # the same dtype comes first, then one of the same size
    assert chosen(table, 1, 4096, 32000, dtype=torch.float32) == "torch"
    assert chosen(table, 8, 64, 1, dtype=torch.float32) == "torch"
    assert chosen(table, 1, 4096, 32000, dtype=torch.float16) == "triton-fused"
    assert chosen(table[:1], 30, 1, 7, dtype=torch.float32) == "triton-fused"


@pytest.mark.usefixtures("with_triton")
def test_a_route_that_cannot_take_the_head_is_not_chosen() -> None:
    table = (row("bfloat16", (4, 4096, 32000), "triton-fused"),)
    mixed = choose(table, 4, 4096, 32000, hidden_dtype=torch.float32)
    many = choose(table, 65, 4096, 32000)
    assert mixed.route == many.route == "torch"
    assert "needs one dtype" in mixed.reason
    assert "at most 64 passes" in many.reason


def test_without_triton_the_kernels_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_module, "find_spec", lambda name: None)
    table = (row("bfloat16", (4, 4096, 32000), "triton-chunk"),)
    found = choose(table, 4, 4096, 32000)
    assert found.route == "torch"
    assert "triton is not installed" in found.reason


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A GPU that exists for torch and triton, with properties that a test may change."""
    triton = pytest.importorskip("triton")
    found: dict[str, Any] = {"capability": (9, 0), "error": None}

    def target() -> None:
        if found["error"]:
            raise found["error"]

    driver = SimpleNamespace(active=SimpleNamespace(get_current_target=target))
    monkeypatch.setattr(triton.runtime, "driver", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found["capability"])
    routes_module._obstacle_on.cache_clear()
    yield found
    routes_module._obstacle_on.cache_clear()


def on_gpu(dtype: torch.dtype = torch.bfloat16) -> Choice:
    routes_module._obstacle_on.cache_clear()
    table = (row("bfloat16", (4, 4096, 32000), "triton-fused"),)
    return choose(table, 4, 4096, 32000, dtype=dtype)


def test_where_triton_cannot_start_the_kernels_are_not_chosen(gpu: dict[str, Any]) -> None:
    assert on_gpu().route == "triton-fused"
    gpu["error"] = RuntimeError("Failed to find C compiler.")
    assert on_gpu().route == "torch"
    assert "RuntimeError: Failed to find C compiler." in on_gpu().reason
    assert "Python's headers" in on_gpu().reason


def test_a_gpu_before_ampere_and_rocm_take_the_plain_route(
    gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu["capability"] = (8, 0)
    assert on_gpu(torch.float16).route == "triton-fused"
    gpu["capability"] = (7, 5)
    assert on_gpu(torch.float16).route == "torch"
    assert "this GPU has 7.5" in on_gpu(torch.float16).reason
    gpu["capability"] = (9, 4)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert on_gpu().route == "torch"
    assert "ROCm" in on_gpu().reason


@pytest.mark.usefixtures("with_triton")
def test_auto_takes_what_the_table_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(seed, passes=2)
    assert_same_bits(case.run("auto"), case.run("torch"))
    table = (row("float32", (2, 16, 97), "triton-fused", "cpu"),)
    monkeypatch.setattr(routes_module, "read_table", lambda: table)
    with pytest.raises((ValueError, ModuleNotFoundError), match="triton"):
        case.run("auto")


def test_writing_keeps_the_last_row_of_the_largest_n_and_the_fastest_route(tmp_path: Path) -> None:
    fields = ("device_type", "device", "torch", "threads", "dtype", "K", "N", "D", "V")
    fields += ("contender", "workspace_mb", "ms_median")
    common = ("cuda", "a card", "2.13", 1, "bfloat16", 4)
    lines = [
        (*common, 512, 64, 1000, "torch", 64, "1.0"),
        (*common, 2048, 64, 1000, "torch", 64, "9.0"),
        (*common, 2048, 64, 1000, "torch", 64, "8.0"),  # measured again
        (*common, 2048, 64, 1000, "triton-fused", 64, "7.5"),
        (*common, 2048, 64, 1000, "triton-chunk", 600, "2.0"),  # more workspace than the default
        (*common, 2048, 64, 1000, "eager", 64, "1.0"),
        (*common, 2048, 64, 2000, "triton-fused", 64, ""),  # did not run
    ]
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([fields, *lines])
    assert write_table(tmp_path / "rows.csv", tmp_path / "table.csv") == 1
    (found,) = read_table(tmp_path / "table.csv")
    assert (found.passes, found.width, found.vocabulary) == (4, 64, 1000)
    assert found.route == "triton-fused"
    assert found.times == "triton-fused 7.5 ms at N = 2048, torch 8.0 ms at N = 2048"


def test_neither_package_imports_triton_before_a_triton_route_is_asked_for() -> None:
    code = """
import sys, torch, starlearn, starlearn.cli.app  # peft, which the models need, imports it
from starlearn_kernels import linear_entropy, lora_product
hidden, weight = torch.ones(2, 3, 4), torch.ones(5, 4)
linear_entropy(hidden, weight)
lora_product(hidden, weight, torch.ones(2, 4))
raise SystemExit("triton" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
