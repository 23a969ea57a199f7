"""Makes matrix-completion.json: alternating least squares and soft-impute written out densely in NumPy.

    python tests/golden/solve/matrix-completion.py > tests/golden/solve/matrix-completion.json
"""
import json

import numpy as np

rng = np.random.default_rng(11)
m, n, k = 14, 11, 3
x = np.round(rng.normal(size=(m, k)) @ rng.normal(size=(k, n)) + 0.1 * rng.normal(size=(m, n)), 3)
mask = rng.random((m, n)) < 0.7
mask[4] = False          # a row that was never observed
mask[6] = False
mask[6, 2:4] = True      # fewer entries than the rank
weight = np.where(mask, np.round(rng.random((m, n)) + 0.5, 2), 0.0)
start = np.round(rng.normal(size=(m, k)), 3)


def half(design, values, w, ridge):
    """Rows of the wanted factor, one lstsq each; columns of `values` and `w` belong to one row."""
    out = []
    for j in range(values.shape[1]):
        s = w[:, j] > 0
        root = np.sqrt(w[s, j])
        a = np.vstack([design[s] * root[:, None], np.sqrt(ridge * w[s, j].sum()) * np.eye(k)])
        b = np.concatenate([values[s, j] * root, np.zeros(k)])
        out.append(np.linalg.lstsq(a, b, rcond=None)[0] if s.any() else np.zeros(k))
    return np.array(out)


def als(w, ridge, rounds):
    u = start
    for _ in range(rounds):
        if ridge == 0:
            u = np.linalg.qr(u)[0]
        v = half(u, x, w, ridge)
        if ridge == 0:
            v = np.linalg.qr(v)[0]
        u = half(v, x.T, w.T, ridge)
    return u @ v.T


def soft_impute(lam):
    z = np.zeros((m, n))
    for _ in range(20000):
        a, s, b = np.linalg.svd(np.where(mask, x, z), full_matrices=False)
        new = (a * np.maximum(s - lam, 0)) @ b
        if np.abs(new - z).max() < 1e-14:
            break
        z = new
    return z, float(0.5 * ((x - z)[mask] ** 2).sum() + lam * np.linalg.svd(z, compute_uv=False).sum())


ones = mask.astype(float)
z, objective = soft_impute(1.0)
print(json.dumps({
    "numpy": np.__version__, "m": m, "n": n, "k": k, "x": x.ravel().tolist(), "mask": mask.ravel().astype(int).tolist(),
    "weight": weight.ravel().tolist(), "start": start.ravel().tolist(),
    "als": als(ones, 0.0, 1).ravel().tolist(), "als_3": als(ones, 0.0, 3).ravel().tolist(),
    "ridge": als(ones, 0.05, 4).ravel().tolist(), "weighted": als(weight, 0.02, 4).ravel().tolist(),
    "soft": z.ravel().tolist(), "soft_objective": objective,
}))
