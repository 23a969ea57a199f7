"""Golden values of least squares from SciPy: writes linalg.json beside this file. Needs numpy, scipy."""
import json
from pathlib import Path

import numpy as np
import scipy
from scipy.optimize import nnls
from scipy.sparse.linalg import lsqr

rng = np.random.default_rng(11)
n, d = 40, 5
a = np.round(rng.normal(size=(n, d)), 4)
a[:3] *= 30
b = np.round(a @ rng.normal(size=d) + rng.standard_t(2, size=n), 4)
out = {"versions": {"scipy": scipy.__version__, "numpy": np.__version__}, "n": n, "d": d,
       "a": a.ravel().tolist(), "b": b.tolist()}
out["lsqr"] = lsqr(a, b, atol=1e-15, btol=1e-15, iter_lim=1000)[0].tolist()
out["damped"] = lsqr(a, b, damp=2.0, atol=1e-15, btol=1e-15, iter_lim=1000)[0].tolist()
x, r = nnls(a, b)
out["nnls"], out["nnls_residual"] = x.tolist(), float(r)
Path(__file__).with_suffix(".json").write_text(json.dumps(out) + "\n")
