"""Queries without starlearn: item by item as in published code, and in length-sorted batches.

Both take tokens and give the same numbers as ``STARLearner.uncertainty``: per answer the mean over
its tokens, or the entropy over the closed choices. Passes use the adapter's own ``nn.Dropout``;
for checks they can use starlearn's masks instead, and then the numbers agree pass by pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from scipy.special import entr, logsumexp
from starlearn_kernels import feature_mask
from torch import Tensor, nn

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """One query over m prompts."""

    model: Any
    """A PeftModel with its adapter on."""
    prompts: list[list[int]]
    choices: list[list[int]] | None
    """Scored tokens of each choice; None where the model writes the answer."""
    n_passes: int
    """K; 1 is one pass without dropout."""
    max_new_tokens: int
    eos_id: int
    pad_id: int
    with_base: bool = True
    """Also score with the adapter off."""
    mask_seed: int | None = None
    """Use starlearn's masks of this seed instead of nn.Dropout."""
    batch_size: int = 32
    answers: list[list[int]] | None = None
    """Free-form answers to score; None lets the model write them."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


@dataclass(frozen=True)
class Found:
    """One value per item, shape [m] each; `base_` is NaN where the base model was left out."""

    base_entropy: Values
    base_predictive_entropy: Values
    entropy: Values
    predictive_entropy: Values
    mutual_information: Values
    answers: list[Any]
    """Index of the likeliest choice, or answer tokens."""


class Dropout:
    """The adapter's dropout modules, to be switched on for one pass at a time."""

    def __init__(self, work: Work) -> None:
        self.work = work
        layers = [module for module in work.model.modules() if isinstance(module, LoraLayer)]
        self.slots = [
            (number, layer, name, module)
            for number, layer in enumerate(layers)
            for name, module in layer.lora_dropout.items()
            if isinstance(module, nn.Dropout)
        ]
        if work.n_passes > 1 and not self.slots:
            raise RuntimeError("the adapter has no nn.Dropout: all passes would be the same")

    @contextmanager
    def on(self, number: int) -> Iterator[None]:
        """Make one pass random; a single pass is not."""
        if self.work.n_passes == 1:
            yield
            return
        for layer_number, layer, name, module in self.slots:
            if self.work.mask_seed is None:
                module.train()
            else:
                layer.lora_dropout[name] = Masked(self.mask(number, layer_number, layer, name))
        try:
            yield
        finally:
            for _, layer, name, module in self.slots:
                module.eval()
                layer.lora_dropout[name] = module

    def mask(self, number: int, layer_number: int, layer: Any, name: str) -> Tensor:
        """Return the mask that starlearn's pass of this number has here, shape [D]."""
        weight = layer.lora_A[name].weight  # [r, D]
        return feature_mask(
            seed=self.work.mask_seed,
            n_passes=number + 1,
            layer=layer_number,
            module=0,
            n_features=weight.shape[1],
            p=layer.lora_dropout[name].p,
            device=weight.device,
            dtype=weight.dtype,
        )[number]


class Masked(nn.Module):
    """One mask for all tokens, in the place of nn.Dropout."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask.to(x.dtype)


def base_only(work: Work) -> Any:
    """Switch the adapter off, where there is a base pass to make."""
    return work.model.disable_adapter() if work.with_base else nullcontext()


# One item at a time, one pass after the other, the whole vocabulary to the CPU for each token


@torch.no_grad()
def naive(work: Work) -> Found:
    """Score a pool as published code does: item by item, pass by pass, choice by choice."""
    work.model.eval()
    dropout = Dropout(work)
    if work.choices is not None:
        logs = np.array([_naive_choices(work, dropout, prompt) for prompt in work.prompts])
        return _from_choices(logs[:, 1:].transpose(1, 0, 2), logs[:, 0])  # logs [m, 1 + K, C]
    rows, answers = [], []
    for row, prompt in enumerate(work.prompts):
        answer = work.answers[row] if work.answers else _naive_answer(work, prompt)
        passes = []
        for number in range(work.n_passes):
            with dropout.on(number):
                passes.append(_token_probabilities(work, prompt, answer))
        with base_only(work):
            base = _token_probabilities(work, prompt, answer)
        rows.append(_from_tokens(torch.stack(passes), base, torch.tensor(answer)))
        answers.append(answer)
    return Found(*np.array(rows).T, answers)


def _naive_answer(work: Work, prompt: list[int]) -> list[int]:
    """Return the model's answer to one prompt."""
    ids = torch.tensor([prompt], device=work.device)
    written = work.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=work.max_new_tokens,
        do_sample=False,
        eos_token_id=work.eos_id,
        pad_token_id=work.pad_id,
    )
    return list(written[0, len(prompt) :].tolist())


