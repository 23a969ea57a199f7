"""Noise of the analytic Gaussian mechanism (Balle and Wang 2018) by SciPy, thresholded least squares by NumPy:
writes ldp.json beside this file."""
import json
from pathlib import Path

import numpy as np
import scipy
from scipy.optimize import brentq
from scipy.special import log_ndtr


def delta(sigma, epsilon):
    a, b = 0.5 / sigma, epsilon * sigma
    return np.exp(log_ndtr(a - b)) - np.exp(epsilon + log_ndtr(-a - b))


cases = []
for epsilon in (0.1, 0.5, 1.0, 2.0, 4.0, 20.0):
    for d in (1e-3, 1e-6, 1e-9):
        sigma = brentq(lambda s: np.log(max(delta(s, epsilon), 1e-300)) - np.log(d), 1e-2, 1e3, xtol=1e-14, rtol=1e-14)
        cases.append({"epsilon": epsilon, "delta": d, "sigma": sigma})
rng = np.random.default_rng(3)
n, d, threshold = 40, 4, 0.1
x = np.round(rng.normal(size=(n, d)), 3)
y = np.round(x @ np.array([0.8, 0, -0.5, 0]) + 0.1 * rng.normal(size=n), 3)
dense = np.linalg.solve(x.T @ x / n, x.T @ y / n)
theta = np.sign(dense) * np.maximum(np.abs(dense) - threshold, 0)
iht = np.zeros(d)
for part in np.array_split(np.arange(n), 4):
    u = x[part] * (x[part] @ iht - y[part])[:, None]
    iht = iht - 0.7 * u.mean(axis=0)
    iht[np.argsort(-np.abs(iht))[2:]] = 0
out = {"versions": {"numpy": np.__version__, "scipy": scipy.__version__}, "gaussian": cases, "d": d,
       "x": x.ravel().tolist(), "y": y.tolist(), "threshold": threshold, "dense": dense.tolist(),
       "theta": theta.tolist(), "iht": iht.tolist()}
Path(__file__).with_name("ldp.json").write_text(json.dumps(out) + "\n")
