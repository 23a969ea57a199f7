"""Runs the definitions: ours and each peer in a process of its own, verified with NumPy, then timed in turn, pass by pass."""
import argparse, csv, json, os, pathlib, platform, re, statistics, subprocess, sys, tempfile, time, tomllib

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))
EXAMPLES = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")) / "release" / "examples"
FFT = pathlib.Path(os.environ.get("RAREFY_FFT_EXAMPLE", EXAMPLES / "fft_conv"))
# Relative error (Frobenius) that each precision may show against the f64 product of the f32 weights.
TOLERANCE = {"f32": 2e-5, "bf16": 1e-2, "int8": 2e-2, "int4": 0.13, "labels int8": 0.2, "network": 1e-4, "logits": 5e-2}
# Between two participants, so that the spinning threads of the one before are asleep.
PAUSE = 0.1


def main():
    p = argparse.ArgumentParser(prog="bench/run", description=__doc__)
    p.add_argument("group", help="a file in definitions/, all, or report (write the report again)")
    p.add_argument("--case", default="", help="only cases whose name contains this")
    p.add_argument("--threads", type=int, help="only this number of threads")
    p.add_argument("--passes", type=int)
    a = p.parse_args()
    failed = False
    if a.group != "report":
        files = sorted((HERE / "definitions").glob("*.toml" if a.group == "all" else a.group + ".toml"))
        if not files:
            p.error("no such group")
        for file in files:
            definition = tomllib.loads(file.read_text())
            for case in definition["case"]:
                for threads in case.get("threads", definition.get("threads", [2, 1])):
                    if a.case in case["name"] and a.threads in (None, threads):
                        try:
                            run({**definition, **case}, file.stem, threads, a.passes)
                        except Exception as e:  # the other cases still run; the report lists this one as not run
                            failed = True
                            print(f"FAILED {file.stem} {case['name']} {threads}T: {e!r}", file=sys.stderr)
    from report import write
    write(HERE)
    sys.exit(failed)


