"""Golden cases of the one-shot pruning methods: magnitude, Wanda, SparseGPT and their variants.

A plain NumPy reference in float64, written from the published algorithms (Wanda, arXiv 2306.11695;
SparseGPT, arXiv 2301.00774). Every case is one deflated .npz with

    w            f32 [R, C]   weights before pruning, R outputs, C inputs
    x            f32 [T, C]   calibration inputs, n_sequences equal pieces one after another
    n_sequences  i64 [1]
    settings     u8 [n]       JSON text, UTF-8 (see README.md for the keys)
    mask         u8 [R, C]    1 = kept by the selection
    weights      f32 [R, C]   expected result; pruned positions are +0.0
    loss         f64 [1]      SparseGPT only: half the squared norm of the error matrix E
    rel_error    f64 [1]      |x (w - weights)^T|^2 / |x w^T|^2
    norms        f64 [C]      calibrated methods only: a[c] = sum_tokens x_c^2 / n_sequences

Cases are drawn with successive seeds until no decision is near a tie and the same algorithm in
float32 decides alike, so an implementation in either precision must reproduce the mask exactly.

    python make.py OUTPUT_FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np

MIN_MARGIN = 1e-4  # relative gap between the last pruned and the first kept score
MIN_MARGIN_CUMULATIVE = 1e-5  # the same for the cumulative sums of the Wanda variant
MIN_MARGIN_ROUNDING = 1e-4  # distance from a half, in steps of the quantiser


class Margin:
    """Smallest distance from a tie met so far, by kind of decision."""

    def __init__(self):
        self.score = np.inf
        self.cumulative = np.inf
        self.rounding = np.inf

    def see_scores(self, last_pruned, first_kept):
        last_pruned, first_kept = np.asarray(last_pruned), np.asarray(first_kept)
        gap = (first_kept - last_pruned) / np.maximum(first_kept, np.finfo(np.float64).tiny)
        if gap.size:
            self.score = min(self.score, float(gap.min()))

    def enough(self):
        return (
            self.score >= MIN_MARGIN
            and self.cumulative >= MIN_MARGIN_CUMULATIVE
            and self.rounding >= MIN_MARGIN_ROUNDING
        )

    def least(self):
        kinds = {"score": self.score, "cumulative": self.cumulative, "rounding": self.rounding}
        return {k: float(f"{v:.3e}") for k, v in kinds.items() if np.isfinite(v)}


# ---------------------------------------------------------------------------------------------
# Selection. All return a boolean array, True = pruned. Lowest score first, ties: lower index first.


def prune_rank(scores, k, margin):
    """The k lowest of the whole array, row-major index order among equals."""
    flat = scores.ravel()
    order = np.argsort(flat, kind="stable")
    pruned = np.zeros(flat.size, bool)
    pruned[order[:k]] = True
    if 0 < k < flat.size:
        margin.see_scores(flat[order[k - 1]], flat[order[k]])
    return pruned.reshape(scores.shape)


def prune_threshold(scores, k, margin):
    """The rule of the published code: everything <= the (k+1)-th lowest score."""
    ranked = np.sort(scores.ravel())
    if k + 1 < ranked.size:
        margin.see_scores(ranked[k], ranked[k + 1])
    return scores <= ranked[k]


def prune_rows(scores, k, margin):
    """The k lowest of every row."""
    order = np.argsort(scores, axis=1, kind="stable")
    pruned = np.zeros(scores.shape, bool)
    np.put_along_axis(pruned, order[:, :k], True, axis=1)
    if 0 < k < scores.shape[1]:
        ranked = np.take_along_axis(scores, order, axis=1)
        margin.see_scores(ranked[:, k - 1], ranked[:, k])
    return pruned


def prune_n_of_m(scores, n, m, margin):
    """All but the n highest of every aligned group of m consecutive inputs of a row."""
    rows, cols = scores.shape
    assert cols % m == 0
    return prune_rows(scores.reshape(rows * cols // m, m), m - n, margin).reshape(rows, cols)


def prune_by(scores, settings, margin, granularity):
    """Mask for one matrix of scores under the pattern and the granularity."""
    if settings["pattern"] != "unstructured":
        n, m = (int(t) for t in settings["pattern"].split(":"))
        return prune_n_of_m(scores, n, m, margin)
    s = settings["sparsity"]
    if granularity == "row":
        return prune_rows(scores, int(scores.shape[1] * s), margin)
    rule = prune_threshold if settings.get("compat") else prune_rank
    return rule(scores, int(scores.size * s), margin)


# ---------------------------------------------------------------------------------------------
# Statistics


def input_norms(x, n_sequences):
    """a[c]: sum over tokens of x_c^2, divided by the number of sequences."""
    return (x * x).sum(axis=0) / x.dtype.type(n_sequences)


def hessian(x, n_sequences):
    """H = 2 / n_sequences * x^T x."""
    return x.T @ x * x.dtype.type(2.0 / n_sequences)


# ---------------------------------------------------------------------------------------------
# Methods. Arithmetic in the type of w and x.


def magnitude(w, settings, margin):
    pruned = prune_by(np.abs(w), settings, margin, "layer")
    return pruned, np.where(pruned, w.dtype.type(0), w), None


def wanda_scores(w, x, n_sequences):
    return np.abs(w) * np.sqrt(input_norms(x, n_sequences))


def wanda_variant(scores, s, margin, record):
    """One share alpha of every row's score sum, found by bisection (appendix of the paper)."""
    rows, cols = scores.shape
    order = np.argsort(scores, axis=1, kind="stable")
    cumulative = np.cumsum(np.take_along_axis(scores, order, axis=1), axis=1)
    total = scores.sum(axis=1, keepdims=True)

    def given(alpha):
        share = cumulative / total
        margin.cumulative = min(margin.cumulative, float(np.abs(share - alpha).min()))
        counts = (share <= alpha).sum(axis=1)
        pruned = np.zeros(scores.shape, bool)
        for r in range(rows):
            pruned[r, order[r, : counts[r]]] = True
        return pruned, counts.sum() / (rows * cols)

    alpha, low, high, steps = 0.4, 0.0, 0.8, 1
    pruned, current = given(alpha)
    while abs(current - s) > 0.001 and high - low >= 0.001:
        if current > s:
            alpha, high = (alpha + low) / 2.0, alpha
        else:
            alpha, low = (alpha + high) / 2.0, alpha
        pruned, current = given(alpha)
        steps += 1
    record["alpha"] = alpha
    record["bisection_steps"] = steps
    return pruned


