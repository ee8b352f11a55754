"""The pretrained model of `make pretrained`: a GGUF file becomes a folder that a learner loads."""

import pytest
import torch
from pretrained import convert
from tiny_models import COLOURS
from transformers import AutoModelForCausalLM

from starlearn import ChoiceTask, STARLearner

gguf = pytest.importorskip("gguf", reason="gguf is not installed")


def write_gguf(file, *, layers=1, width=32, vocabulary=300):
    """Write a tiny model of random weights, with a byte-level tokenizer, as SmolLM2 has it."""
    from tokenizers.pre_tokenizers import ByteLevel

    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocabulary)
    named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(ByteLevel.alphabet())
    merged = ["on", "tw"]
    extra = [f"<extra{i}>" for i in range(vocabulary - len(letters) - 5)]
    tokens = named + letters + merged + extra
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (vocabulary - 3)
    )
    writer.add_token_merges(["o n", "t w"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    generator = torch.Generator().manual_seed(0)

    def add(name, *shape):
        writer.add_tensor(name, (torch.randn(*shape, generator=generator) * 0.1).numpy())

    add("token_embd.weight", vocabulary, width)
    add("output_norm.weight", width)
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", width, width)
        add(f"blk.{layer}.ffn_gate.weight", 2 * width, width)
        add(f"blk.{layer}.ffn_up.weight", 2 * width, width)
        add(f"blk.{layer}.ffn_down.weight", width, 2 * width)
        add(f"blk.{layer}.attn_norm.weight", width)
        add(f"blk.{layer}.ffn_norm.weight", width)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()


def test_a_gguf_file_becomes_a_model_that_can_be_quantised_and_queried(tmp_path):
    file, folder = tmp_path / "tiny.gguf", tmp_path / "model"
    write_gguf(file)
    folder.mkdir()
    convert(file, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    task = ChoiceTask("{text}", choices=COLOURS)
    learner = STARLearner(str(folder), task=task, random_state=0, verbose=False)
    index, _ = learner.query(["one", "two", "three"], n_instances=2)
    assert len(index) == 2