class Participant:
    def __init__(self, name, command, job):
        self.name = name
        env = {**os.environ, **{v: str(job["threads"]) for v in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}}
        self.process = subprocess.Popen([*command, json.dumps(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}")
        return json.loads(line)

    def ready(self):
        described = self.line()
        self.entries, self.version = described["entries"], described["version"]
        self.cpu = described.get("cpu")

    def one_pass(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.line()

    def close(self):
        try:
            self.process.stdin.close()
            self.process.wait(20)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()


class Layers:
    """The matrices of a decoder layer, each shape in a process of its own; the time of a layer is the sum over its matrices."""
    name = "ours"

    def __init__(self, job, rng):
        from tinyllama import matrices

        counts, self.parts = {}, []
        for _, rows, cols in matrices(*job["shape"]):
            counts[rows, cols] = counts.get((rows, cols), 0) + 1
        for (rows, cols), count in counts.items():
            folder = pathlib.Path(job["dir"], f"{rows}x{cols}")
            folder.mkdir()
            part = {**job, "op": "gemv", "dir": str(folder), "shape": [rows, cols, 1]}
            make_inputs(part, {e["w"] for e in job["entries"]} | {"w"}, folder, rng)
            self.parts.append((count, part, Participant("ours", [str(EXAMPLES / "serve")], part)))

    def ready(self):
        self.errors = {}
        for _, part, process in self.parts:
            process.ready()
            for name, error in verify(part, [process], part["dir"]).items():
                self.errors[name] = max(error, self.errors.get(name, 0))
        _, _, first = self.parts[0]
        self.version, self.cpu = first.version, first.cpu
        self.entries = [{**e, "bytes": sum(count * p.entries[i]["bytes"] for count, _, p in self.parts)} for i, e in enumerate(first.entries)]

    def one_pass(self):
        total = {}
        for count, _, process in self.parts:
            time.sleep(PAUSE)
            for name, values in process.one_pass().items():
                if name in self.errors:
                    total[name] = [count * v + t for v, t in zip(values, total.get(name, [0] * len(values)))]
                else:
                    total.setdefault(name, values)
        return total

    def close(self):
        for _, _, process in self.parts:
            process.close()


class FftRounds:
    """Our FFT convolution, whose example times itself beside two convolutions on rustfft and realfft, after verifying all three."""
    name, version, cpu = "ours", "rarefy", None

    def __init__(self, job):
        self.job = job
        self.entries = [{"name": n, "w": "k", "bytes": 0} for n in ("ours", "realfft", "rustfft, pairs")]

    def one_pass(self):
        command = [str(FFT), "0.05", str(self.job["threads"]), "long"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for line in text.splitlines():
            cells = line.split()
            if len(cells) == 11 and cells[0] == str(self.job["shape"][2]):
                return {n: [float(cells[i])] for n, i in (("ours", 1), ("realfft", 3), ("rustfft, pairs", 5))}
        raise RuntimeError("the output of fft_conv has no line for this length")

    def close(self):
        pass


def run(case, group, threads, passes):
    label = f"{group} {case['name']} {threads}T"
    print(f"== {label}: preparing", file=sys.stderr)
    rng = np.random.default_rng(7)
    with tempfile.TemporaryDirectory() as folder:
        job = {"op": case["op"], "dir": folder, "threads": threads, "shape": case["shape"], "calls": case.get("calls", 1), "min_bytes": case.get("min_bytes", 0)}
        job["entries"] = [{**e, "block": e.get("block", 0)} for e in case.get("ours", [])]
        names = {e["w"] for e in job["entries"]} | {"w"} | set(case.get("sparse", []))
        if case["op"] != "decode":
            make_inputs(job, names, folder, rng)
        everybody = []
        left_out, starting = [], []
        try:
            if case["op"] == "fft":
                everybody.append(FftRounds(job))
            elif case["op"] == "decode":
                everybody.append(Layers(job, rng))
            else:
                ours = Participant("ours", [str(EXAMPLES / "serve")], job)
                everybody.append(ours)
            for peer in case["peers"]:
                extra = {peer: case.get(peer, []), "sparse": case.get("sparse", [])}
                starting.append(Participant(peer, [sys.executable, str(HERE / "peers" / f"{peer}_peer.py")], {**job, **extra}))
            if case["op"] != "fft":
                everybody[0].ready()
            for one in starting:
                try:
                    one.ready()
                    everybody.append(one)
                except RuntimeError as e:
                    left_out.append(f"{one.name}: {e}")
                    print(f"   left out {left_out[-1]}", file=sys.stderr)
            checked = verify(job, everybody, folder)
            times = {}
            for index in range((passes or case["passes"]) + 1):
                for one in everybody:
                    time.sleep(PAUSE)
                    for name, ms in one.one_pass().items():
                        if index > 0:
                            times.setdefault(name, []).append(ms)
        finally:
            for one in {*everybody, *starting}:
                one.close()
        save(case, group, threads, job, everybody, times, checked, left_out)


def pruned(name, w, rng):
    """`u70`: unstructured; `b4_90`: columns of 4 rows; `g16_50`: groups of 16 in a row, equally many in each row."""
    rows, cols = w.shape
    kind, block, percent = re.fullmatch(r"([ubg])(?:(\d+)_)?(\d+)", name).groups()
    s = int(percent) / 100
    if kind == "u":
        return np.where(rng.random(w.shape, np.float32) < s, np.float32(0), w)
    block = int(block)
    if kind == "b":
        return np.where(np.repeat(rng.random((rows // block, cols)) < s, block, 0), np.float32(0), w)
    rank = rng.random((rows, cols // block), np.float32).argsort(1).argsort(1)
    return np.where(np.repeat(rank < s * (cols // block), block, 1), np.float32(0), w)


def make_inputs(job, names, folder, rng):
    put = lambda name, a: np.ascontiguousarray(a, dtype=np.float32).tofile(f"{folder}/{name}.f32")
    uniform = lambda *shape: rng.random(shape, np.float32) * 2 - 1
    op, shape = job["op"], job["shape"]
    if op in ("gemv", "spmm"):
        rows, cols, n = shape
        w = uniform(rows, cols)
        for name in sorted(names):
            put(name, w if name == "w" else pruned(name, w, rng))
        put("x", uniform(n, cols) if op == "gemv" else uniform(cols, n))
    elif op == "attention":
        kv, d, n = shape
        put("k", uniform(n, kv, d))
        put("v", uniform(n, kv, d))
        put("q", 3 * uniform(kv, d))
        put("channels", [[(i * 16 + h) % d for i in range(d // 16)] for h in range(kv)])
    elif op == "mobilenet":
        from mobilenet import make
        for name in names - {"w"}:
            put(name, make(rng, int(name[2:]), 0.9))
        put("x", rng.random((shape[0], shape[0], 3), np.float32))
    elif op == "fft":
        batch, heads, n = shape
        put("u", uniform(batch, heads, n))
        put("k", uniform(heads, n))


def verify(job, everybody, folder):
    """Relative error of every result against NumPy; raises where one is out of tolerance."""
    get = lambda name: np.fromfile(f"{folder}/{name}.f32", dtype=np.float32)
    op, shape, references, found = job["op"], job["shape"], {}, {}

    def reference(name):
        if op in ("gemv", "spmm"):
            w, x = get(name).reshape(shape[:2]).astype(np.float64), get("x").astype(np.float64)
            return x.reshape(shape[2], shape[1]) @ w.T if op == "gemv" else w @ x.reshape(shape[1], shape[2])
        if op == "attention":
            kv, d, n = shape
            k, v = (get(f).reshape(n, kv, d) for f in "kv")
            q, channels = get("q").reshape(kv, d).astype(np.float64), get("channels").reshape(kv, -1).astype(int)
            out = []
            for h in range(kv):
                tokens = slice(None)
                if name == "labels":
                    c = channels[h]
                    tokens = np.argsort(-(k[:, h, c].astype(np.float64) @ q[h, c]), kind="stable")[: -(-n // 16)]
                score = k[tokens, h].astype(np.float64) @ q[h] / d**0.5
                p = np.exp(score - score.max())
                out.append(p @ v[tokens, h].astype(np.float64) / p.sum())
            return np.array(out)
        if op == "decode":
            return get(name).astype(np.float64)  # from NumPy in the peer's process, on weights expanded by gguf
        if op == "mobilenet":
            from mobilenet import forward
            return forward(get(name).astype(np.float64), get("x").reshape(shape[0], shape[0], 3).transpose(2, 0, 1).astype(np.float64))
        batch, heads, n = shape
        u, k = get("u").reshape(batch, heads, n).astype(np.float64), get("k").reshape(heads, n).astype(np.float64)
        return np.fft.irfft(np.fft.rfft(u, 2 * n) * np.fft.rfft(k, 2 * n), 2 * n)[..., :n]

    for one in everybody:
        if isinstance(one, FftRounds):
            continue  # verified by the example, and by direct sums
        if isinstance(one, Layers):
            found.update(one.errors)
            continue
        for i, e in enumerate(one.entries):
            if e["w"] not in references:
                references[e["w"]] = reference(e["w"]).ravel()
            want, got = references[e["w"]], get(f"{one.name}.{i}")
            error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
            name = e["name"]
            precision = {"mobilenet": "network", "decode": "logits"}.get(op) or next((t for t in ("labels int8", "int4", "int8", "bf16") if t in name), "int4" if name.startswith("W4") else "f32")
            if not error <= TOLERANCE[precision]:
                raise RuntimeError(f"{one.name}, {name}: relative error {error:.2e} where {TOLERANCE[precision]:.0e} is allowed")
            found[name] = error
    return found


def machine():
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.processor())
    flags = next((l.split(":")[1].split() for l in open("/proc/cpuinfo") if l.startswith("flags")), [])
    return {"cpu": cpu, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.release().split('-')[0]}", "flags": [f for f in flags if f.startswith(("avx", "amx", "fma"))]}


def save(case, group, threads, job, everybody, times, checked, left_out):
    stem = f"{group}-{re.sub(r'[^a-z0-9]+', '-', case['name'].lower()).strip('-')}-{threads}t"
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    rows = []
    for one in everybody:
        for e in one.entries:
            if e["name"] in times:
                ms = sorted(v for p in times[e["name"]] for v in p)
                rows.append({"kernel": e["name"], "by": one.name, "bytes": e["bytes"], "ms": statistics.median(ms), "min": ms[0], "max": ms[-1], "error": checked.get(e["name"])})
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    data = {"group": group, "case": case["name"], "threads": threads, "shape": job["shape"], "min_bytes": job["min_bytes"], "calls": job["calls"], "date": time.strftime("%Y-%m-%d"),
            "commit": commit, "machine": machine(), "versions": [one.version for one in everybody], "python": platform.python_version(), "left_out": left_out, "rows": rows,
            "times_ms": {k: [[round(v, 5) for v in p] for p in t] for k, t in times.items()}}
    (folder / f"{stem}.json").write_text(json.dumps(data, separators=(",", ":")).replace('"times_ms"', '\n"times_ms"').replace('],"', '],\n"') + "\n")
    with open(folder / f"{stem}.csv", "w", newline="") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["kernel", "by", "threads", "bytes", "median_ms", "min_ms", "max_ms", "relative_error"])
        for r in rows:
            out.writerow([r["kernel"], r["by"], threads, r["bytes"], f"{r['ms']:.5f}", f"{r['min']:.5f}", f"{r['max']:.5f}", "" if r["error"] is None else f"{r['error']:.1e}"])
    for r in rows:
        print(f"   {r['kernel']:24} {r['ms']:9.4f} ms  ({r['min']:.4f} - {r['max']:.4f})", file=sys.stderr)


if __name__ == "__main__":
    main()
