"""What every peer does: read the job, prepare, write results to be verified, then one pass for each line on standard input."""
import json, os, sys, time
import numpy as np

# What libraries print must not come between the answers.
OUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
JOB = json.loads(sys.argv[1])
DIR, THREADS, SHAPE = JOB["dir"], JOB["threads"], JOB["shape"]
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, str(THREADS))


def read(name, *shape):
    return np.fromfile(os.path.join(DIR, name + ".f32"), dtype=np.float32).reshape(shape)


def turned(w, copy, block=1):
    """Copy of a weight with its rows turned: a mask of its own, at the same density."""
    return np.roll(w, -copy * 37 * block, axis=0)


class Entry:
    """`call(i)` runs copy i and returns the result; `w` names the weights it stands for."""

    def __init__(self, name, w, size, call, result=None):
        self.name, self.w, self.size, self.call = name, w, size, call
        self.result = result or (lambda y: np.asarray(y))


def copies(*sizes):
    """Copies of each kernel's weights, so that all of them in this process have the bytes of the job."""
    return max(3, -(-JOB["min_bytes"] // max(1, int(sum(sizes)))))


def serve(peer, version, entries):
    described = []
    for i, e in enumerate(entries):
        np.ascontiguousarray(e.result(e.call(0)), dtype=np.float32).tofile(os.path.join(DIR, f"{peer}.{i}.f32"))
        described.append({"name": e.name, "w": e.w, "bytes": int(e.size)})
    print(json.dumps({"entries": described, "version": version}), file=OUT, flush=True)
    copy = 0
    for _ in sys.stdin:
        times = {}
        for e in entries:
            ms = []
            for _ in range(JOB["calls"]):
                e.call(copy)
                start = time.perf_counter()
                e.call(copy + 1)
                ms.append((time.perf_counter() - start) * 1e3)
                copy += 2
            times[e.name] = ms
        print(json.dumps(times), file=OUT, flush=True)
