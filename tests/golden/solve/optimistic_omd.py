"""Points of optimistic OMD from the formulas in NumPy and SciPy: writes optimistic_omd.json beside this file."""
import json
from pathlib import Path

import numpy as np
import scipy
from scipy.optimize import brentq

rng = np.random.default_rng(5)
rounds, d, radius, bound = 40, 3, 1.0, 2.0
gradients = np.round(rng.normal(size=(rounds, d)) * 0.4 + np.array([0.5, -0.2, 0.1]), 3)
diameter = 2 * radius


def ball(x):
    n = np.linalg.norm(x)
    return x if n <= radius else x * radius / n


def ball_in_norm(h, y):
    if np.linalg.norm(y) <= radius:
        return y
    at = lambda nu: np.linalg.solve(h + nu * np.eye(d), h @ y)
    nu = brentq(lambda v: np.linalg.norm(at(v)) - radius, 0, 1e6, xtol=1e-15, rtol=1e-15)
    return at(nu)


def convex():
    base, hint, variation, out = np.zeros(d), np.zeros(d), 0.0, []
    for g in gradients:
        eta = diameter / np.sqrt(1 + 4 * bound**2 + variation)
        out.append(ball(base - eta * hint))
        base = ball(base - eta * g)
        variation += np.sum((g - hint) ** 2)
        hint = g
    return out


def entropy(eta=0.3):
    total, hint, out = np.zeros(d), np.zeros(d), []
    for g in gradients:
        w = np.exp(-eta * (total + hint))
        out.append(w / w.sum())
        total, hint = total + g, g
    return out


def exp_concave(alpha=1.0):
    beta = 0.5 * min(alpha, 1 / (4 * bound * diameter))
    h = (1 + beta * bound**2 / 2) * np.eye(d)
    base, hint, out = np.zeros(d), np.zeros(d), []
    for g in gradients:
        out.append(ball_in_norm(h, base - np.linalg.solve(h, hint)))
        base = ball_in_norm(h, base - np.linalg.solve(h, g))
        h = h + beta / 2 * np.outer(g, g)
        hint = g
    return out


def ensemble(smooth=0.05, horizon=rounds):
    size = int(np.ceil(0.5 * np.log2(bound**2 * horizon / (8 * diameter**2 * smooth**2)))) + 1
    etas = [min(1 / (8 * smooth), 2**i * np.sqrt(diameter**2 / (8 * bound**2 * horizon))) for i in range(size)]
    base = [np.zeros(d)] * size
    x, last = [np.zeros(d)] * size, [np.zeros(d)] * size
    losses, variation, hint, p, out = np.zeros(size), 0.0, np.zeros(d), np.full(size, 1 / size), []
    for g in gradients:
        out.append(sum(w * v for w, v in zip(p, x)))
        losses += [g @ v + 2 * smooth * np.sum((v - u) ** 2) for v, u in zip(x, last)]
        last = x
        base = [ball(b - e * g) for b, e in zip(base, etas)]
        x = [ball(b - e * g) for b, e in zip(base, etas)]
        hints = np.array([g @ v + 2 * smooth * np.sum((v - u) ** 2) for v, u in zip(x, last)])
        variation += np.sum((g - hint) ** 2)
        hint = g
        rate = min(1 / (8 * diameter**2 * smooth), np.sqrt(np.log(size) / (diameter**2 * variation)))
        s = -rate * (losses + hints)
        p = np.exp(s - s.max())
        p /= p.sum()
    return out


lists = lambda points: [np.asarray(x).tolist() for x in points]
out = {"versions": {"numpy": np.__version__, "scipy": scipy.__version__}, "gradients": gradients.tolist(),
       "convex": lists(convex()), "entropy": lists(entropy()), "exp_concave": lists(exp_concave()),
       "ensemble": lists(ensemble())}
Path(__file__).with_name("optimistic_omd.json").write_text(json.dumps(out) + "\n")
