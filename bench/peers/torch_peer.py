"""PyTorch: oneDNN and MKL dense, MKL CSR, dynamic int8, scaled-dot-product attention, FFT."""
import warnings

from common import *
import torch

warnings.filterwarnings("ignore")
torch.set_num_threads(THREADS)
torch.set_grad_enabled(False)
entries, wanted = [], JOB.get("torch", [])


def tensor(a):
    return torch.from_numpy(np.ascontiguousarray(a))


if JOB["op"] == "gemv":
    rows, cols, n = SHAPE
    w, x = read("w", rows, cols), tensor(read("x", n, cols))
    count = copies(*(w.nbytes * {"f32": 1, "bf16": 0.5, "int8": 0.25}[kind] for kind in wanted))
    if "f32" in wanted:
        ws = [tensor(turned(w, i)) for i in range(count)]
        entries.append(Entry("torch f32", "w", w.nbytes, lambda i: torch.nn.functional.linear(x, ws[i % len(ws)])))
    if "bf16" in wanted:
        wb = [tensor(turned(w, i)).bfloat16() for i in range(count)]
        xb = x.bfloat16()
        entries.append(Entry("torch bf16", "w", w.nbytes // 2, lambda i: torch.nn.functional.linear(xb, wb[i % len(wb)]), lambda y: y.float().numpy()))
    if "int8" in wanted:
        torch.backends.quantized.engine = "x86"
        layers = []
        for i in range(count):
            layer = torch.nn.Linear(cols, rows, bias=False)
            layer.weight = torch.nn.Parameter(tensor(turned(w, i)), requires_grad=False)
            layers.append(torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), dtype=torch.qint8))
            del layer
        entries.append(Entry("torch int8", "w", w.nbytes // 4, lambda i: layers[i % len(layers)](x)))
elif JOB["op"] == "spmm":
    rows, cols, pixels = SHAPE
    x, w = tensor(read("x", cols, pixels)), read("w", rows, cols)
    ds = [tensor(turned(w, i)) for i in range(8)]
    entries.append(Entry("torch f32", "w", w.nbytes, lambda i: torch.mm(ds[i % 8], x)))
    for name in JOB["sparse"]:
        s = read(name, rows, cols)
        cs = [tensor(turned(s, i)).to_sparse_csr() for i in range(8)]
        entries.append(Entry(f"torch CSR {name}", name, 8 * int((s != 0).sum()), lambda i, cs=cs: cs[i % 8] @ x))
elif JOB["op"] == "attention":
    kv, d, n = SHAPE
    k, v = (tensor(read(f, n, kv, d).transpose(1, 0, 2))[None] for f in "kv")
    q = tensor(read("q", 1, kv, 1, d))
    size = 2 * k.numel() * 4
    pairs = [(k, v)] + [(k.roll(i * 37, 2), v.roll(i * 37, 2)) for i in range(1, max(2, -(-JOB["min_bytes"] // size)))]
    entries.append(Entry("torch SDPA f32", "dense", size, lambda i: torch.nn.functional.scaled_dot_product_attention(q, *pairs[i % len(pairs)])))
elif JOB["op"] == "fft":
    batch, heads, n = SHAPE
    u, k = tensor(read("u", batch, heads, n)), tensor(read("k", heads, n))
    kf = torch.fft.rfft(k, n=2 * n)
    entries.append(Entry("torch.fft", "k", 0, lambda i: torch.fft.irfft(torch.fft.rfft(u, n=2 * n) * kf, n=2 * n)[..., :n]))
serve("torch", "torch " + torch.__version__, entries)
