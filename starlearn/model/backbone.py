"""Backbone: the frozen base model in 4 bits, its tokenizer, and what identifies it."""

import hashlib
import json
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import extract_commit_hash, get_checkpoint_shard_files

from starlearn.embedded.location import model_folder
from starlearn.errors import InputError, UntrustedFileError
from starlearn.model.four_bits import share_in_few_bits
from starlearn.model.head import Head, head_of
from starlearn.model.memory import CPU_TOKENS, CPU_WRITTEN, GPU_TOKENS, TokenBudget
from starlearn.model.positions import goes_by_positions, refuse_recurrent
from starlearn.model.processes import take_own_gpu
from starlearn.model.structure import attention_window
from starlearn.progress import is_main
from starlearn.version import __version__

QUANTIZATIONS = ("nf4", "fp4", "none")
IDENTITY = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Files that decide, with the weights, what a base model answers."""
SLOW_TOKENIZER = ("vocab.json", "merges.txt")
"""And sentencepiece's *.model: read only where there is no tokenizer.json, and there or not by how
a model was downloaded."""


USUAL_SHARE = 0.8
"""Of a decoder's weights without embeddings and head; plain ones have 0.99."""
COMPUTES = ("torch", "transformers", "peft", "bitsandbytes")
"""Libraries whose versions may change a score, if only its last bits."""