def wanda(w, x, n_sequences, settings, margin, record):
    scores = wanda_scores(w, x, n_sequences)
    if settings["variant"]:
        pruned = wanda_variant(scores, settings["sparsity"], margin, record)
    else:
        pruned = prune_by(scores, settings, margin, settings["granularity"])
    return pruned, np.where(pruned, w.dtype.type(0), w), None


class RowQuantiser:
    """Asymmetric min-max grid per row; the range always includes 0, so 0 is on the grid."""

    def __init__(self, w, bits):
        kind = w.dtype.type
        self.top = kind(2**bits - 1)
        low = np.minimum(w.min(axis=1), kind(0))
        high = np.maximum(w.max(axis=1), kind(0))
        empty = (low == 0) & (high == 0)
        low[empty], high[empty] = -1, 1
        self.scale = (high - low) / self.top
        self.zero = np.round(-low / self.scale)

    def __call__(self, column, kept, margin):
        steps = column / self.scale
        if kept.any():
            near = np.abs(np.abs(steps - np.floor(steps)) - 0.5)[kept]
            margin.rounding = min(margin.rounding, float(near.min()))
        code = np.clip(np.round(steps) + self.zero, 0, self.top)
        return self.scale * (code - self.zero) + 0.0


def inverse_factor(h):
    """Upper triangular U with inverse(h) = U^T U."""
    inverse = np.linalg.inv(h)
    return np.linalg.cholesky((inverse + inverse.T) / h.dtype.type(2)).T


