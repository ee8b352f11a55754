"""Backbone: the frozen base model in 4 bits, with its tokenizer."""

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
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import extract_commit_hash

from starlearn.embedded.location import model_folder
from starlearn.errors import InputError
from starlearn.model.base_files import check_config, check_folder, check_types, weight_files
from starlearn.model.four_bits import quantized_share
from starlearn.model.head import Head, head_of
from starlearn.model.identity import fetch_weights, model_fingerprint
from starlearn.model.memory import CPU_GENERATED, CPU_TOKENS, GPU_TOKENS, TokenBudget
from starlearn.model.processes import take_own_gpu
from starlearn.model.structure import attention_window, goes_by_positions, refuse_recurrent
from starlearn.progress import is_main
from starlearn.version import __version__

QUANTIZATIONS = ("nf4", "fp4", "none")
USUAL_SHARE = 0.8
"""Least usual share of quantised weights, without embeddings and head; plain decoders have 0.99."""
COMPUTES = ("torch", "transformers", "peft", "bitsandbytes")
"""Libraries whose versions can change the last bits of a score."""


class Backbone:
    """A base model that is loaded on first use and shared by all its adapters.

    `source` is a folder, a hub id, or None for the embedded model. 4-bit formats use double
    quantisation; the output head and the embeddings are not quantised. Files that could run code
    are refused with UntrustedFileError.
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
        self.active: object | None = None  # the Adapter whose weights the model holds
        self.peft_model: Any = None
        self._lock = threading.Lock()
        self._owner: int | None = None  # the thread that holds the lock
        if self.is_from_hub:
            check_config(self.folder)
        else:
            check_folder(Path(self.source))
        self.config = _loaded(AutoConfig, self.source, self.source, revision=self.revision)
        refuse_recurrent(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(self.config), None), self.config)
        self.tokenizer = _loaded(AutoTokenizer, self.source, self.source, revision=self.revision)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the model for this thread, because it carries one adapter at a time."""
        thread = threading.get_ident()
        # Checked before the lock is taken: the thread would wait for itself forever.
        if self._owner == thread:
            raise InputError(
                "A callback called a learner while its base model is in use, which would change "
                "the adapter during the step. Call the learner after the step."
            )
        with self._lock:
            self._owner = thread
            try:
                yield
            finally:
                self._owner = None

    @property
    def device(self) -> torch.device:
        """Device of the model: the first GPU, or the one that accelerate assigns to a process."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of all computation: float32 on a CPU, on a GPU bfloat16 or else float16.

        GPUs without bfloat16 emulate it slowly. On a CPU bfloat16 is hardly faster, and float32
        is exact.
        """
        if self.device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16

    @property
    def context(self) -> int:
        """Longest sequence in tokens that the model supports."""
        text_config = self.config.get_text_config()
        names = ("max_position_embeddings", "max_seq_len")  # the second: MPT
        return int(next(filter(None, (getattr(text_config, n, None) for n in names)), 2**31 - 1))

    @property
    def eos_id(self) -> int:
        """Token that ends an answer."""
        if self.tokenizer.eos_token_id is None:
            raise InputError(
                f"The tokenizer of {self.source} has no end-of-sequence token, so the model "
                "cannot learn where an answer ends. Set eos_token in tokenizer_config.json."
            )
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """Token for padding; any token works, because padding is masked or comes last."""
        pad = self.tokenizer.pad_token_id
        return self.eos_id if pad is None else int(pad)

    @cached_property
    def model(self) -> Any:
        """Base model, quantised and frozen, in evaluation mode."""
        with weights_bar(self.verbose):
            model = self.load_weights(
                quantization_config=self._bitsandbytes_config(),
                dtype=self.dtype,
                device_map={"": self.device} if self.device.type == "cuda" else None,
            )
        if self.quantization != "none":
            _check_share(model, self.source)
        _forbid_packing(model)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model.config.pad_token_id = self.pad_id
        # The model's own penalties and length rules would change greedy answers.
        model.generation_config = GenerationConfig()
        return model.eval()

    def load_weights(self, **arguments: Any) -> Any:
        """Return a new model from the files that the fingerprint covers, and no others."""
        if self.is_from_hub:
            fetch_weights(self.source, self.revision)
        quantised = getattr(self.config, "quantization_config", None) is not None
        check_types(weight_files(self.folder), quantised=quantised)
        model = _loaded(
            AutoModelForCausalLM,
            self.source,
            # The folder, also for a hub id: transformers would ask the hub for further files.
            self.folder,
            use_safetensors=True,
            # transformers adds an adapter whose files are in the folder. It finds none here.
            adapter_kwargs={"subfolder": os.devnull},
            **arguments,
        )
        model.config.name_or_path = self.source
        return model

    @cached_property
    def head(self) -> Head:
        """Output head of the base model, which no adapter changes."""
        return head_of(self.model)

    @cached_property
    def by_positions(self) -> bool:
        """Whether trees of choices can be scored in one row; see `goes_by_positions`."""
        return goes_by_positions(self.model)

    @property
    def window(self) -> float:
        """Number of tokens that every layer can attend to."""
        return attention_window(self.config)

    @cached_property
    def budget(self) -> TokenBudget:
        """Number of tokens that fit into one forward pass on this machine."""
        return TokenBudget(CPU_TOKENS if self.device.type == "cpu" else GPU_TOKENS)

    @cached_property
    def writing_budget(self) -> TokenBudget:
        """Number of tokens of prompts and answers that fit while answers are generated."""
        return TokenBudget(CPU_GENERATED if self.device.type == "cpu" else GPU_TOKENS)

    @property
    def is_from_hub(self) -> bool:
        """Whether `source` is a hub id."""
        return not _is_folder(self.source)

    @cached_property
    def folder(self) -> Path:
        """Folder of the model's files: its own, or the snapshot of a hub id."""
        if not self.is_from_hub:
            return Path(self.source)
        with _load_errors(AutoConfig, self.source):
            return Path(cached_file(self.source, "config.json")).parent

    @cached_property
    def revision(self) -> str | None:
        """Commit of a hub id; None for a folder."""
        if not self.is_from_hub:
            return None
        return extract_commit_hash(str(self.folder / "config.json"), None)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the base model: weights, configuration, tokenizer, quantisation."""
        if self.is_from_hub:
            fetch_weights(self.source, self.revision)
        return model_fingerprint(self.folder, quantization_to_json(self.quantization))

    @property
    def numerics(self) -> str:
        """Text that identifies the base model's numbers: the model and the software."""
        # starlearn may be importable without being installed, so its version is imported.
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
    """Stop bitsandbytes from repacking 4-bit weights in evaluation mode on a CPU.

    On CPUs with AVX512-BF16 the first pass in evaluation mode repacks the weights in place.
    `train()` does not undo this, and the product with repacked weights has no gradient. Training
    after scoring then follows gradients that are wrong by 100 %, while the loss looks right.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _check_share(model: Any, source: str) -> None:
    """Raise InputError when no weight is quantised, and warn when many are not."""
    share = quantized_share(model)
    kind = type(model).__name__
    if share == 0:
        raise InputError(
            f"None of the weights of {source} could be quantised, because transformers does not "
            f"quantise the linear layers of {kind}. Use quantization='none', or another model."
        )
    if share < USUAL_SHARE:
        warnings.warn(
            f"Only {share:.0%} of the weights of {source} (without embeddings and head) are "
            f"quantised. transformers does not quantise the others of {kind}, as in mixtures of "
            "experts. The model takes more memory than a quantised one of its size.",
            UserWarning,
            stacklevel=2,
        )


@contextmanager
def weights_bar(shown: int) -> Iterator[None]:
    """Show or hide transformers' bar of weights for a while; the switch is global."""
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
            f"{type(source).__name__} ({source!r:.40}). To use a loaded model, save it with "
            "model.save_pretrained(folder) and pass the folder."
        )
    path = Path(source).expanduser()
    # Absolute, because a saved learner is also loaded from another working directory.
    return str(path.absolute()) if _is_folder(str(path)) else str(source)


