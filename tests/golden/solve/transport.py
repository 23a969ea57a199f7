"""Golden values of transport from POT: writes transport.json beside this file. Needs numpy, pot."""
import json
from pathlib import Path

import numpy as np
import ot
from ot.smooth import smooth_ot_semi_dual

rng = np.random.default_rng(7)
m, n = 7, 9
a, b = rng.random(m) + 0.1, rng.random(n) + 0.1
a, b = a / a.sum(), b / b.sum()
c = rng.random((m, n))
out = {"versions": {"pot": ot.__version__, "numpy": np.__version__}, "a": a.tolist(), "b": b.tolist(),
       "cost": c.ravel().tolist()}
for eta in (10, 200):
    p = ot.sinkhorn(a, b, c, 1 / eta, method="sinkhorn_log", stopThr=1e-14, numItermax=200_000)
    out[f"sinkhorn_{eta}"] = p.ravel().tolist()
out["emd"] = ot.emd(a, b, c).ravel().tolist()
out["emd2"] = float(ot.emd2(a, b, c))
out["l2"] = smooth_ot_semi_dual(a, b, c, 1.0, "l2", stopThr=1e-12, numItermax=10_000).ravel().tolist()
out["k3"] = smooth_ot_semi_dual(a, b, c, 0.5, "sparsity_constrained", max_nz=3, stopThr=1e-12,
                                numItermax=10_000).ravel().tolist()


def polish(plan, gamma):
    """The plan on the support of `plan` from its optimality conditions: POT stops at marginal errors near 1e-6."""
    rows, cols = np.nonzero(plan > 1e-7)
    system, right = np.zeros((m + n, m + n)), np.zeros(m + n)
    for i, j in zip(rows, cols):
        for at in (i, m + j):
            system[at, i] += 1
            system[at, m + j] += 1
            right[at] += c[i, j]
    right += gamma * np.concatenate([a, b])
    dual = np.linalg.lstsq(system, right, rcond=None)[0]
    plan = np.maximum(dual[:m, None] + dual[None, m:] - c, 0) / gamma
    assert abs(plan.sum(1) - a).max() < 1e-14 and abs(plan.sum(0) - b).max() < 1e-14
    return plan


out["l2_polished"] = polish(np.array(out["l2"]).reshape(m, n), 1.0).ravel().tolist()
x = rng.standard_normal((m, n))
out["x"] = x.ravel().tolist()
out["projection_k3"] = ot.utils.projection_sparse_simplex(x.copy(), 3, z=1.0, axis=0).ravel().tolist()
Path(__file__).with_name("transport.json").write_text(json.dumps(out) + "\n")