def sparsegpt(w, x, n_sequences, settings, margin, checks=None):
    """Algorithm 1 of the paper; `settings["ablate"]` replaces the saliency (Wanda's ablation)."""
    kind = w.dtype.type
    rows, cols = w.shape
    block = settings["blocksize"]
    s = settings["sparsity"]
    ablate = settings["ablate"]
    unstructured = settings["pattern"] == "unstructured"
    quantise = RowQuantiser(w, settings["bits"]) if settings["bits"] else None
    norms = np.sqrt(input_norms(x, n_sequences))

    fixed = None
    if ablate == "mag_seq":
        fixed = prune_by(np.abs(w), settings, margin, "layer")
    elif ablate == "wanda_seq":
        fixed = prune_by(np.abs(w) * norms, settings, margin, "row")

    h = hessian(x, n_sequences)
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w = w.copy()
    w[:, dead] = 0
    h[np.diag_indices(cols)] += kind(settings["percdamp"]) * np.diag(h).mean()
    u = inverse_factor(h)
    start = w.copy()

    def saliency(part, c1, c2):
        if ablate == "mag_iter":
            return np.abs(part)
        if ablate == "wanda_iter":
            return np.abs(part) * norms[c1:c2]
        return part**2 / np.diag(u)[c1:c2] ** 2

    pruned = np.zeros((rows, cols), bool)
    loss = 0.0
    for i1 in range(0, cols, block):
        i2 = min(i1 + block, cols)
        part = w[:, i1:i2].copy()
        done = np.zeros_like(part)
        error = np.zeros_like(part)
        factor = u[i1:i2, i1:i2]
        if fixed is not None:
            pruned[:, i1:i2] = fixed[:, i1:i2]
        elif unstructured:
            rule = prune_threshold if settings["compat"] else prune_rank
            pruned[:, i1:i2] = rule(saliency(part, i1, i2), int(part.size * s), margin)
        for j in range(i2 - i1):
            if fixed is None and not unstructured:
                n, m = (int(t) for t in settings["pattern"].split(":"))
                if j % m == 0:
                    scores = saliency(part[:, j : j + m], i1 + j, i1 + j + m)
                    pruned[:, i1 + j : i1 + j + m] = prune_n_of_m(scores, n, m, margin)
            gone = pruned[:, i1 + j]
            q = np.where(gone, kind(0), part[:, j])
            if quantise is not None:
                q = quantise(q, ~gone, margin)
            done[:, j] = q
            error[:, j] = (part[:, j] - q) / factor[j, j]
            part[:, j:] -= np.outer(error[:, j], factor[j, j:])
        w[:, i1:i2] = done
        w[:, i2:] -= error @ u[i1:i2, i2:]
        loss += 0.5 * float((error.astype(np.float64) ** 2).sum())

    if checks is not None:
        change = w - start
        exact = 0.5 * np.trace(change @ h @ change.T)
        assert abs(loss - exact) <= 1e-9 * exact, (loss, exact)
        assert np.abs(u @ h @ u.T - np.eye(cols)).max() < 1e-8
        if quantise is None:
            # the optimal kept weights for the same mask cannot be worse
            best = 0.0
            for r in range(rows):
                out = pruned[r]
                if out.any():
                    inner = np.linalg.inv(h)[np.ix_(out, out)]
                    best += 0.5 * float(start[r, out] @ np.linalg.solve(inner, start[r, out]))
            assert best <= loss * (1 + 1e-9), (best, loss)
    return pruned, w, loss


def run(w, x, n_sequences, settings, margin, record, checks=None):
    method = settings["method"]
    if method == "magnitude":
        return magnitude(w, settings, margin)
    if method == "wanda":
        return wanda(w, x, n_sequences, settings, margin, record)
    return sparsegpt(w, x, n_sequences, settings, margin, checks)


# ---------------------------------------------------------------------------------------------
# Inputs


