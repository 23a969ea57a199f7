"""Makes kronecker-sbl.json: the EM of KroSBL and of classic SBL with the full matrices, in NumPy, without pruning.

    python tests/golden/solve/kronecker-sbl.py > tests/golden/solve/kronecker-sbl.json
"""
import json

import numpy as np

rng = np.random.default_rng(5)
shapes = [(3, 4), (4, 5), (3, 3)]
factors = [np.round(rng.normal(size=s), 3) for s in shapes]
h = np.kron(np.kron(factors[0], factors[1]), factors[2])
x = np.zeros((4, 5, 3))
x[np.ix_([0, 2], [1, 4], [1])] = rng.normal(size=(2, 2, 1))
y = np.round(h @ x.ravel() + 0.1 * rng.normal(size=h.shape[0]), 4)
y /= np.sqrt(np.mean(y ** 2))  # rarefy starts from a prior of ones for y of unit mean square
noise = 0.02


def posterior(gamma):
    c = noise * np.eye(len(y)) + (h * gamma) @ h.T
    mean = gamma * (h.T @ np.linalg.solve(c, y))
    var = gamma - gamma ** 2 * np.einsum("ij,ij->j", h, np.linalg.solve(c, h))
    cost = float(np.linalg.slogdet(c)[1] + y @ np.linalg.solve(c, y))
    return mean, var, cost


def svd_step(lam):
    u, s, v = np.linalg.svd(lam.reshape(4, 15), full_matrices=False)
    g1, rest = abs(u[:, 0]), abs(s[0] * v[0]).reshape(5, 3)
    u, s, v = np.linalg.svd(rest, full_matrices=False)
    return [g1, abs(u[:, 0]), abs(s[0] * v[0])]


def one_pass(lam, g):
    g = list(g)
    g[0] = np.einsum("ijk,j,k->i", lam, 1 / g[1], 1 / g[2]) / 15
    g[1] = np.einsum("ijk,i,k->j", lam, 1 / g[0], 1 / g[2]) / 12
    g[2] = np.einsum("ijk,i,j->k", lam, 1 / g[0], 1 / g[1]) / 20
    return g


def run(step, rounds):
    g = [np.full(4, 4 ** -0.5), np.full(5, 5 ** -0.5), np.full(3, 20 ** 0.5)]
    for _ in range(rounds):
        mean, var, _ = posterior(np.kron(np.kron(g[0], g[1]), g[2]))
        g = step((var + mean ** 2).reshape(4, 5, 3), g)
    return posterior(np.kron(np.kron(g[0], g[1]), g[2]))


def classic(update, rounds):
    g = np.ones(h.shape[1])
    for _ in range(rounds):
        mean, var, _ = posterior(g)
        g = var + mean ** 2 if update == "em" else mean ** 2 / (1 - var / g)
    return posterior(g)


def am(lam, g):
    for _ in range(3000):
        g = one_pass(lam, g)
    return g


cases = {}
for name, (mean, _, cost) in {
    "svd": run(lambda lam, g: svd_step(lam), 4), "one-pass": run(one_pass, 4), "start": run(one_pass, 0),
    "alternating": run(am, 3), "em": classic("em", 4), "mackay": classic("mackay", 3),
}.items():
    cases[name] = {"x": mean.tolist(), "cost": cost}
print(json.dumps({"numpy": np.__version__, "noise": noise, "shapes": shapes, "factors": [f.ravel().tolist() for f in factors],
                  "y": y.tolist(), "cases": cases}))
