"""llama.cpp decoding one token after another: the time of a layer, from models of two sizes."""
import ctypes, glob, statistics

from common import *
import llama_cpp as ll
from tinyllama import CYCLE, VOCABULARY, Model

# Two models that differ by one cycle of layers, and are both beyond the cache.
SIZES = (CYCLE, 2 * CYCLE)
PROMPT, GENERATE = 16, 64
silence = ll.llama_log_callback(lambda level, text, data: None)
ll.llama_log_set(silence, None)
ll.llama_backend_init()
ggml = ctypes.CDLL(glob.glob(os.path.join(os.path.dirname(ll.__file__), "lib", "libggml-base*.so*"))[0])


class Context:
    def __init__(self, path):
        m = ll.llama_model_default_params()
        m.n_gpu_layers, m.use_mmap = 0, False
        self.model = ll.llama_model_load_from_file(path.encode(), m)
        os.unlink(path)
        c = ll.llama_context_default_params()
        c.n_ctx, c.n_batch, c.n_ubatch, c.n_threads, c.n_threads_batch, c.no_perf = 256, PROMPT, PROMPT, THREADS, THREADS, True
        self.context = ll.llama_init_from_model(self.model, c)

    def decode(self, *tokens):
        array = (ll.llama_token * len(tokens))(*tokens)  # the batch only points at it
        batch = ll.llama_batch_get_one(array, len(tokens))
        if ll.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode")
        ll.llama_synchronize(self.context)

    def clear(self):
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)

    def logits(self):
        return np.ctypeslib.as_array(ll.llama_get_logits_ith(self.context, -1), (VOCABULARY,)).copy()


class Layer:
    """The time of a layer of one mixture."""

    def __init__(self, mix, index):
        model = Model(SHAPE, mix, ggml, np.random.default_rng(11))
        self.name, self.size, self.contexts = f"llama.cpp {mix}", model.bytes(), []
        for layers in SIZES:
            path = os.path.join(DIR, f"{mix}.{layers}.gguf")
            model.write(path, layers)
            self.contexts.append(Context(path))
        # The larger model is the one verified; the smaller one has the same first half.
        self.contexts[1].decode(7)
        self.contexts[1].logits().astype(np.float32).tofile(os.path.join(DIR, f"llama.{index}.f32"))
        model.logits(7, SIZES[1]).astype(np.float32).tofile(os.path.join(DIR, f"logits.{mix}.f32"))
        self.described = {"name": self.name, "w": f"logits.{mix}", "bytes": int(self.size)}

    def one_pass(self):
        for c in self.contexts:
            c.clear()
            c.decode(*range(PROMPT))
        ms = []
        for step in range(GENERATE):
            taken = []
            for c in self.contexts:
                start = time.perf_counter()
                c.decode(step)
                taken.append((time.perf_counter() - start) * 1e3)
            ms.append((taken[1] - taken[0]) / (SIZES[1] - SIZES[0]))
        return ms


everybody = [Layer(mix, i) for i, mix in enumerate(JOB["llama"])]
version = f"llama-cpp-python {ll.__version__} ({ll.llama_print_system_info().decode().strip()})"
print(json.dumps({"entries": [l.described for l in everybody], "version": version}), file=OUT, flush=True)
for _ in sys.stdin:
    print(json.dumps({l.name: l.one_pass() for l in everybody}), file=OUT, flush=True)
