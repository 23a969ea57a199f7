"""A decoder of TinyLlama-1.1B's layer shapes and random weights: as a GGUF file for llama.cpp, and in NumPy to verify it.

The layers of a file share one set of random matrices, their rows turned by another amount in each.
"""
import ctypes

import numpy as np

HEADS, KV_HEADS, VOCABULARY, EPSILON = 32, 4, 512, 1e-5
# A pattern of quantisations repeats after so many layers.
CYCLE = 22


def matrices(d, ff, kv):
    """(name, rows, columns) of the seven matrices of a layer."""
    return [("attn_q", d, d), ("attn_k", kv, d), ("attn_v", kv, d), ("attn_output", d, d), ("ffn_gate", ff, d), ("ffn_up", ff, d), ("ffn_down", d, ff)]


def kind(name, layer, mix):
    """llama.cpp's mixture Q4_K_M gives Q6_K to the head, and to two matrices of the layers it holds for sensitive."""
    if mix == "Q4_0":
        return "Q6_K" if name == "output" else "Q4_0"
    i = layer % CYCLE
    sensitive = i < CYCLE // 8 or i >= 7 * CYCLE // 8 or (i - CYCLE // 8) % 3 == 2
    return "Q6_K" if name == "output" or (sensitive and name in ("attn_v", "ffn_down")) else "Q4_K"


class Model:
    def __init__(self, shape, mix, ggml, rng):
        from gguf import GGMLQuantizationType, quants

        self.d, self.ff, self.kv = shape
        self.mix, self.raw, self.types, self.dense = mix, {}, GGMLQuantizationType, {}
        ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
        ggml.ggml_row_size.restype = ctypes.c_size_t
        ggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
        for name, rows, cols in [*matrices(*shape), ("token_embd", VOCABULARY, self.d), ("output", VOCABULARY, self.d)]:
            w = (rng.random((rows, cols), np.float32) * 2 - 1) * np.float32((3 / cols) ** 0.5)
            for which in {kind(name, layer, mix) for layer in range(CYCLE)}:
                t = self.types[which]
                q = np.empty((rows, ggml.ggml_row_size(t, cols)), np.uint8)
                ggml.ggml_quantize_chunk(t, w.ctypes.data, q.ctypes.data, 0, rows, cols, None)
                # gguf's own code expands the weights again, independently of ggml.
                self.raw[name, which], self.dense[name, which] = q, quants.dequantize(q, t)
                error = np.linalg.norm(self.dense[name, which] - w) / np.linalg.norm(w)
                if not error < 0.13:
                    raise RuntimeError(f"{which}: relative error {error:.2e} of the weights")

    def bytes(self):
        """Of one layer, on average."""
        return sum(self.raw[name, kind(name, i, self.mix)].nbytes for i in range(CYCLE) for name, _, _ in matrices(self.d, self.ff, self.kv)) / CYCLE

    def write(self, path, layers):
        from gguf import GGUFWriter

        out = GGUFWriter(path, "llama")
        out.add_context_length(256)
        out.add_embedding_length(self.d)
        out.add_block_count(layers)
        out.add_feed_forward_length(self.ff)
        out.add_head_count(HEADS)
        out.add_head_count_kv(KV_HEADS)
        out.add_rope_dimension_count(self.d // HEADS)
        out.add_layer_norm_rms_eps(EPSILON)
        out.add_vocab_size(VOCABULARY)
        out.add_tokenizer_model("none")

        def add(name, layer, place):
            which = kind(name, layer, self.mix)
            out.add_tensor(place + ".weight", np.roll(self.raw[name, which], -37 * layer, 0), raw_dtype=self.types[which])

        one = np.ones(self.d, np.float32)
        add("token_embd", 0, "token_embd")
        for layer in range(layers):
            for norm in ("attn_norm", "ffn_norm"):
                out.add_tensor(f"blk.{layer}.{norm}.weight", one)
            for name, _, _ in matrices(self.d, self.ff, self.kv):
                add(name, layer, f"blk.{layer}.{name}")
        out.add_tensor("output_norm.weight", one)
        add("output", 0, "output")
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()

    def logits(self, token, layers):
        """Of a first token: it attends to itself alone, so the attention's result is its value, and no position turns it."""
        norm = lambda x: x / np.sqrt(np.mean(x * x) + EPSILON)

        def times(name, layer, x):
            w = self.dense[name, kind(name, layer, self.mix)]
            return np.roll(w @ x.astype(np.float32), -37 * layer)

        x = self.dense["token_embd", kind("token_embd", 0, self.mix)][token].astype(np.float64)
        for layer in range(layers):
            v = times("attn_v", layer, norm(x)).reshape(KV_HEADS, -1)
            x = x + times("attn_output", layer, np.repeat(v, HEADS // KV_HEADS, 0).ravel())
            h = norm(x)
            gate = times("ffn_gate", layer, h)
            x = x + times("ffn_down", layer, gate / (1 + np.exp(-gate)) * times("ffn_up", layer, h))
        return self.dense["output", "Q6_K"].astype(np.float64) @ norm(x)
