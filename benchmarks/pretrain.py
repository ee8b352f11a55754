"""Make the built-in model: ``python benchmarks/pretrain.py --out FOLDER``."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from architecture import build_model, build_tokenizer
from numpy.random import Generator
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from starlearn.embedded.grammar import (
    KNOWN_SKILLS,
    NEW_SKILLS,
    SKILLS,
    Question,
    places,
    prices,
    quantities,
    queue,
)

TRAINING_SEED = 10_000  # pools of the evaluation use 0 .. 99
VALIDATION_SEED = 20_000
SCENES = {
    "quantities": (quantities, ("most", "amount", "owner", "most")),
    "prices": (prices, ("dearest", "costing", "costing")),
    "queue": (queue, ("first", "after", "after")),
    "places": (places, ("where", "inside", "where")),
}
"""Kinds of documents: a function that draws the scene, and the skills of its questions."""
SHARES = {"quantities": 3, "prices": 4, "queue": 2, "places": 2, "story": 2, "copy": 1}
COPY_SHARE = 0.1  # of the steps, at the start: otherwise the model never learns to look back
QUESTION_WEIGHT = 0.1  # facts are random, so that their loss does not teach the answer


def encode(
    tokenizer: PreTrainedTokenizerFast, items: Sequence[Question], facts: str = ""
) -> tuple[list[int], list[float]]:
    """Return the tokens of questions and answers, and their weights in the loss.

    Each answer ends in ``</s>``. Only the first question includes the facts.
    """
    tokens: list[int] = []
    weights: list[float] = []
    for place, item in enumerate(items):
        text = item.text.removeprefix(facts) if place else item.text
        question = tokenizer(text, add_special_tokens=place == 0)["input_ids"]
        answer = tokenizer(item.answer, add_special_tokens=False)["input_ids"]
        answer = [*answer, tokenizer.eos_token_id]
        tokens += [*question, *answer]
        weights += [QUESTION_WEIGHT] * len(question) + [1.0] * len(answer)
    return tokens, weights


def collate(
    encoded: Sequence[tuple[list[int], list[float]]], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the right; return the tokens and their weights in the loss.

    Returns
    -------
    tokens : torch.Tensor of shape [B, T], int64
    weights : torch.Tensor of shape [B, T], float32
        0 on padding, `QUESTION_WEIGHT` on questions, 1 on answers and their ends.
    """
    longest = max(len(tokens) for tokens, _ in encoded)
    batch = torch.full((len(encoded), longest), pad)
    batch_weights = torch.zeros(len(encoded), longest)
    for row, (tokens, weights) in enumerate(encoded):
        batch[row, : len(tokens)] = torch.tensor(tokens)
        batch_weights[row, : len(tokens)] = torch.tensor(weights)
    return batch, batch_weights


def draw_document(rng: Generator, only_copy: bool) -> tuple[list[Question], str]:
    """Draw a scene with several questions about it, a story, or words to copy."""
    kinds = list(SHARES)
    shares = np.array(list(SHARES.values()))
    kind = "copy" if only_copy else kinds[rng.choice(len(kinds), p=shares / shares.sum())]
    if kind in SCENES:
        draw_scene, skills = SCENES[kind]
        scene = draw_scene(rng)
        order = rng.permutation(len(skills))
        return [SKILLS[skills[place]](rng, scene) for place in order], scene[0]
    return [SKILLS["change" if kind == "story" else "copy"](rng)], ""


