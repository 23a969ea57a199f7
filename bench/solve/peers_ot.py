"""Optimal transport of POT and regot, one JSON line per run.

    python bench/solve/peers_ot.py make FOLDER N      writes uniform.f64 and points.f64: [N, N] costs, little-endian doubles
    python bench/solve/peers_ot.py run FILE TASK [REPEATS]

Uniform weights. `points`: uniform points in the square, squared distance; `uniform`: independent costs; both divided by
their maximum. Tasks: kernel=REG, log=REG, emd, newton=REG, ssns=REG, semidual=GAMMA (l2, relative to the largest cost).
Same files and tasks as `examples/transport.rs` of rarefy-solve. Needs numpy, pot, regot.
"""
import json
import sys
import time
import warnings

import numpy as np

warnings.filterwarnings("ignore")


def make(folder, n):
    rng = np.random.default_rng(0)
    x, y = rng.random((n, 2)), rng.random((n, 2))
    c = ((x[:, None] - y[None]) ** 2).sum(2)
    (c / c.max()).tofile(f"{folder}/points.f64")
    c = rng.random((n, n))
    (c / c.max()).tofile(f"{folder}/uniform.f64")


def run(path, task, repeats):
    import ot
    c = np.fromfile(path)
    n = int(len(c) ** 0.5)
    c = c.reshape(n, n)
    a = np.full(n, 1 / n)
    name, _, value = task.partition("=")
    value = float(value or 0)
    for _ in range(repeats):
        start, its = time.perf_counter(), 0
        if name in ("kernel", "log"):
            method, most = ("sinkhorn", 100_000) if name == "kernel" else ("sinkhorn_log", 10)
            p, log = ot.sinkhorn(a, a, c, value, method=method, numItermax=most, stopThr=1e-9, log=True)
            its = log["niter"]
        elif name == "emd":
            p = ot.emd(a, a, c, numItermax=10_000_000)
        elif name == "semidual":
            p = ot.smooth.smooth_ot_semi_dual(a, a, c, value, "l2", stopThr=1e-9, numItermax=1000)
        else:
            import regot
            f = {"newton": regot.sinkhorn_newton, "ssns": regot.sinkhorn_ssns}[name]
            r = f(c, a, a, value, tol=1e-12, max_iter=1000)
            p, its = r.plan, r.niter
        seconds = time.perf_counter() - start
        error = np.abs(p.sum(0) - a).sum() + np.abs(p.sum(1) - a).sum()
        print(json.dumps({"who": "peer", "task": task, "n": n, "seconds": round(seconds, 5), "iterations": int(its),
                          "error": float(f"{error:.2e}"), "cost": float((p * c).sum())}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], int(sys.argv[3]))
    else:
        run(sys.argv[2], sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 3)
