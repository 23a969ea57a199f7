"""Load a model folder unchanged in transformers and report its zeros and its logits.

    python load_in_transformers.py MODEL_FOLDER [--tokens tokens.npy] [--logits out.npy]
        [--compare logits.npy] [--tolerance 1e-3] [--pattern 2:4]

Fails if a key is missing, unexpected or of another shape, if a weight is not finite, if the pattern
(at most N non-zeros in each aligned group of M inputs) is broken, or if the logits differ from
those given by more than the tolerance (largest absolute difference). Prints one JSON object.
Float32, eager attention, CPU, one thread.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=Path, help="i64 [n]")
    parser.add_argument("--logits", type=Path, help="where to write f32 [n, vocab]")
    parser.add_argument("--compare", type=Path, help="f32 [n, vocab] to compare with")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--pattern", help="N:M")
    return parser.parse_args()


def main():
    args = arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    model, info = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="eager", output_loading_info=True,
        local_files_only=True,
    )
    problems = [
        f"{kind}: {sorted(map(str, info[kind]))}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        if info.get(kind)
    ]
    layers, zeros, total = {}, 0, 0
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or ".layers." not in name:
            continue
        w = module.weight.detach()
        if not torch.isfinite(w).all():
            problems.append(f"{name}: not finite")
        if args.pattern:
            n, m = (int(t) for t in args.pattern.split(":"))
            full = w.shape[1] // m * m
            most = (w[:, :full].reshape(-1, m) != 0).sum(1).max().item()
            if most > n:
                problems.append(f"{name}: {most} non-zeros in a group of {m}")
        gone = int((w == 0).sum())
        layers[name] = round(gone / w.numel(), 6)
        zeros, total = zeros + gone, total + w.numel()
    report = {
        "model": args.model.name,
        "architecture": type(model).__name__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "zero_fraction": zeros / total,
        "zero_fraction_by_layer": layers,
    }
    if args.tokens:
        tokens = torch.from_numpy(np.load(args.tokens).astype(np.int64)).reshape(1, -1)
        with torch.inference_mode():
            logits = model.eval()(tokens, use_cache=False).logits[0].numpy()
        report["logits_shape"] = list(logits.shape)
        report["logits_std"] = float(logits.std())
        if args.logits:
            np.save(args.logits, logits)
        if args.compare:
            wanted = np.load(args.compare)
            if wanted.shape != logits.shape:
                problems.append(f"logits: shape {wanted.shape} given, {logits.shape} computed")
            else:
                report["largest_difference"] = float(np.abs(wanted - logits).max())
                report["same_argmax"] = float((wanted.argmax(1) == logits.argmax(1)).mean())
                if not report["largest_difference"] <= args.tolerance:
                    problems.append(f"logits: differ by {report['largest_difference']:.3g}")
    report["problems"] = problems
    print(json.dumps(report, indent=2))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
