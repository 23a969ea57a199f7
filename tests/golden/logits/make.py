"""Logits of transformers for the tiny models and the two pretrained ones, dense and pruned.

    python make.py TINY_MODELS_FOLDER PRETRAINED_MODELS_FOLDER OUTPUT_FOLDER

Each case is a folder with

    tokens.npy   i64 [n]           input tokens, positions 0..n, no padding
    logits.npy   f32 [n, vocab]    eager attention, float32, CPU, one thread
    hidden.npy   f32 [layers+1, n, hidden]   tiny models only: input of block 0, of block 1, ...,
                                   and last the input of the head (after a final norm, where there is
                                   one); left out of tiny-opt-350m-style, where it is narrower
    meta.json    model, versions, settings; for a pruned case the zeros and the SHA-256 of every
                 pruned weight (little-endian f32)

Pruned cases: every linear layer inside the blocks loses its floor(R C s) lowest |w|, lower index
first among equals.
"""

import hashlib
import json
import platform
import sys
from pathlib import Path

import numpy as np
import safetensors
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

TEXT = "Once upon a time there was a little girl who lived with the old prince in a big house near the river. "
TEXT += "One day she went to the park and saw a red ball."

TINY = {
    "tiny-llama": 24,
    "tiny-llama3-rope": 64,
    "tiny-llama-linear-rope": 24,
    "tiny-mistral": 24,
    "tiny-qwen2": 24,
    "tiny-opt": 24,
    "tiny-opt-350m-style": 24,
}
PRETRAINED = {"llama-5m": (32, False), "stories260k": (48, True)}  # tokens, begin with bos


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def magnitude(model, sparsity):
    """Prune in place; returns {tensor name: (zeros, sha256)}."""
    done = {}
    for name, module in sorted(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or ".layers." not in name:
            continue
        w = module.weight.detach().numpy().copy()
        order = np.argsort(np.abs(w).ravel(), kind="stable")
        w.ravel()[order[: int(w.size * sparsity)]] = 0.0
        module.weight.data = torch.from_numpy(w)
        done[name + ".weight"] = {
            "shape": list(w.shape),
            "zeros": int((w == 0).sum()),
            "sha256": hashlib.sha256(w.astype("<f4").tobytes()).hexdigest(),
        }
    return done


def write(out, case, model, tokens, hidden, meta):
    folder = out / case
    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        result = model(torch.tensor([tokens]), use_cache=False, output_hidden_states=hidden)
    logits = result.logits[0].numpy()
    assert logits.dtype == np.float32 and np.isfinite(logits).all()
    np.save(folder / "tokens.npy", np.array(tokens, np.int64))
    np.save(folder / "logits.npy", logits)
    if hidden:
        *states, last = (h[0] for h in result.hidden_states)
        head = model.get_output_embeddings()
        with torch.inference_mode():
            again = head(last)
        assert torch.allclose(again, result.logits[0], atol=1e-5)
        if last.shape == states[0].shape:
            states.append(last)
        np.save(folder / "hidden.npy", torch.stack(states).numpy())
    meta = meta | {
        "case": case,
        "architecture": type(model).__name__,
        "attention": "eager",
        "compute": "float32",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "safetensors": safetensors.__version__,
            "numpy": np.__version__,
        },
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2, sort_keys=True) + "\n")
    n = logits.shape[0]
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits[:-1]), torch.tensor(tokens[1:])).item()
    print(f"{case:28} {logits.shape}  std {logits.std():.3f}  max {np.abs(logits).max():.2f}  "
          f"next-token loss {loss:.4f} over {n - 1}  {(folder / 'logits.npy').stat().st_size} bytes")


def main():
    tiny, pretrained, out = (Path(a) for a in sys.argv[1:4])
    torch.set_num_threads(1)
    for name, n in TINY.items():
        model = load(tiny / name)
        if (tiny / name / "tokenizer.json").exists():
            ids = Tokenizer.from_file(str(tiny / name / "tokenizer.json")).encode(TEXT).ids
        else:
            ids = np.random.default_rng(7).integers(0, model.config.vocab_size, n).tolist()
        write(out, name, model, ids[:n], True, {"model": name, "pruned": None})
    for name, (n, bos) in PRETRAINED.items():
        model = load(pretrained / name)
        ids = Tokenizer.from_file(str(pretrained / name / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
        tokens = ([model.config.bos_token_id] if bos else []) + ids
        text = {"text": TEXT, "bos": bos}
        write(out, name, model, tokens[:n], False, {"model": name, "pruned": None} | text)
        tensors = magnitude(model, 0.5)
        pruned = {"method": "magnitude", "sparsity": 0.5, "tensors": tensors}
        write(out, f"{name}-magnitude50", model, tokens[:n], False, {"model": name, "pruned": pruned} | text)


if __name__ == "__main__":
    main()
