"""MNN on the whole MobileNet: dense, and sparse in blocks of 1 and 4 output channels."""
import subprocess, sys

from common import *
import MNN
from importlib.metadata import version
from mobilenet import onnx_graph
from onnx import helper, save

(side,) = SHAPE
image = np.ascontiguousarray(read("x", side, side, 3).transpose(2, 0, 1))[None]
PRUNED = 13


def convert(*args):
    # Not the wheel's script mnnconvert: that one installs a package to report its use.
    code = "import sys, _tools; _tools.mnnconvert(sys.argv)"
    subprocess.run([sys.executable, "-c", code, *args], check=True, stdout=subprocess.DEVNULL)


def module(name, block):
    file = lambda end: os.path.join(DIR, f"mnn.{name}.{block}.{end}")
    save(helper.make_model(onnx_graph(read(name, -1), side), opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file("onnx"))
    options = []
    if block:
        prune = {"type": "SIMD_OC", "simd_oc_pruner_params": {"oc_blocks": [block]}}
        with open(file("json"), "w") as f:
            json.dump({"version": "0.0.0", "algo": [{"type": "PRUNE", "prune_params": prune}]}, f)
        options = ["--detectSparseSpeedUp", "--compressionParamsFile", file("json")]
    convert("-f", "ONNX", "--modelFile", file("onnx"), "--MNNModel", file("mnn"), "--bizCode", "x", *options)
    if block:
        # A layer below the converter's gate stays dense, and nothing says so.
        convert("-f", "MNN", "--modelFile", file("mnn"), "--JsonFile", file("dump"))
        with open(file("dump")) as f:
            sparse = sum("sparseParameter" in line for line in f)
        if sparse != PRUNED:
            raise RuntimeError(f"MNN made {sparse} layers sparse, not {PRUNED}")
    runtime = MNN.nn.create_runtime_manager(({"precision": "high", "backend": "CPU", "numThread": THREADS},))
    return MNN.nn.load_module_from_file(file("mnn"), ["x"], ["y"], runtime_manager=runtime)


x = MNN.expr.const(image, list(image.shape), MNN.expr.NCHW)


def entry(label, name, block, size):
    m = module(name, block)
    return Entry(label, name, size, lambda i: m.forward(x).read().copy())


serve("mnn", "MNN " + version("MNN"), [entry("MNN f32", "mb1", 0, 17e6), entry("MNN sparse 1x1", "mb1", 1, 0), entry("MNN sparse 4x1", "mb4", 4, 0)])