class Backbone:
    """One base model, loaded when it is first used and shared by all adapters on it.

    Parameters
    ----------
    source : str, path or None
        Folder or hub id; None is the embedded model.
    quantization : {"nf4", "fp4", "none"} or BitsAndBytesConfig
        4-bit formats use double quantisation. The output head and the embeddings stay as they
        are.
    verbose : bool
        Show a bar while weights are loaded.

    Raises
    ------
    InputError
        When the folder is not there, is not a model, has no weights, or the hub id cannot be had;
        when the model has recurrent layers.
    UntrustedFileError
        When the weights are a format that can run code, or the configuration asks for code.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | None,
        quantization: Any = "nf4",
        verbose: int = True,
    ) -> None:
        check_quantization(quantization)
        take_own_gpu()
        self.verbose = verbose and is_main()
        self.source = _checked_source(source)
        self.quantization = quantization
        self.active: object | None = None  # the Adapter whose weights the model holds now
        self.peft_model: Any = None
        self._lock = threading.Lock()
        self._user: int | None = None  # the thread that holds the lock
        if _is_folder(self.source):
            _check_folder(Path(self.source))
        self.config = _from_hub(AutoConfig, self.source)
        if getattr(self.config, "auto_map", None):
            raise UntrustedFileError(
                f"The model {self.source} asks to run code of its own (auto_map in its "
                "configuration). starlearn does not; use a model that transformers knows itself."
            )
        refuse_recurrent(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(self.config), None), self.config)
        self.tokenizer = _from_hub(AutoTokenizer, self.source)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other threads from the model while one adapter is on it: learners take turns.

        Raises
        ------
        InputError
            When this thread is at work on the model already, in a callback.
        """
        me = threading.get_ident()
        if self._user == me:
            raise InputError(
                "A callback called a learner whose base model is at work: the adapter would be "
                "changed under it. Note what there is to do, and call the learner afterwards."
            )
        with self._lock:
            self._user = me
            try:
                yield
            finally:
                self._user = None

    @property
    def device(self) -> torch.device:
        """The device of the model: the first GPU, or the one that accelerate gives a process."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    @property
    def dtype(self) -> torch.dtype:
        """Type of all computation: bfloat16 on a GPU that has it, else float16; float32 on a CPU.

        Older GPUs emulate bfloat16, slowly; float16 without a scaled loss could overflow there.
        The exact route on a CPU is worth more there than the little speed of bfloat16.
        """
        if self.device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16

    @property
    def context(self) -> int:
        """Longest sequence in tokens that the model was made for."""
        text_config = self.config.get_text_config()
        names = ("max_position_embeddings", "max_seq_len")  # the second: MPT
        return int(next(filter(None, (getattr(text_config, n, None) for n in names)), 2**31 - 1))

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""
        if self.tokenizer.eos_token_id is None:
            raise InputError(
                f"The tokenizer of {self.source} has no end-of-sequence token, so the model "
                "cannot learn where an answer ends. Set eos_token in tokenizer_config.json."
            )
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """Token for padding; any will do, because padded positions are masked or come last."""
        pad = self.tokenizer.pad_token_id
        return self.eos_id if pad is None else int(pad)

    @cached_property
    def model(self) -> Any:
        """The base model, quantised and frozen, in evaluation mode."""
        with weights_bar(self.verbose):
            model = _from_hub(
                AutoModelForCausalLM,
                self.source,
                quantization_config=self._bitsandbytes_config(),
                dtype=self.dtype,
                device_map={"": self.device} if self.device.type == "cuda" else None,
                use_safetensors=True,
            )
        if self.quantization != "none":
            _check_share(model, self.source)
        _forbid_packing(model)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model.config.pad_token_id = self.pad_id
        # Or the model's own penalties and length rules would bend answers that are to be greedy.
        model.generation_config = GenerationConfig()
        return model.eval()

    @cached_property
    def head(self) -> Head:
        """The output head of the base model, which no adapter changes."""
        return head_of(self.model)

    @cached_property
    def by_positions(self) -> bool:
        """Whether trees of choices can be laid out in a row for this model."""
        return goes_by_positions(self.model)

    @property
    def window(self) -> float:
        """Tokens that every layer can look back on."""
        return attention_window(self.config)

    @cached_property
    def budget(self) -> TokenBudget:
        """Tokens that fit into one forward pass on this machine."""
        return TokenBudget(CPU_TOKENS if self.device.type == "cpu" else GPU_TOKENS)

    @cached_property
    def writing_budget(self) -> TokenBudget:
        """Tokens of prompts and answers that fit while answers are written."""
        return TokenBudget(CPU_WRITTEN if self.device.type == "cpu" else GPU_TOKENS)

    @property
    def is_from_hub(self) -> bool:
        """Whether `source` is a hub id."""
        return not _is_folder(self.source)

    @cached_property
    def folder(self) -> Path:
        """Where the model's files lie: its folder, or the snapshot of a hub id."""
        if _is_folder(self.source):
            return Path(self.source)
        return Path(cached_file(self.source, "config.json")).parent

    @cached_property
    def revision(self) -> str | None:
        """The commit of a hub id that is used here; None for a folder."""
        if _is_folder(self.source):
            return None
        return extract_commit_hash(str(self.folder / "config.json"), None)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what the base model is: weights, configuration, tokenizer, quantisation."""
        if not _is_folder(self.source):
            self._fetch_weights()
        quantization = json.dumps(quantization_to_json(self.quantization), default=str)
        digest = hashlib.sha256(quantization.encode())
        deciding = {*IDENTITY, *_weight_files(self.folder)}
        if (self.folder / "tokenizer.json").is_file():
            deciding -= set(SLOW_TOKENIZER)
        else:
            deciding |= {file.name for file in self.folder.glob("*.model")}
        for file in sorted(self.folder.iterdir()):
            if file.name in deciding:
                with file.open("rb") as handle:
                    content = hashlib.file_digest(handle, "sha256").hexdigest()
                digest.update(f"{file.name}:{content}\n".encode())
        return digest.hexdigest()

    def _fetch_weights(self) -> None:
        """Have all weights of a hub id here, without reading them.

        Raises
        ------
        InputError
            When they cannot be had: what is identified without them would be another model.
        """
        found, wanted = None, {"revision": self.revision or "main"}
        one_of = {**wanted, "_raise_exceptions_for_missing_entries": False}
        reason: object = "there is no *.safetensors here, and it cannot be fetched"
        try:
            found = cached_file(self.source, SAFE_WEIGHTS_NAME, **one_of)
            if found is None:
                found = cached_file(self.source, SAFE_WEIGHTS_INDEX_NAME, **one_of)
                if found is not None:
                    get_checkpoint_shard_files(self.source, found, **wanted)
        except OSError as error:
            found, reason = None, error
        if found is None:
            raise InputError(
                f"The weights of the model {self.source!r:.100} cannot be had. Give a complete "
                "folder, or a hub id that you have access to (hf auth login), or go online once. "
                f"The reason: {reason!s:.300}"
            )

    @property
    def numerics(self) -> str:
        """Identifies the base model's numbers: the model, and what computes it."""
        # Our own by its name, for it may be on the path without being installed.
        versions = [f"starlearn {__version__}", *(f"{n} {version(n)}" for n in COMPUTES)]
        return " ".join([self.fingerprint, str(self.dtype), self.device.type, *versions])

    def _bitsandbytes_config(self) -> BitsAndBytesConfig | None:
        if isinstance(self.quantization, BitsAndBytesConfig):
            return self.quantization
        if self.quantization == "none":
            return None
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=self.dtype,
        )