def to_bf16_values(a):
    """Round to the nearest bfloat16 and return as f32 (so that files deflate well)."""
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def draw(seed, rows, cols, tokens, dead, zeros):
    """Correlated inputs with channel means, unequal scales and a few outlier channels."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, cols + 1) ** -0.6
    rotation, _ = np.linalg.qr(rng.standard_normal((cols, cols)))
    x = rng.standard_normal((tokens, cols)) * np.sqrt(spectrum) @ rotation.T
    x += 0.3 * x.std() * rng.standard_normal(cols)
    x *= np.exp(0.7 * rng.standard_normal(cols))
    x[:, rng.choice(cols, 2, replace=False)] *= 8.0
    x[:, list(dead)] = 0.0
    w = (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)
    if zeros:
        w[rng.random((rows, cols)) < zeros] = 0.0
    return w, to_bf16_values(x)


def case(name, method, rows, cols, tokens, n_sequences=4, sparsity=None, pattern="unstructured",
         dead=(), zeros=0.0, ties=False, **extra):
    settings = {"name": name, "method": method, "pattern": pattern, "compat": False}
    if pattern == "unstructured":
        settings["sparsity"] = sparsity
    else:
        n, m = (int(t) for t in pattern.split(":"))
        settings["sparsity"] = 1.0 - n / m
    if method == "wanda":
        settings |= {"granularity": "row", "variant": False}
    if method == "sparsegpt":
        settings |= {"blocksize": 128, "percdamp": 0.01, "bits": None, "ablate": None}
    assert extra.keys() <= settings.keys(), extra
    settings |= extra
    return settings, (rows, cols, tokens), n_sequences, tuple(dead), zeros, ties


CASES = [
    case("magnitude_50", "magnitude", 48, 64, 32, sparsity=0.5),
    case("magnitude_50_compat", "magnitude", 48, 64, 32, sparsity=0.5, compat=True),
    case("magnitude_70_odd", "magnitude", 33, 50, 32, sparsity=0.7),
    case("magnitude_zeros_first", "magnitude", 24, 40, 32, sparsity=0.5, zeros=0.4),
    case("magnitude_zeros_tie", "magnitude", 24, 40, 32, sparsity=0.3, zeros=0.4, ties=True),
    case("magnitude_2of4", "magnitude", 32, 64, 32, pattern="2:4"),
    case("magnitude_4of8", "magnitude", 32, 64, 32, pattern="4:8"),
    case("magnitude_1of4", "magnitude", 32, 64, 32, pattern="1:4"),
    case("wanda_row_50", "wanda", 48, 64, 128, sparsity=0.5),
    case("wanda_row_55_odd", "wanda", 33, 50, 96, n_sequences=3, sparsity=0.55),
    case("wanda_row_70_wide", "wanda", 24, 192, 96, n_sequences=2, sparsity=0.7),
    case("wanda_row_50_dead", "wanda", 32, 64, 96, sparsity=0.5, dead=(3, 17, 40)),
    case("wanda_layer_50", "wanda", 48, 64, 128, sparsity=0.5, granularity="layer"),
    case("wanda_variant_50", "wanda", 32, 96, 96, sparsity=0.5, variant=True),
    case("wanda_variant_70", "wanda", 32, 96, 96, sparsity=0.7, variant=True),
    case("wanda_2of4", "wanda", 32, 64, 96, pattern="2:4"),
    case("wanda_4of8", "wanda", 32, 64, 96, pattern="4:8"),
    case("wanda_1of4", "wanda", 32, 64, 96, pattern="1:4"),
    case("sparsegpt_50_bs128", "sparsegpt", 24, 256, 288, sparsity=0.5),
    case("sparsegpt_50_bs32", "sparsegpt", 32, 128, 192, sparsity=0.5, blocksize=32),
    case("sparsegpt_50_compat", "sparsegpt", 32, 96, 128, sparsity=0.5, blocksize=32, compat=True),
    case("sparsegpt_70_bs128", "sparsegpt", 32, 160, 192, sparsity=0.7),
    case("sparsegpt_70_bs32", "sparsegpt", 32, 96, 128, sparsity=0.7, blocksize=32),
    case("sparsegpt_50_ragged", "sparsegpt", 33, 75, 120, n_sequences=5, sparsity=0.5, blocksize=32),
    case("sparsegpt_50_few_tokens", "sparsegpt", 24, 96, 40, n_sequences=2, sparsity=0.5, blocksize=32),
    case("sparsegpt_50_dead", "sparsegpt", 32, 64, 96, sparsity=0.5, blocksize=32, dead=(3, 17, 40)),
    case("sparsegpt_2of4_bs128", "sparsegpt", 16, 160, 192, pattern="2:4"),
    case("sparsegpt_2of4_bs32", "sparsegpt", 24, 96, 128, pattern="2:4", blocksize=32),
    case("sparsegpt_2of4_dead", "sparsegpt", 24, 64, 96, pattern="2:4", blocksize=32, dead=(3, 17, 40)),
    case("sparsegpt_4of8_bs32", "sparsegpt", 24, 96, 128, pattern="4:8", blocksize=32),
    case("sparsegpt_1of4_bs32", "sparsegpt", 24, 64, 96, pattern="1:4", blocksize=32),
    case("sparsegpt_50_4bit", "sparsegpt", 24, 64, 96, sparsity=0.5, blocksize=32, bits=4),
    case("sparsegpt_2of4_4bit", "sparsegpt", 24, 64, 96, pattern="2:4", blocksize=32, bits=4),
    case("ablate_mag_seq_50", "sparsegpt", 24, 64, 96, sparsity=0.5, blocksize=32, ablate="mag_seq"),
    case("ablate_mag_iter_50", "sparsegpt", 24, 64, 96, sparsity=0.5, blocksize=32, ablate="mag_iter"),
    case("ablate_wanda_seq_50", "sparsegpt", 24, 64, 96, sparsity=0.5, blocksize=32, ablate="wanda_seq"),
    case("ablate_wanda_iter_50", "sparsegpt", 24, 64, 96, sparsity=0.5, blocksize=32, ablate="wanda_iter"),
    case("ablate_mag_iter_2of4", "sparsegpt", 24, 64, 96, pattern="2:4", blocksize=32, ablate="mag_iter"),
    case("ablate_wanda_seq_2of4", "sparsegpt", 24, 64, 96, pattern="2:4", blocksize=32, ablate="wanda_seq"),
    case("ablate_wanda_iter_2of4", "sparsegpt", 24, 64, 96, pattern="2:4", blocksize=32, ablate="wanda_iter"),
]


def check_counts(settings, w, pruned):
    """Exact counts that follow from the definitions alone."""
    s, rows, cols = settings["sparsity"], *w.shape
    if settings["pattern"] != "unstructured":
        n, m = (int(t) for t in settings["pattern"].split(":"))
        assert (pruned.reshape(-1, m).sum(axis=1) == m - n).all()
    elif settings["method"] == "wanda" and settings["variant"]:
        assert abs(pruned.mean() - s) <= 0.001
        assert len(set(pruned.sum(axis=1))) > 1
    elif settings["method"] == "wanda" and settings["granularity"] == "row":
        assert (pruned.sum(axis=1) == int(cols * s)).all()
    elif settings["method"] != "sparsegpt":
        assert pruned.sum() == int(rows * cols * s) + settings["compat"]


def make(index, entry):
    settings, shape, n_sequences, dead, zeros, ties = entry
    for attempt in range(5000):
        seed = 100_000 * (index + 1) + attempt
        w, x = draw(seed, *shape, dead, zeros)
        margin, record = Margin(), {}
        wide = w.astype(np.float64), x.astype(np.float64)
        pruned, weights, loss = run(*wide, n_sequences, settings, margin, record)
        if not (margin.enough() or ties):
            continue
        pruned32 = run(w, x, n_sequences, settings, Margin(), {})[0]
        if (pruned32 != pruned).any():
            continue
        break
    else:
        raise SystemExit(f"{settings['name']}: no seed is far enough from a tie")
    run(*wide, n_sequences, settings, Margin(), {}, checks=True)
    check_counts(settings, w, pruned)
    weights = weights.astype(np.float32)
    assert (weights[pruned] == 0).all() and not np.signbit(weights[pruned]).any()
    before = (wide[1] @ wide[0].T).astype(np.float64)
    after = wide[1] @ weights.astype(np.float64).T
    text = json.dumps(settings | {"seed": seed, "margin": margin.least()} | record, sort_keys=True)
    arrays = {
        "w": w,
        "x": x,
        "n_sequences": np.array([n_sequences], np.int64),
        "settings": np.frombuffer(text.encode(), np.uint8),
        "mask": (~pruned).astype(np.uint8),
        "weights": weights,
        "rel_error": np.array([((before - after) ** 2).sum() / (before**2).sum()]),
    }
    if loss is not None:
        arrays["loss"] = np.array([loss], np.float64)
    if settings["method"] != "magnitude":
        arrays["norms"] = input_norms(wide[1], n_sequences)
    return arrays, text


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    total = 0
    for index, entry in enumerate(CASES):
        arrays, text = make(index, entry)
        path = out / f"{entry[0]['name']}.npz"
        np.savez_compressed(path, **arrays)
        total += path.stat().st_size
        print(f"{path.name:32} {path.stat().st_size:7} bytes  zeros {(arrays['weights'] == 0).mean():.4f}  "
              f"error {arrays['rel_error'][0]:.5f}  {text}")
    print(f"{len(CASES)} cases, {total} bytes, numpy {np.__version__}")


if __name__ == "__main__":
    main()
