"""A signal and its Walsh-Hadamard coefficients by scipy.linalg.hadamard: writes spright.json beside this file."""
import json
from pathlib import Path

import numpy as np
import scipy
from scipy.linalg import hadamard

rng = np.random.default_rng(11)
n = 9
size = 1 << n
spectrum = np.zeros(size)
spectrum[rng.choice(size, 6, replace=False)] = np.round(rng.normal(size=6), 3)
x = hadamard(size) @ spectrum
found = hadamard(size) @ x / size
out = {"versions": {"numpy": np.__version__, "scipy": scipy.__version__}, "n": n, "x": x.tolist(),
       "spectrum": np.round(found, 12).tolist()}
Path(__file__).with_name("spright.json").write_text(json.dumps(out) + "\n")
