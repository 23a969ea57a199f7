"""MobileNet v1 of given weights as a .tflite file, through the schema that the wheel of LiteRT brings. No converter, no TensorFlow."""
import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as s
from mobilenet import split

ACTIVATION = {"relu6": s.ActivationFunctionType.RELU6, None: s.ActivationFunctionType.NONE}


class Graph:
    def __init__(self):
        self.tensors, self.buffers, self.operators, self.codes = [], [s.BufferT()], [], []

    def tensor(self, name, shape, data=None, sparsity=None):
        t = s.TensorT()
        t.name, t.shape, t.sparsity, t.type = name, list(shape), sparsity, s.TensorType.FLOAT32
        if data is not None:
            if data.dtype == np.int32:
                t.type = s.TensorType.INT32
            b = s.BufferT()
            b.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            t.buffer = len(self.buffers)
            self.buffers.append(b)
        self.tensors.append(t)
        return len(self.tensors) - 1

    def operator(self, code, inputs, output, options=None, kind=0):
        if code not in self.codes:
            self.codes.append(code)
        o = s.OperatorT()
        o.opcodeIndex, o.inputs, o.outputs = self.codes.index(code), inputs, [output]
        o.builtinOptions, o.builtinOptionsType = options, kind
        self.operators.append(o)
        return output

    def bytes(self, x, y):
        g = s.SubGraphT()
        g.tensors, g.operators, g.inputs, g.outputs, g.name = self.tensors, self.operators, [x], [y], "main"
        m = s.ModelT()
        m.version, m.subgraphs, m.buffers, m.description = 3, [g], self.buffers, "bench"
        m.operatorCodes = []
        for code in self.codes:
            c = s.OperatorCodeT()
            c.builtinCode = c.deprecatedBuiltinCode = code
            c.version = 1
            m.operatorCodes.append(c)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(m.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def sparse_rows(w):
    """The 1x1 filter [rows, 1, 1, cols] in compressed rows, as the format's sparsity parameters describe it."""
    rows, cols = w.shape
    nonzero = w != 0
    p = s.SparsityParametersT()
    p.traversalOrder, p.dimMetadata = [0, 1, 2, 3], []
    for size in (rows, 1, 1):
        d = s.DimensionMetadataT()
        d.format, d.denseSize = s.DimensionType.DENSE, size
        p.dimMetadata.append(d)
    last = s.DimensionMetadataT()
    last.format = s.DimensionType.SPARSE_CSR
    for which, values in (("Segments", np.concatenate([[0], nonzero.sum(1).cumsum()])), ("Indices", np.nonzero(nonzero)[1])):
        v = s.Int32VectorT()
        v.values = values.astype(np.int32)
        setattr(last, f"array{which}", v)
        setattr(last, f"array{which}Type", s.SparseIndexVector.Int32Vector)
    p.dimMetadata.append(last)
    return p, w[nonzero]


def mobilenet(flat, side, sparse=False):
    """Input NHWC. With `sparse`, the pruned filters are stored in compressed rows, each behind a DENSIFY, as TensorFlow's tools write them."""
    g = Graph()
    x = at = g.tensor("x", [1, side, side, 3])
    all_layers = list(split(flat))
    for i, ((d_in, d_out, groups, k, stride), w) in enumerate(all_layers):
        last = i == len(all_layers) - 1
        side = -(-side // stride)
        if last:
            axes = g.tensor("axes", [2], np.array([1, 2], np.int32))
            o = s.ReducerOptionsT()
            o.keepDims = True
            at = g.operator(s.BuiltinOperator.MEAN, [at, axes], g.tensor("mean", [1, 1, 1, d_in]), o, s.BuiltinOptions.ReducerOptions)
            side = 1
        depthwise = groups > 1
        # Filters are [d_out, k, k, d_in], of a depthwise convolution [1, k, k, d_out].
        filter = w.transpose(1, 2, 3, 0) if depthwise else w.transpose(0, 2, 3, 1)
        if sparse and k == 1 and not last:
            parameters, values = sparse_rows(w.reshape(d_out, d_in))
            stored = g.tensor(f"s{i}", filter.shape, values, parameters)
            weights = g.operator(s.BuiltinOperator.DENSIFY, [stored], g.tensor(f"w{i}", filter.shape), s.DensifyOptionsT(), s.BuiltinOptions.DensifyOptions)
        else:
            weights = g.tensor(f"w{i}", filter.shape, filter)
        bias = g.tensor(f"b{i}", [d_out], np.zeros(d_out, np.float32))
        o = s.DepthwiseConv2DOptionsT() if depthwise else s.Conv2DOptionsT()
        o.padding, o.strideW, o.strideH = s.Padding.SAME, stride, stride
        o.dilationWFactor = o.dilationHFactor = 1
        o.fusedActivationFunction = ACTIVATION[None if last else "relu6"]
        if depthwise:
            o.depthMultiplier = 1
            code, kind = s.BuiltinOperator.DEPTHWISE_CONV_2D, s.BuiltinOptions.DepthwiseConv2DOptions
        else:
            code, kind = s.BuiltinOperator.CONV_2D, s.BuiltinOptions.Conv2DOptions
        at = g.operator(code, [at, weights, bias], g.tensor("y" if last else f"a{i}", [1, side, side, d_out]), o, kind)
    return g.bytes(x, at)
