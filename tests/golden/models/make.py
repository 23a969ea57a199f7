"""Tiny random language models in Hugging Face folders, written by transformers' save_pretrained.

    python make.py OUTPUT_FOLDER

Weights: normal, standard deviation 0.2 (norm weights 1 + that), from one seed per model, so that
logits have a real scale and every tensor matters.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, decoders, Regex
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

LLAMA = dict(
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
OPT = dict(
    hidden_size=32,
    ffn_dim=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    dropout=0.0,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)

# name: (model class, configuration, stored type, shard size)
MODELS = {
    # grouped-query attention, untied head, stored as bfloat16
    "tiny-llama": (
        LlamaForCausalLM,
        LlamaConfig(vocab_size=96, tie_word_embeddings=False, **LLAMA),
        torch.bfloat16,
        None,
    ),
    # llama3 frequencies in the older form of the configuration, head_dim != hidden / heads, float16
    "tiny-llama3-rope": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=64,
            head_dim=16,
            tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            **LLAMA,
        ),
        torch.float16,
        None,
    ),
    # linear position scaling in the newer form, biases on attention and MLP
    "tiny-llama-linear-rope": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=64,
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
            **LLAMA,
        ),
        torch.bfloat16,
        None,
    ),
    # sliding window of 6, stored in several shards
    "tiny-mistral": (
        MistralForCausalLM,
        MistralConfig(vocab_size=64, sliding_window=6, tie_word_embeddings=False, **LLAMA),
        torch.float32,
        "20KB",
    ),
    # biases on q, k and v only, tied head
    "tiny-qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(vocab_size=64, tie_word_embeddings=True, **LLAMA),
        torch.float32,
        None,
    ),
    # layer norm before each part, final norm
    "tiny-opt": (
        OPTForCausalLM,
        OPTConfig(vocab_size=96, do_layer_norm_before=True, word_embed_proj_dim=32, **OPT),
        torch.float16,
        None,
    ),
    # layer norm after each part, no final norm, projected embeddings
    "tiny-opt-350m-style": (
        OPTForCausalLM,
        OPTConfig(vocab_size=64, do_layer_norm_before=False, word_embed_proj_dim=16, **OPT),
        torch.float32,
        None,
    ),
}


def fill(model, seed):
    """Every parameter from one generator, in the order of the names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))
            if "norm" in name and name.endswith("weight"):
                p.add_(1.0)


def older_rope_form(path):
    """`rope_theta` and `rope_scaling` beside each other, as models before transformers 5 have it."""
    config = json.loads(path.read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = scaling
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def character_tokenizer(path):
    """One token per printable ASCII character; 0 is everything else."""
    vocabulary = {"<unk>": 0} | {chr(0x20 + i): i + 1 for i in range(95)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    text = "Rain fell on 2 roofs; a cat (grey) slept."
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    tokenizer.save(str(path))


def main():
    out = Path(sys.argv[1])
    for seed, (name, (kind, config, dtype, shard)) in enumerate(MODELS.items(), start=1):
        torch.manual_seed(0)
        model = kind(config)
        fill(model, seed)
        model.to(dtype)
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
        if name == "tiny-llama3-rope":
            older_rope_form(folder / "config.json")
        if config.vocab_size == 96:
            character_tokenizer(folder / "tokenizer.json")
        loaded, info = kind.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        for (key, a), (_, b) in zip(model.state_dict().items(), loaded.state_dict().items()):
            assert a.dtype == b.dtype and torch.equal(a, b), key
        files = sorted(f"{f.name} {f.stat().st_size}" for f in folder.iterdir())
        print(name, ", ".join(files))
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
