"""ONNX Runtime: dense f32, dynamic int8, int4 in blocks of 32 (MatMulNBits), and the whole MobileNet."""
from common import *
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

# One pool for all sessions: a pool in each would spin beside the session that runs.
ort.set_global_thread_pool_sizes(THREADS, 1)
wanted = JOB.get("onnxruntime", ["f32"])


def session(graph):
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    o = ort.SessionOptions()
    o.use_per_session_threads, o.log_severity_level = False, 3
    # Threads that go on spinning after a call would take a core from the peer whose turn is next.
    o.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model.SerializeToString(), o, providers=["CPUExecutionProvider"])


def graph(nodes, weights, shape_in, shape_out):
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    return helper.make_graph(nodes, "g", [value("x", shape_in)], [value("y", shape_out)], [numpy_helper.from_array(a, k) for k, a in weights.items()])


def int4(w):
    """Codes of 4 bits with one scale per 32 columns, zero point 8, as MatMulNBits wants them."""
    rows, cols = w.shape
    g = w.reshape(rows, cols // 32, 32)
    scale = np.abs(g).max(2) / 7
    q = (np.clip(np.rint(g / np.maximum(scale, 1e-20)[..., None]), -8, 7) + 8).astype(np.uint8)
    return (q[..., 0::2] | q[..., 1::2] << 4), scale.astype(np.float32)


entries = []
if JOB["op"] == "gemv":
    rows, cols, n = SHAPE
    w, x = read("w", rows, cols), read("x", n, cols)
    scale8 = np.abs(w).max(1) / 127

    def f32(w):
        return session(graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ascontiguousarray(w.T)}, [n, cols], [n, rows]))

    def int8(q, scale):
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
            helper.make_node("MatMulInteger", ["xq", "q", "xz"], ["i"]),
            helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["s", "xs"], ["m"]),
            helper.make_node("Mul", ["f", "m"], ["y"]),
        ]
        return session(graph(nodes, {"q": np.ascontiguousarray(q.T), "s": scale}, [n, cols], [n, rows]))

    def nbits(q, scale):
        node = helper.make_node("MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", K=cols, N=rows, bits=4, block_size=32, accuracy_level=4)
        return session(graph([node], {"q": q, "s": scale.reshape(-1)}, [n, cols], [n, rows]))

    make = {
        "f32": (1, f32, [w]),
        "int8": (0.25, int8, [np.rint(w / scale8[:, None]).astype(np.int8), scale8.astype(np.float32)]),
        "int4": (0.125 + 1 / 32, nbits, int4(w) if "int4" in wanted else None),
    }
    count = copies(*(w.nbytes * make[kind][0] for kind in wanted))
    for kind in wanted:
        size, build, parts = make[kind]
        ss = [build(*(turned(p, i) for p in parts)) for i in range(count)]
        entries.append(Entry(f"ORT {kind}", "w", w.nbytes * size, lambda i, ss=ss: ss[i % len(ss)].run(None, {"x": x})[0]))
elif JOB["op"] == "spmm":
    rows, cols, pixels = SHAPE
    w, x = read("w", rows, cols), read("x", cols, pixels)
    gemm = [session(graph([helper.make_node("MatMul", ["w", "x"], ["y"])], {"w": turned(w, i)}, [cols, pixels], [rows, pixels])) for i in range(4)]
    entries.append(Entry("ORT f32", "w", w.nbytes, lambda i: gemm[i % 4].run(None, {"x": x})[0]))
    image = x.reshape(1, cols, 1, pixels)
    conv = [session(graph([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": turned(w, i).reshape(rows, cols, 1, 1)}, [1, cols, 1, pixels], [1, rows, 1, pixels])) for i in range(4)]
    entries.append(Entry("ORT conv f32", "w", w.nbytes, lambda i: conv[i % 4].run(None, {"x": image})[0]))
elif JOB["op"] == "mobilenet":
    from mobilenet import onnx_graph

    (side,) = SHAPE
    image = np.ascontiguousarray(read("x", side, side, 3).transpose(2, 0, 1))[None]
    s = session(onnx_graph(read("mb1", -1), side))
    entries.append(Entry("ORT f32", "mb1", 17e6, lambda i: s.run(None, {"x": image})[0]))
serve("onnxruntime", "onnxruntime " + ort.__version__, entries)
