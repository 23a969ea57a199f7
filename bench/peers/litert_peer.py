"""LiteRT with XNNPACK on the whole MobileNet: dense, and from a file whose pruned filters are stored sparse."""
from common import *
from importlib.metadata import version
from ai_edge_litert.interpreter import Interpreter
from tflite import mobilenet

(side,) = SHAPE
image, flat = read("x", side, side, 3)[None], read("mb1", -1)


def interpreter(sparse):
    it = Interpreter(model_content=mobilenet(flat, side, sparse), num_threads=THREADS)
    it.allocate_tensors()
    it.set_tensor(it.get_input_details()[0]["index"], image)
    operators = [d["op_name"] for d in it._get_ops_details()]
    if operators.count("DELEGATE") != 1:
        raise RuntimeError(f"XNNPACK did not take the graph: {operators}")
    return it


def entry(name, sparse):
    it = interpreter(sparse)
    y = it.get_output_details()[0]["index"]
    return Entry(name, "mb1", 17e6, lambda i: it.invoke(), lambda _: it.get_tensor(y))


serve("litert", "ai-edge-litert " + version("ai-edge-litert"), [entry("LiteRT f32", False), entry("LiteRT, sparse file", True)])
