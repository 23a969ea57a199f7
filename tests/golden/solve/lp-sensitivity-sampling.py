"""Golden values: ℓp sensitivities by linear programming and by BFGS, Lewis weights, ℓp regression.

Writes lp-sensitivity-sampling.json beside itself.
"""

import json
import pathlib

import numpy
import scipy
from scipy.optimize import linprog, minimize

rng = numpy.random.default_rng(5)
n, d = 40, 4
a = rng.standard_normal((n, d)) * (1 + 5 * (rng.random((n, 1)) < 0.1))
a = numpy.round(a, 3)
b = numpy.round(a @ [1, -2, 0.5, 3] + rng.standard_t(2, n), 3)


def l1(rows, rhs, equal=None):
    """min ‖rows·x − rhs‖₁, under equal·x = 1 when given."""
    k, m = rows.shape[1], len(rhs)
    cost = numpy.r_[numpy.zeros(k), numpy.ones(m)]
    left = numpy.block([[rows, -numpy.eye(m)], [-rows, -numpy.eye(m)]])
    right = numpy.r_[rhs, -rhs]
    extra = {} if equal is None else {"A_eq": [numpy.r_[equal, numpy.zeros(m)]], "b_eq": [1.0]}
    found = linprog(cost, left, right, bounds=[(None, None)] * k + [(0, None)] * m, method="highs", **extra)
    assert found.status == 0
    return found.fun, found.x[:k]


def smooth(rows, rhs, p, start):
    """min Σ|rows·x − rhs|^p by BFGS, then by Newton on the gradient."""

    def value(x):
        r = rows @ x - rhs
        return (abs(r) ** p).sum(), p * rows.T @ (abs(r) ** (p - 1) * numpy.sign(r))

    x = minimize(value, start, jac=True, method="BFGS", options={"gtol": 1e-12, "maxiter": 10000}).x
    best = value(x)[0]
    for _ in range(200):
        r = rows @ x - rhs
        w = numpy.maximum(abs(r), 1e-9) ** (p - 2)
        step = numpy.linalg.solve(rows.T @ (rows * w[:, None]), rows.T @ (w * r)) / max(1, p - 1)
        if value(x - step)[0] > best:
            break
        x, best = x - step, value(x - step)[0]
    return best, x


def sensitivity(p):
    out = []
    for row in a:
        if p == 1:
            out.append(1 / l1(a, numpy.zeros(n), row)[0])
            continue
        # x = x0 + N·y meets ⟨row, x⟩ = 1.
        x0 = row / (row @ row)
        null = numpy.linalg.svd(row[None])[2][1:].T
        out.append(1 / smooth(a @ null, -a @ x0, p, numpy.zeros(d - 1))[0])
    return out


def lewis(p):
    w = numpy.full(n, d / n)
    for _ in range(2000):
        g = numpy.linalg.inv(a.T @ (a * w[:, None] ** (1 - 2 / p)))
        tau = w ** (1 - 2 / p) * numpy.einsum("ij,jk,ik->i", a, g, a)
        w = w * (tau / w) ** (p / 2 if p < 2 else 1)
    return w.tolist()


powers = [1, 1.5, 3, 4]
least_squares = numpy.linalg.lstsq(a, b, rcond=None)[0]
regressions = []
for p in powers:
    objective, x = l1(a, b) if p == 1 else smooth(a, b, p, least_squares)
    regressions.append({"p": p, "objective": objective, "x": list(x)})
out = {
    "versions": {"numpy": numpy.__version__, "scipy": scipy.__version__},
    "n": n,
    "d": d,
    "a": a.ravel().tolist(),
    "b": b.tolist(),
    "sensitivity": [{"p": p, "values": sensitivity(p)} for p in powers],
    "lewis": [{"p": p, "values": lewis(p)} for p in powers],
    "regress": regressions,
}
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(out) + "\n")
