"""Chunks of the model's own logits give the statistics of the linear route."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, assert_close, make_case
from kernel_strategies import cases
from starlearn_kernels import logits_entropy


@given(cases(), st.sampled_from([64.0, 0.05]))
@settings(deadline=None, max_examples=25)
def test_equals_the_reference(case: Case, megabytes: float) -> None:
    def logits_of(rows: torch.Tensor) -> torch.Tensor:
        part = Case(rows[None], case.weight, case.bias, None, case.scale, case.softcap)
        return part.logits()[0]

    found = logits_entropy(
        logits_of, case.hidden, target=case.target, max_workspace_mb=megabytes
    ).tensors()
    assert_close(found, case.run("reference"), case.tolerance())


def test_two_dimensions_and_a_head_that_is_not_linear(seed: int) -> None:
    case = make_case(seed, rows=20, vocabulary=50)
    layer = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 50))
    found = logits_entropy(layer, case.hidden[0], target=case.target)
    right = torch.distributions.Categorical(logits=layer(case.hidden[0]).detach())
    torch.testing.assert_close(found.entropy, right.entropy(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.logprob, right.log_prob(case.target), atol=1e-5, rtol=0)
    assert found.entropy.shape == (20,)


def test_wrong_input_is_named() -> None:
    hidden = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"`logits_of`.*rows = 2"):
        logits_entropy(lambda rows: rows[0], hidden)
    with pytest.raises(TypeError, match=r"`logits_of`.*list"):
        logits_entropy(lambda rows: rows.tolist(), hidden)
    with pytest.raises(ValueError, match=r"`target`.*V - 1 = 3"):
        logits_entropy(lambda rows: rows, hidden, target=torch.tensor([0, 1, 4]))
    with pytest.raises(ValueError, match=r"`hidden`.*empty"):
        logits_entropy(lambda rows: rows, torch.zeros(0, 4))