def _weight_files(folder: Path) -> set[str]:
    """Name the files that a model is loaded from: others may lie beside them, or not."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return {SAFE_WEIGHTS_NAME}
    try:
        index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        return set(index["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # No index, or one that loading will complain of.
        return {file.name for file in folder.glob("*.safetensors")}


def check_quantization(quantization: Any) -> None:
    """Raise InputError unless `quantization` is one of the names or a BitsAndBytesConfig."""
    named = isinstance(quantization, str) and quantization in QUANTIZATIONS
    if named or isinstance(quantization, BitsAndBytesConfig):
        return
    raise InputError(
        f"quantization must be one of {', '.join(map(repr, QUANTIZATIONS))} or a "
        f"transformers.BitsAndBytesConfig; got {quantization!r}."
    )


def quantization_to_json(quantization: Any) -> Any:
    """Return the name, or the fields of a BitsAndBytesConfig."""
    return quantization if isinstance(quantization, str) else quantization.to_dict()


def quantization_from_json(value: Any) -> Any:
    """Undo `quantization_to_json`."""
    return BitsAndBytesConfig.from_dict(value) if isinstance(value, dict) else value


def _forbid_packing(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in evaluation mode on a CPU.

    On CPUs with AVX512-BF16 the first evaluation pass repacks the weights in place, `train()`
    does not undo it, and the packed product has no gradient: training after scoring then
    follows gradients that are wrong by 100 %, while the loss looks right.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _check_share(model: Any, source: str) -> None:
    """Refuse a model none of whose weights are in few bits, and warn where many are not."""
    share = share_in_few_bits(model)
    kind = type(model).__name__
    if share == 0:
        raise InputError(
            f"None of the weights of {source} could be quantised: the linear layers of {kind} are "
            "of a class of their own, which transformers leaves as they are. Use "
            "quantization='none', or another model."
        )
    if share < USUAL_SHARE:
        warnings.warn(
            f"Only {share:.0%} of the weights of {source} (embeddings and head aside) are "
            f"quantised: {kind} keeps the others where transformers leaves them as they are, as "
            "mixtures of experts do. It takes far more memory than its number of parameters says.",
            UserWarning,
            stacklevel=2,
        )


@contextmanager
def weights_bar(shown: int) -> Iterator[None]:
    """Let transformers show its bar of weights read or written, or not; a global switch of its."""
    before = transformers_logging.is_progress_bar_enabled()
    if not shown:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()


def _checked_source(source: Any) -> str:
    if source is None:
        return str(model_folder())
    if not isinstance(source, str | os.PathLike) or not str(source).strip():
        raise InputError(
            f"model must be a folder, a hub id, or None for the model in the package; got "
            f"{type(source).__name__} ({source!r:.40}). A loaded model has no place here: save it "
            "with model.save_pretrained(folder) and give the folder."
        )
    path = Path(source).expanduser()
    # A folder is one from everywhere: what is saved is read from another place.
    return str(path.absolute()) if _is_folder(str(path)) else str(source)


def _is_folder(source: str) -> bool:
    return source.startswith((".", "/")) or (len(source) < 1024 and Path(source).exists())


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"There is no model folder {folder}. Give a folder or a hub id.")
    names = {file.name for file in folder.iterdir()}
    if "config.json" not in names:
        raise InputError(
            f"The folder {folder} has no config.json, so it is not a model. It holds: "
            f"{', '.join(sorted(names)[:8]) or 'nothing'}."
        )
    if any(name.endswith(".safetensors") for name in names):
        return
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")) for name in names):
        raise UntrustedFileError(
            f"The weights in {folder} are pickle files, which can run code when they are read. "
            "Convert them: model.save_pretrained(folder, safe_serialization=True)."
        )
    raise InputError(
        f"The model folder {folder} has no weights (*.safetensors). Was the download complete?"
    )


def full_precision(backbone: Backbone, dtype: str) -> Any:
    """Load the base model once more, on the CPU, without quantisation.

    Parameters
    ----------
    backbone : Backbone
    dtype : str
        A type's name, or "auto" for the one in which it is stored.

    Raises
    ------
    InputError
        When the model's weights are stored quantised, so that there is no such model.
    """
    if getattr(backbone.config, "quantization_config", None) is not None:
        raise InputError(
            f"The weights of {backbone.source} are themselves quantised, so there is no "
            "full-precision model to merge into. Train on the model that they were made from, or "
            "serve the saved adapter on this one."
        )
    with weights_bar(backbone.verbose):
        return _from_hub(
            AutoModelForCausalLM,
            backbone.source,
            revision=backbone.revision or "main",
            dtype=dtype,
            use_safetensors=True,
        )


def _from_hub(factory: Any, source: str, **arguments: Any) -> Any:
    try:
        return factory.from_pretrained(source, trust_remote_code=False, **arguments)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{factory.__name__} could not load the model {source!r:.100}. Give a complete folder, "
            "or a hub id that you have access to (hf auth login), or go online once. "
            f"The reason: {reason:.500}"
        ) from error
