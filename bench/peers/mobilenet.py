"""MobileNet v1 of given weights: as an ONNX graph for the peers, and in NumPy to verify everybody."""
import numpy as np

PAIRS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)] + [(512, 1)] * 5 + [(1024, 2), (1024, 1)]


def layers():
    """(d_in, d_out, groups, kernel, stride) of each convolution."""
    out, c = [(3, 32, 1, 3, 2)], 32
    for d_out, stride in PAIRS:
        out += [(c, c, c, 3, stride), (c, d_out, 1, 1, 1)]
        c = d_out
    return out + [(c, 1001, 1, 1, 1)]


def split(flat):
    at = 0
    for d_in, d_out, groups, k, stride in layers():
        size = d_out * d_in // groups * k * k
        yield (d_in, d_out, groups, k, stride), flat[at:at + size].reshape(d_out, d_in // groups, k, k)
        at += size
    assert at == flat.size


def make(rng, block, sparsity):
    flat = []
    for d_in, d_out, groups, k, _ in layers():
        pruned = k == 1 and d_out != 1001
        row = d_in // groups * k * k
        w = (rng.random((d_out, row), np.float32) - 0.5) * (3.4 / (row * (1 - sparsity if pruned else 1)) ** 0.5)
        if pruned:
            w *= np.repeat(rng.random((d_out // block, row)) >= sparsity, block, 0)
        flat.append(w.ravel())
    return np.concatenate(flat).astype(np.float32)


def forward(flat, x):
    """x is CHW; f32 products in NumPy, no library's convolution."""
    all_layers = list(split(flat))
    for i, ((_, d_out, groups, k, stride), w) in enumerate(all_layers):
        if i == len(all_layers) - 1:
            return w.reshape(d_out, -1) @ x.mean((1, 2))
        if k == 1:
            x = (w.reshape(d_out, -1) @ x.reshape(x.shape[0], -1)).reshape(d_out, *x.shape[1:])
        else:
            side = -(-x.shape[1] // stride)
            pad = max(0, (side - 1) * stride + k - x.shape[1])
            p = np.pad(x, ((0, 0), (pad // 2, pad - pad // 2), (pad // 2, pad - pad // 2)))
            x = 0
            for a in range(k):
                for b in range(k):
                    s = p[:, a:a + side * stride:stride, b:b + side * stride:stride][:, :side, :side]
                    x = x + (w[:, 0, a, b, None, None] * s if groups > 1 else np.tensordot(w[:, :, a, b], s, 1))
        x = np.clip(x, 0, 6)


def onnx_graph(flat, side):
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, name = [], [], "x"
    weights += [numpy_helper.from_array(np.float32(v), n) for n, v in (("zero", 0), ("six", 6))]
    all_layers = list(split(flat))
    for i, ((_, _, groups, k, stride), w) in enumerate(all_layers):
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        if i == len(all_layers) - 1:
            nodes.append(helper.make_node("GlobalAveragePool", [name], ["pooled"]))
            nodes.append(helper.make_node("Conv", ["pooled", f"w{i}"], ["y"], kernel_shape=[1, 1]))
            break
        nodes.append(helper.make_node("Conv", [name, f"w{i}"], [f"c{i}"], kernel_shape=[k, k], strides=[stride] * 2, group=groups, auto_pad="SAME_UPPER"))
        name = f"r{i}"
        nodes.append(helper.make_node("Clip", [f"c{i}", "zero", "six"], [name]))
    value = lambda n, s: helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
    return helper.make_graph(nodes, "mobilenet", [value("x", [1, 3, side, side])], [value("y", [1, 1001, 1, 1])], weights)
