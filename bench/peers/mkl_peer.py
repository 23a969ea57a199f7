"""MKL's CSR products through sparse_dot_mkl."""
import glob, os, sys

for lib in glob.glob(os.path.join(sys.prefix, "lib", "libmkl_rt.so*")):
    os.environ.setdefault("MKL_RT", lib)
from common import *
import sparse_dot_mkl
from scipy import sparse

sparse_dot_mkl.set_debug_mode(False)
entries = []
rows, cols, n = SHAPE
for name in JOB["sparse"]:
    w = read(name, rows, cols)
    first = sparse.csr_matrix(w)
    size = first.data.nbytes + first.indices.nbytes
    count = copies(size) if JOB["op"] == "gemv" else 8
    ms = [first] + [sparse.csr_matrix(turned(w, i)) for i in range(1, count)]
    if JOB["op"] == "gemv":
        x = np.ascontiguousarray(read("x", n, cols).T)
        result = lambda y: np.asarray(y).reshape(rows, n).T
    else:
        x, result = read("x", cols, n), None
    y = np.zeros((rows, n), np.float32)
    call = lambda i, ms=ms, x=x, y=y: sparse_dot_mkl.dot_product_mkl(ms[i % len(ms)], x, out=y, out_scalar=0.0)
    entries.append(Entry(f"MKL CSR {name}", name, size, call, result))
from importlib.metadata import version
serve("mkl", f"sparse_dot_mkl {version('sparse_dot_mkl')}, mkl {sparse_dot_mkl.get_version_string() if hasattr(sparse_dot_mkl, 'get_version_string') else ''}", entries)