def _naive_choices(work: Work, dropout: Dropout, prompt: list[int]) -> list[list[float]]:
    """Return log-probabilities of the choices, base model first, shape [1 + K, C]."""

    def scored() -> list[float]:
        logs = []
        for choice in work.choices or []:
            rows = _token_probabilities(work, prompt, choice)
            logs.append(sum(float(p[token].log()) for p, token in zip(rows, choice, strict=True)))
        return logs

    with base_only(work):
        found = [scored()]
    for number in range(work.n_passes):
        with dropout.on(number):
            found.append(scored())
    return found


def _token_probabilities(work: Work, prompt: list[int], answer: list[int]) -> Tensor:
    """Return the distribution before each answer token, on the CPU, shape [L, V]."""
    ids = torch.tensor([prompt + answer], device=work.device)
    logits = work.model(input_ids=ids).logits[0]  # [T, V]
    first = len(prompt) - 1
    return torch.stack(
        [torch.softmax(logits[first + i].float(), -1).cpu() for i in range(len(answer))]
    )


def _from_tokens(passes: Tensor, base: Tensor, answer: Tensor) -> list[float]:
    """Return the five means over answer tokens; distributions of shape [K, L, V] and [L, V]."""

    def log_likelihood(p: Tensor) -> Tensor:
        return p.gather(-1, answer.expand(p.shape[:-1])[..., None]).log().mean()

    entropy = torch.special.entr(passes).sum(-1).mean()
    predictive = torch.special.entr(passes.mean(0)).sum(-1).mean()
    return [
        float(torch.special.entr(base).sum(-1).mean()),
        -float(log_likelihood(base)),
        float(entropy),
        -float(log_likelihood(passes)),
        float(predictive - entropy),
    ]


# Length-sorted batches, log_softmax at answer positions only


@torch.no_grad()
def strong(work: Work) -> Found:
    """Score a pool in batches of similar length; the head sees answer positions alone."""
    work.model.eval()
    dropout = Dropout(work)
    if work.choices is not None:
        return _strong_choices(work, dropout, work.choices)
    answers = work.answers or _strong_answers(work)
    lengths = [len(p) + len(a) for p, a in zip(work.prompts, answers, strict=True)]
    rows = np.full((len(answers), 5), np.nan)
    for batch in _sorted_batches(lengths, work.batch_size):
        prompts, own = [work.prompts[i] for i in batch], [answers[i] for i in batch]
        targets = torch.tensor([t for answer in own for t in answer], device=work.device)[:, None]
        owner = np.repeat(np.arange(len(batch)), [len(answer) for answer in own])
        values = torch.zeros((5, len(owner)), device=work.device)
        mean: Any = 0.0  # distribution over the passes so far, [N, V]
        for number in range(work.n_passes):
            with dropout.on(number):
                log = _answer_logs(work, prompts, own)  # [N, V]
            p = log.exp()
            mean = mean + p / work.n_passes
            values[2] -= (p * log).sum(-1) / work.n_passes
            values[3] -= log.gather(-1, targets)[:, 0] / work.n_passes
        values[4] = -torch.special.xlogy(mean, mean).sum(-1) - values[2]
        values[:2] = torch.nan
        if work.with_base:
            with base_only(work):
                log = _answer_logs(work, prompts, own)
            values[0] = -(log.exp() * log).sum(-1)
            values[1] = -log.gather(-1, targets)[:, 0]
        sums = np.array([np.bincount(owner, row) for row in values.double().cpu().numpy()])
        rows[batch] = (sums / np.bincount(owner)).T
    return Found(*rows.T, answers)


