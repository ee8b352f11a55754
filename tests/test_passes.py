"""K stacked passes give the numbers of the plain way to compute them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build_model
from workloads import numbers, sequences, workload

from starlearn.errors import InputError
from starlearn.model.adapter import attach_fresh
from starlearn.model.backbone import Backbone
from starlearn.model.choices import build_tree, choice_distribution
from starlearn.model.dropout import MaskedA, evaluation_mode, mc_dropout
from starlearn.model.forward import row_hidden
from starlearn.model.free_form import answer_scores
from starlearn.settings import LoRA

EOS = 2
PROMPTS = [[5, 9, 12, 7, 22], [8, 9], [30, 31, 32, 33, 34, 35, 36], [6]]
ANSWERS = [[7, 8, EOS], [9], [5, 5, 5, 5, EOS], [6, EOS]]
CHOICES = [[5, 6], [5, 7], [8]]
LAYERS = 3


def with_adapter(folder: Path) -> Any:
    backbone = Backbone(folder, "nf4", verbose=False)
    model = attach_fresh(backbone, LoRA(r=4, dropout=0.3), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("three-layers")
    return with_adapter(build_model(folder, num_hidden_layers=LAYERS))


def scores(model: Any, tokens: int = 4096, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return distributions over choices and entropies of free-form answers in 3 passes."""
    with mc_dropout(model, 3, seed=4, **options) as passes:
        work = workload(model, dropout=passes, tokens=tokens)
        choices = choice_distribution(work, build_tree(CHOICES, EOS), PROMPTS, numbers(4))
        answers = answer_scores(work, PROMPTS, ANSWERS, numbers(4))
    return choices, answers[:, 0]


def test_a_pass_is_the_adapter_with_its_own_masked_a(model: Any) -> None:
    """Each of K passes equals one pass without dropout and with A replaced by A * mask."""
    ids, rows = torch.tensor([[5, 9, 12, 7], [8, 9, 6, 5]]), torch.tensor([[3], [2]])
    with torch.no_grad(), mc_dropout(model, 3, seed=4) as passes:
        stacked = row_hidden(model, sequences(ids, rows), passes)
        masked = [module for module in model.modules() if isinstance(module, MaskedA)]
        assert len(masked) == LAYERS * 7
        kept = [(module.weight, module.weight.clone(), module.masks.clone()) for module in masked]
    for number in range(3):
        try:
            with torch.no_grad():
                for weight, original, masks in kept:
                    weight.copy_(original * masks[number])
                alone = row_hidden(model, sequences(ids, rows))
        finally:
            with torch.no_grad():
                for weight, original, _ in kept:
                    weight.copy_(original)
        assert torch.allclose(stacked[number], alone[0], atol=1e-5)


def test_a_shared_prompt_gives_what_masks_at_answer_rows_give(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain way is whole passes without a mask before the prompt's last token."""
    quick = scores(model, answer_only=True)
    whole = scores(model)

    def forward(self: MaskedA, x: torch.Tensor) -> torch.Tensor:
        length = int(starts["prompt"]) - 1
        masks = self.masks.repeat_interleave(len(x) // len(self.masks), 0)[:, None]  # [K * B, 1, D]
        late = torch.arange(x.shape[1])[None, :, None] >= length
        return torch.nn.functional.linear(torch.where(late, x * masks, x), self.weight)

    starts: dict[str, int] = {}
    monkeypatch.setattr(MaskedA, "forward", forward)
    with mc_dropout(model, 3, seed=4) as passes:
        work = workload(model, dropout=passes)
        for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
            starts["prompt"] = len(prompt)
            tree = build_tree(CHOICES, EOS)
            choices = choice_distribution(work, tree, [prompt], numbers(1))
            statistics = answer_scores(work, [prompt], [answer], numbers(1))
            assert quick[0][:, row] == pytest.approx(choices[:, 0], abs=1e-4)
            assert quick[1][row] == pytest.approx(statistics[0, 0], abs=1e-4)
    assert not np.allclose(quick[0], whole[0], atol=1e-3)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"mask_mode": "token"},
    {"answer_only": True},
    {"answer_only": True, "mask_mode": "token"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("tokens", [1, 60])
def test_no_option_makes_scores_depend_on_the_batch(
    model: Any, options: dict[str, Any], tokens: int
) -> None:
    for whole, cut in zip(scores(model, **options), scores(model, tokens, **options), strict=True):
        assert np.array_equal(whole, cut)
        assert not np.allclose(whole[0], whole[1], atol=1e-4)


def test_a_prompt_that_runs_once_counts_once_in_a_batch(model: Any) -> None:
    # If it counted K times, batches of one-token choices would be K times too small.
    prompts = [[5, 9, 12, 7, 22, 8, 6, 11, 10]] * 8
    for scope, calls in ((False, 8), (True, 3)):  # 3 * 9, or 9 + 3, of 36 tokens
        with mc_dropout(model, 3, seed=4, answer_only=scope) as passes:
            seen: list[int] = []
            work = workload(model, dropout=passes, tokens=36)
            work = replace(work, progress=lambda items, tokens, seen=seen: seen.append(tokens))
            choice_distribution(work, build_tree([[5], [7]], EOS), prompts, numbers(8))
        assert len(seen) == calls


def test_masks_per_token_differ_between_tokens_and_items_not_between_batches(model: Any) -> None:
    """The same prompt twice has equal scores under shared masks, and different ones otherwise."""
    twice = [PROMPTS[0], PROMPTS[0]]
    tree = build_tree(CHOICES, EOS)

    def distribution(mode: str, keys: list[int]) -> np.ndarray:
        with mc_dropout(model, 3, seed=4, mask_mode=mode) as passes:
            work = workload(model, dropout=passes)
            return choice_distribution(work, tree, twice, np.array(keys))

    shared, token = distribution("shared", [3, 4]), distribution("token", [3, 4])
    assert np.array_equal(shared[:, 0], shared[:, 1])
    assert not np.allclose(token[:, 0], token[:, 1], atol=1e-4)
    assert np.array_equal(token[:, ::-1], distribution("token", [4, 3]))


def test_masks_per_token_have_the_noise_of_training(model: Any) -> None:
    """The mean over many passes is that of stock dropout, within its standard error."""
    ids, rows = torch.tensor([[5, 9, 12, 7, 9, 6]]), torch.tensor([[5]])
    with torch.no_grad(), mc_dropout(model, 400, seed=4, mask_mode="token") as passes:
        ours = row_hidden(model, sequences(ids, rows), passes)[:, 0].numpy()  # [K, D]
    torch.manual_seed(0)
    with torch.no_grad(), evaluation_mode(model):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train()
        stock = row_hidden(model, sequences(ids.repeat(400, 1), rows.repeat(400, 1)))[0].numpy()
    error = np.sqrt((ours.var(axis=0) + stock.var(axis=0)) / 400)
    assert (np.abs(ours.mean(axis=0) - stock.mean(axis=0)) < 5 * error).all()
    assert ours.std(axis=0) == pytest.approx(stock.std(axis=0), rel=0.25)


def test_an_adapter_on_the_token_embeddings_is_refused(tmp_path: Path) -> None:
    backbone = Backbone(build_model(tmp_path), "nf4", verbose=False)
    with pytest.raises(InputError, match=r"embed_tokens.*token embeddings.*Leave it out"):
        attach_fresh(backbone, LoRA(r=2, target_modules=["q_proj", "embed_tokens"]), seed=0)
    assert backbone.peft_model is None