def _is_folder(source: str) -> bool:
    return source.startswith((".", "/")) or (len(source) < 1024 and Path(source).exists())


def full_precision(backbone: Backbone, dtype: str) -> Any:
    """Load the base model again, on the CPU, without quantisation.

    `dtype` is the name of a dtype, or "auto" for the dtype in which the model is stored.
    """
    if getattr(backbone.config, "quantization_config", None) is not None:
        raise InputError(
            f"The weights of {backbone.source} are stored quantised, so there is no "
            "full-precision model to merge into. Train on the original model, or serve the saved "
            "adapter on this one."
        )
    with weights_bar(backbone.verbose):
        return backbone.load_weights(dtype=dtype)


def _loaded(factory: Any, source: str, place: str | Path, **arguments: Any) -> Any:
    with _load_errors(factory, source):
        return factory.from_pretrained(place, trust_remote_code=False, **arguments)


@contextmanager
def _load_errors(factory: Any, source: str) -> Iterator[None]:
    """Raise InputError for whatever transformers raises about a model's files."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    # A broken file can raise any error in transformers, such as KeyError or RecursionError.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{factory.__name__} could not load the model {source!r:.100}. Pass a complete folder, "
            "or a hub id that you have access to (hf auth login), or go online once. "
            f"The reason: {reason:.500}"
        ) from error
