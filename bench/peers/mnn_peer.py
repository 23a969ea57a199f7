"""MNN on the whole MobileNet, dense."""
import subprocess, sys

from common import *
import MNN
import MNN.numpy as mnp
from mobilenet import onnx_graph
from onnx import helper, save

(side,) = SHAPE
image = np.ascontiguousarray(read("x", side, side, 3).transpose(2, 0, 1))[None]


def module(name):
    onnx = os.path.join(DIR, "mnn.onnx")
    model = helper.make_model(onnx_graph(read(name, -1), side), opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(model, onnx)
    mnn = os.path.join(DIR, "mnn.mnn")
    # Not the wheel's script mnnconvert: that one installs a package to report its use.
    convert = "import sys, MNN, _tools; _tools.mnnconvert(sys.argv)"
    args = ["mnnconvert", "-f", "ONNX", "--modelFile", onnx, "--MNNModel", mnn, "--bizCode", "x"]
    subprocess.run([sys.executable, "-c", convert, *args[1:]], check=True, stdout=subprocess.DEVNULL)
    runtime = MNN.nn.create_runtime_manager(({"precision": "high", "backend": "CPU", "numThread": THREADS},))
    return MNN.nn.load_module_from_file(mnn, ["x"], ["y"], runtime_manager=runtime)


x = MNN.expr.const(image, list(image.shape), MNN.expr.NCHW)
m = module("mb1")
entries = [Entry("MNN f32", "mb1", 17e6, lambda i: m.forward(x).read().copy())]
from importlib.metadata import version
serve("mnn", "MNN " + version("MNN"), entries)