def _strong_choices(work: Work, dropout: Dropout, choices: list[list[int]]) -> Found:
    """Score every choice after every prompt; one row of a batch serves all one-token choices."""
    n_items, n_choices = len(work.prompts), len(choices)
    single = all(len(choice) == 1 for choice in choices)
    pairs = [(i, c) for i in range(n_items) for c in range(1 if single else n_choices)]
    lengths = [len(work.prompts[i]) + len(choices[c]) for i, c in pairs]
    base = np.full((n_items, n_choices), np.nan)
    full = np.zeros((work.n_passes, n_items, n_choices))
    column = torch.tensor([choice[0] for choice in choices], device=work.device)

    def scored(chosen: list[tuple[int, int]]) -> Values:
        own = [choices[c] for _, c in chosen]
        log = _answer_logs(work, [work.prompts[i] for i, _ in chosen], own)
        if single:
            return log[:, column].double().cpu().numpy()
        targets = torch.tensor([t for choice in own for t in choice], device=work.device)
        taken = log.gather(-1, targets[:, None])[:, 0].double().cpu().numpy()
        return np.bincount(np.repeat(np.arange(len(own)), [len(c) for c in own]), taken)

    for batch in _sorted_batches(lengths, work.batch_size):
        chosen = [pairs[place] for place in batch]
        items = np.array([i for i, _ in chosen])
        where = items if single else (items, np.array([c for _, c in chosen]))
        if work.with_base:
            with base_only(work):
                base[where] = scored(chosen)
        for number in range(work.n_passes):
            with dropout.on(number):
                full[number][where] = scored(chosen)
    return _from_choices(full, base)


def _answer_logs(work: Work, prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
    """Return log-probabilities before each answer token, item by item, shape [N, V]."""
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True)) - 1
    ids = torch.full((len(prompts), length), work.pad_id)
    mask = torch.zeros_like(ids)
    rows, places = [], []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens = (prompt + answer)[:-1]
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        rows += [row] * len(answer)
        places += range(len(prompt) - 1, len(tokens))
    inner = work.model.get_base_model()
    hidden = inner.model(
        input_ids=ids.to(work.device), attention_mask=mask.to(work.device), use_cache=False
    ).last_hidden_state  # [B, T, D]
    return torch.log_softmax(inner.lm_head(hidden[rows, places]).float(), -1)


def _strong_answers(work: Work) -> list[list[int]]:
    """Return the model's answers, computed in left-padded batches of similar length."""
    answers: list[list[int]] = [[] for _ in work.prompts]
    for batch in _sorted_batches([len(p) for p in work.prompts], work.batch_size):
        width = max(len(work.prompts[i]) for i in batch)
        ids = torch.full((len(batch), width), work.pad_id)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, width - len(work.prompts[i]) :] = torch.tensor(work.prompts[i])
            mask[row, width - len(work.prompts[i]) :] = 1
        written = work.model.generate(
            input_ids=ids.to(work.device),
            attention_mask=mask.to(work.device),
            max_new_tokens=work.max_new_tokens,
            do_sample=False,
            eos_token_id=work.eos_id,
            pad_token_id=work.pad_id,
        )
        for i, row in zip(batch, written[:, width:].tolist(), strict=True):
            answers[i] = row[: row.index(work.eos_id) + 1] if work.eos_id in row else row
    return answers


def _sorted_batches(lengths: Sequence[int], size: int) -> list[NDArray[np.intp]]:
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def _from_choices(full: Values, base: Values) -> Found:
    """Turn log-probabilities of shape [K, m, C] and [m, C] into scores over the choices."""
    full = full - logsumexp(full, axis=-1, keepdims=True)
    base = base - logsumexp(base, axis=-1, keepdims=True)
    mean = np.exp(full).mean(axis=0)  # [m, C]
    answers = mean.argmax(axis=-1)
    items = np.arange(len(answers))
    entropy = entr(np.exp(full)).sum(axis=-1).mean(axis=0)
    return Found(
        base_entropy=entr(np.exp(base)).sum(axis=-1),
        base_predictive_entropy=-base[items, answers],
        entropy=entropy,
        predictive_entropy=-full[:, items, answers].mean(axis=0),
        mutual_information=entr(mean).sum(axis=-1) - entropy,
        answers=answers.tolist(),
    )
