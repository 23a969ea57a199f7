"""NumPy with its own OpenBLAS."""
from common import *

entries = []
if JOB["op"] == "gemv":
    rows, cols, n = SHAPE
    w, x = read("w", rows, cols), read("x", n, cols)
    ws = [turned(w, i) for i in range(copies(w.nbytes))]
    entries.append(Entry("numpy f32", "w", w.nbytes, lambda i: x @ ws[i % len(ws)].T))
elif JOB["op"] == "spmm":
    rows, cols, pixels = SHAPE
    x = read("x", cols, pixels)
    w = read("w", rows, cols)
    ws = [turned(w, i) for i in range(8)]
    y = np.empty((rows, pixels), np.float32)
    entries.append(Entry("numpy f32", "w", w.nbytes, lambda i: np.matmul(ws[i % 8], x, out=y)))
serve("numpy", "numpy " + np.__version__, entries)
