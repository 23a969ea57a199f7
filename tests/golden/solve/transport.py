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
x = rng.standard_normal((m, n))
out["x"] = x.ravel().tolist()
out["projection_k3"] = ot.utils.projection_sparse_simplex(x.copy(), 3, z=1.0, axis=0).ravel().tolist()
Path(__file__).with_name("transport.json").write_text(json.dumps(out) + "\n")
