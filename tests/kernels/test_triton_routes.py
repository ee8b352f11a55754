"""The Triton routes: in the interpreter on a CPU, compiled on a GPU, otherwise refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_cases import make_case

pytest.importorskip("triton", reason="the Triton routes need triton")
CHECKS = Path(__file__).with_name("interpreted.py")


def run_checks(chosen: str, **environment: str) -> None:
    # A separate process, because the interpreter is chosen when the kernels are decorated.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen]
    result = subprocess.run(
        [*command, str(CHECKS)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@pytest.mark.parametrize("chosen", ["triton-fused", "not triton-fused"])
def test_through_the_interpreter(chosen: str) -> None:
    run_checks(chosen, TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_the_gpu() -> None:
    run_checks("", TRITON_INTERPRET="0")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes CPUs")
@pytest.mark.parametrize("route", ["triton-fused", "triton-chunk"])
def test_a_cpu_is_refused(seed: int, route: str) -> None:
    with pytest.raises(ValueError, match=r"`route`.*CUDA device.*cpu"):
        make_case(seed).run(route)


def test_the_message_without_triton_contains_the_command_to_install_it() -> None:
    code = """
import sys, torch
sys.modules["triton"] = None
from starlearn_kernels import linear_entropy
head = torch.zeros(3, 4), torch.zeros(5, 4)
linear_entropy(*head)
try:
    linear_entropy(*head, route="triton-fused")
except ModuleNotFoundError as error:
    assert "pip install triton" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