def batches(
    tokenizer: PreTrainedTokenizerFast, rng: Generator, batch_size: int, n_copy: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Draw documents without end; the first `n_copy` batches contain only words to copy."""
    step = 0
    while True:
        documents = [draw_document(rng, step < n_copy) for _ in range(batch_size)]
        encoded = [encode(tokenizer, items, facts) for items, facts in documents]
        yield collate(encoded, cast(int, tokenizer.pad_token_id))
        step += 1


def weighted_loss(
    model: LlamaForCausalLM, tokens: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted mean of the next-token cross-entropy."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]  # [B, T-1, V]
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    row = weights[:, 1:].flatten()
    return (losses * row).sum() / row.sum()


@torch.no_grad()
def accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    items: Sequence[Question],
) -> float:
    """Return the share of questions whose whole greedy answer, with its end, is right.

    Greedy decoding returns the gold answer exactly when each gold token is the likeliest one after
    the gold tokens before it. So one forward pass over question and answer is enough.
    """
    model.eval()
    encoded = [encode(tokenizer, [item]) for item in items]
    tokens, weights = collate(encoded, cast(int, tokenizer.pad_token_id))
    best = model(input_ids=tokens, use_cache=False).logits[:, :-1].argmax(-1)
    right = (best == tokens[:, 1:]) | (weights[:, 1:] < 1.0)
    return float(right.all(dim=1).float().mean())


def accuracies(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n_items: int
) -> dict[str, float]:
    """Return the accuracy on new questions of each skill that has a right answer."""
    result = {}
    for name in (*KNOWN_SKILLS, *NEW_SKILLS):
        rng = np.random.default_rng([VALIDATION_SEED, list(SKILLS).index(name)])
        items = [SKILLS[name](rng) for _ in range(n_items)]
        result[name] = round(accuracy(model, tokenizer, items), 4)
    return result


def learning_rate_share(step: int, n_steps: int) -> float:
    """Return the share of the peak: 5 % linear warm-up, then a cosine to 0."""
    warm_up = max(1, n_steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, n_steps - warm_up)))


class MasterCopy:
    """AdamW on float32 copies of the weights of a bfloat16 model.

    A step of AdamW is smaller than bfloat16 can represent, so the weights are kept in float32.
    Only matrices have weight decay: embeddings of rare words would shrink to zero.
    """

    def __init__(self, model: LlamaForCausalLM, weight_decay: float = 0.05) -> None:
        self.masters = [weight.detach().float().clone() for weight in model.parameters()]
        model.to(torch.bfloat16)
        self.weights = list(model.parameters())
        matrices: list[torch.Tensor] = []
        others: list[torch.Tensor] = []
        for (name, _), master in zip(model.named_parameters(), self.masters, strict=True):
            is_matrix = master.ndim == 2 and "embed" not in name
            (matrices if is_matrix else others).append(master)
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update the copies by the model's gradients, and round them into the model."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        for weight, master in zip(self.weights, self.masters, strict=True):
            weight.copy_(master)


def pretrain(
    out: Path,
    *,
    n_steps: int,
    batch_size: int = 32,
    peak_learning_rate: float = 2e-3,
    n_validation: int = 500,
    log_every: int = 100,
) -> dict[str, Any]:
    """Train from scratch, and save model, tokenizer and log in `out`.

    Parameters
    ----------
    out : pathlib.Path
        The folder to write.
    n_steps, batch_size : int
        Number of steps of AdamW, and of documents per step.
    peak_learning_rate : float
        The largest learning rate.
    n_validation : int
        Questions per skill in the final accuracies.
    log_every : int
        Steps per line of the log.

    Returns
    -------
    dict
        The log: settings, losses, seconds and the accuracy per skill of the saved model.
    """
    torch.manual_seed(TRAINING_SEED)
    rng = np.random.default_rng(TRAINING_SEED)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    master = MasterCopy(model)
    start, lines, running = time.perf_counter(), [], 0.0
    for step, (tokens, weights) in zip(
        range(n_steps),
        batches(tokenizer, rng, batch_size, int(COPY_SHARE * n_steps)),
        strict=False,
    ):
        model.train()
        loss = weighted_loss(model, tokens, weights)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        loss.backward()
        master.step(peak_learning_rate * learning_rate_share(step, n_steps))
        running += loss.item()
        if (step + 1) % log_every == 0 or step + 1 == n_steps:
            n_since = (step % log_every) + 1
            line = {"step": step + 1, "loss": round(running / n_since, 4)}
            line["seconds"] = round(time.perf_counter() - start, 1)
            line |= accuracies(model, tokenizer, 50) if (step + 1) % (5 * log_every) == 0 else {}
            lines.append(line)
            running = 0.0
            print(json.dumps(line), flush=True)
    save(out, model, tokenizer)
    shipped = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    log = {
        "steps": n_steps,
        "batch_size": batch_size,
        "peak_learning_rate": peak_learning_rate,
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - start, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "accuracy": accuracies(shipped, tokenizer, n_validation),
        "losses": lines,
    }
    (out / "pretraining.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    return log


def save(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Save the weights in bfloat16 and the tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the peak")
    parser.add_argument("--validation", type=int, default=500, help="items of each skill")
    parser.add_argument("--threads", type=int, default=None, help="torch threads")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    log = pretrain(
        options.out,
        n_steps=options.steps,
        batch_size=options.batch_size,
        peak_learning_rate=options.learning_rate,
        n_validation=options.validation,
    )
    print(json.dumps(log["accuracy"], indent=1))


if __name__ == "__main__":
    main()
