"""The model card of a learner: use, data in numbers, settings and the learning curve."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from starlearn.export.saving import Saved
from starlearn.model.backbone import Backbone
from starlearn.settings import Acquisition, Settings
from starlearn.tasks import DEFAULTS, ChoiceTask

LIBRARIES = (
    *("starlearn", "torch", "transformers", "peft"),
    *("bitsandbytes", "accelerate", "scikit-learn"),
)
CURVE = {
    "round": ("round", "{:d}"),
    "n_labels": ("labels", "{:d}"),
    "steps": ("steps", "{:d}"),
    "train_loss": ("training loss", "{:.4f}"),
    "accuracy": ("accuracy", "{:.4f}"),
    "seconds": ("training, s", "{:.1f}"),
}
QUERY = {
    "n_pool": ("pool", "{:d}"),
    "n_instances": ("bought", "{:d}"),
    "mean_full": ("mean uncertainty", "{:.3g}"),
    "seconds": ("query, s", "{:.1f}"),
}
"""Columns of a round and of the query before it: heading and format."""


def model_card(
    saved: Saved,
    *,
    base: str,
    revision: str | None = None,
    is_hub_id: bool = False,
    license: str | None = None,
    prompt: bool = False,
    choices: bool = False,
    merged: bool = False,
) -> str:
    """Return a model card in Markdown, which starts with the hub's metadata.

    It contains numbers and settings, and no item or label. `prompt` adds the template with the
    system message, `choices` the names of the classes. `base` is a hub id or a name; only a hub id
    is in the metadata. `revision` is the base model's commit, `license` the hub's name of the
    licence. `merged` is whether the card is for a merged model instead of an adapter.
    """
    sections = [
        _metadata(base if is_hub_id else None, license, merged),
        _head(saved, base, revision, merged),
        _use(base, merged),
        _data(saved, prompt, choices),
        _settings(saved),
        _curve(saved.rounds),
        _end(license, base),
    ]
    return "\n\n".join(sections) + "\n"


def base_of(backbone: Backbone, hub_id: str | None = None) -> dict[str, Any]:
    """Return how a card names the base model: by hub id, or by the last part of its folder.

    The rest of the path is private: it may contain a user's name.
    """
    if hub_id is None and not backbone.is_from_hub:
        return {"base": Path(backbone.source).resolve().name, "revision": None, "is_hub_id": False}
    same = hub_id in (None, backbone.source)
    revision = backbone.revision if same else None
    return {"base": hub_id or backbone.source, "revision": revision, "is_hub_id": True}


def _metadata(base: str | None, license: str | None, merged: bool) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base,
        license=license,
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-generation",
        tags=["starlearn", "active-learning", "lora", "qlora"],
    )
    return f"---\n{data.to_yaml()}\n---"


def _head(saved: Saved, base: str, revision: str | None, merged: bool) -> str:
    kind = "A model with a LoRA adapter merged into it" if merged else "A LoRA adapter"
    commit = f" (revision `{revision}`)" if revision else ""
    return (
        f"# {kind}, trained by active learning\n\n"
        f"Base model: `{base}`{commit}. Trained with starlearn, after STAR "
        f"([arXiv 2403.01165](https://arxiv.org/abs/2403.01165)). {len(saved.rounds)} rounds, "
        f"{len(saved.items)} labels. {_chosen(saved)}"
    )


def _chosen(saved: Saved) -> str:
    """Return a sentence on how the items were chosen."""
    if not any("query" in record for record in saved.rounds):
        return "No item was chosen by the model."
    part = (saved.parameters["acquisition"] or Acquisition()).resolved()
    if part.strategy == "random":
        return "Items were drawn at random."
    mix = "" if part.schedule == 0.0 else f", mixed with the base model's (weight {part.schedule})"
    measure = part.measure.replace("_", " ")
    return f"Items were chosen by the model's {measure} over {part.n_passes} passes{mix}."


def _use(base: str, merged: bool) -> str:
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if merged:
        lines += ['model = AutoModelForCausalLM.from_pretrained("THIS_REPOSITORY")']
        lines += ['tokenizer = AutoTokenizer.from_pretrained("THIS_REPOSITORY")']
    else:
        lines.insert(0, "from peft import PeftModel")
        lines += [f'base = AutoModelForCausalLM.from_pretrained("{base}")']
        lines += ['model = PeftModel.from_pretrained(base, "THIS_REPOSITORY")']
        lines += [f'tokenizer = AutoTokenizer.from_pretrained("{base}")']
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```"


def _data(saved: Saved, prompt: bool, choices: bool) -> str:
    task = saved.parameters["task"] or ChoiceTask()
    lines = [f"{len(saved.items)} labelled items."]
    if saved.classes is None:
        lines.append("The answers are free text.")
    else:
        counts = sorted(Counter(map(str, saved.labels)).values(), reverse=True)
        more = f", and {len(counts) - 20} more" if len(counts) > 20 else ""
        lines.append(
            f"{len(saved.classes)} classes, {len(counts)} of them labelled; labels by class: "
            f"{', '.join(map(str, counts[:20]))}{more}."
        )
    lines.append(
        "This page does not contain the texts of the items. The weights were trained on them, and "
        "may reveal parts of them."
    )
    text = "## Data\n\n" + " ".join(lines)
    if prompt:
        text += f"\n\nPrompt:\n\n{_quoted(task.prompt)}"
        if task.system is not None:
            text += f"\n\nSystem message:\n\n{_quoted(task.system)}"
    if choices and saved.classes is not None:
        text += f"\n\nClasses:\n\n{_quoted(chr(10).join(map(str, saved.classes)))}"
    return text


def _quoted(text: str) -> str:
    """Return a text as an indented block of code."""
    return "\n".join("    " + line for line in text.splitlines())


def _settings(saved: Saved) -> str:
    rows = [("quantization", _plain(saved.parameters["quantization"]))]
    for part in ("adapter", "acquisition", "training"):
        group: Settings = saved.parameters[part] or DEFAULTS[part][0]()
        rows += [(f"{part}: {name}", _plain(v)) for name, v in group.get_params(deep=False).items()]
    rows += [("seed", str(saved.seed))]
    return "## Settings\n\n" + _table(("setting", "value"), rows)


def _plain(value: Any) -> str:
    if isinstance(value, str | int | float | bool | None):
        return str(value)
    if isinstance(value, Sequence):
        return ", ".join(map(str, value))
    found = value.to_dict() if hasattr(value, "to_dict") else value  # a BitsAndBytesConfig
    if isinstance(found, Mapping):
        return ", ".join(f"{k}={v}" for k, v in found.items() if isinstance(v, str | int | float))
    return str(found)


def _curve(rounds: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [_cell(record, name, form) for name, (_, form) in CURVE.items()]
        + [_cell(record.get("query", {}), name, form) for name, (_, form) in QUERY.items()]
        for record in rounds
    ]
    headings = [heading for heading, _ in (*CURVE.values(), *QUERY.values())]
    filled = [i for i in range(len(headings)) if any(row[i] for row in rows)]
    return "## Learning curve\n\n" + _table(
        [headings[i] for i in filled], [[row[i] for i in filled] for row in rows]
    )


def _cell(record: Mapping[str, Any], name: str, form: str) -> str:
    value = record.get(name)
    return "" if value is None else form.format(value)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def _end(license: str | None, base: str) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    terms = (
        f"This repository: {license}. The licence of the base model also applies."
        if license
        else f"None is stated here. The licence of the base model, `{base}`, applies."
    )
    return f"## Licence\n\n{terms}\n\n## Versions\n\n{versions}"
