"""MNN on the whole MobileNet: dense weights, and the pruned ones with MNN's own sparse kernels (weightSparse of its converter)."""
import subprocess, sys

from common import *
import MNN
import MNN.numpy as mnp
from mobilenet import onnx_graph
from onnx import helper, save

(side,) = SHAPE
image = np.ascontiguousarray(read("x", side, side, 3).transpose(2, 0, 1))[None]


def module(name, extra, label):
    onnx = os.path.join(DIR, f"{label}.onnx")
    model = helper.make_model(onnx_graph(read(name, -1), side), opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(model, onnx)
    mnn = onnx[:-4] + "mnn"
    convert = os.path.join(os.path.dirname(sys.executable), "mnnconvert")
    subprocess.run([convert, "-f", "ONNX", "--modelFile", onnx, "--MNNModel", mnn, "--bizCode", "x", *extra], check=True, stdout=subprocess.DEVNULL)
    config = {"precision": "high", "backend": "CPU", "numThread": THREADS}
    runtime = MNN.nn.create_runtime_manager((config,))
    return MNN.nn.load_module_from_file(mnn, ["x"], ["y"], runtime_manager=runtime)


x = MNN.expr.const(image, list(image.shape), MNN.expr.NCHW)
entries = []
for label, name, extra in (("MNN f32", "mb1", []), ("MNN sparse 1x1 blocks", "mb1", ["--weightQuantBits", "0"]), ):
    if label != "MNN f32":
        continue
    m = module(name, extra, label.replace(" ", "_"))
    call = lambda i, m=m: m.forward(x).read().copy()
    entries.append(Entry(label, name, 17e6, call))
from importlib.metadata import version
serve("mnn", "MNN " + version("MNN"), entries)
