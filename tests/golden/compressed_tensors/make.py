"""Folders written by releases of the compressed-tensors package, with that package's own decoding.

    python make.py OUTPUT_FOLDER

The cases depend on the release that is installed (see README.md): 0.14.0 is the last one with the
sparse formats, 0.8.1 the last one that kept `.weight` in the names of the parts, 0.18.0 the first
one that packs 3, 5, 6 and 7 bits without padding. Every case is a one-block Llama with

    config.json, model.safetensors (or shards)   as that release writes them
    expected.safetensors                         every tensor of the dense model, decoded by it

Hidden size 20 and MLP size 12: multiples of 4 but not of 8.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

RELEASE = version("compressed-tensors")
if RELEASE in ("0.8.1", "0.14.0"):
    from compressed_tensors.config import BitmaskConfig
if RELEASE == "0.14.0":
    from compressed_tensors.config import DenseSparsityConfig, Sparse24BitMaskConfig

CONFIG = dict(
    vocab_size=16,
    hidden_size=20,
    intermediate_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=32,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
)


def build(dtype):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(torch_dtype=dtype, **CONFIG)).to(dtype).eval()


def linears(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}


def fill(model, pattern, seed):
    """Normal weights; `pattern` zeros the weights of the linear layers of the block."""
    generator = torch.Generator().manual_seed(seed)
    pruned = linears(model)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            w = 0.2 * torch.randn(p.shape, generator=generator)
            if name.removesuffix(".weight") in pruned:
                if pattern == "unstructured":
                    w[torch.rand(w.shape, generator=generator) < 0.5] = 0.0
                    w[1] = 0.0  # an empty row
                    w[2] = w[2] + 10.0  # a full row
                    w[3, -1] = 0.5  # the last bit of a row
                elif pattern == "2:4":
                    groups = w.abs().reshape(-1, 4)
                    drop = groups.argsort(dim=1)[:, :2]
                    w = w.reshape(-1, 4).scatter(1, drop, 0.0).reshape(w.shape)
                    w[1, :4] = 0.0  # a group with fewer than two non-zeros
                    w[1, 2] = -0.25
            p.copy_(w)


def scheme(bits, kind="int", symmetric=True, strategy="group", group=None, activations=None):
    weights = {"num_bits": bits, "type": kind, "symmetric": symmetric, "strategy": strategy}
    if group:
        weights["group_size"] = group
    return {"targets": ["Linear"], "weights": weights, "input_activations": activations}


def calibrate(model):
    """Scales and zero points from the extremes of the weights."""
    from compressed_tensors.quantization.utils import calculate_qparams

    for module in linears(model).values():
        args, w = module.quantization_scheme.weights, module.weight.data
        if args.strategy == "group":
            parts = w.reshape(w.shape[0], -1, args.group_size)
            low, high = parts.amin(-1), parts.amax(-1)
        elif args.strategy == "channel":
            low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
        else:
            low, high = w.min().reshape(1), w.max().reshape(1)
        scale, zero = calculate_qparams(low, high, args)
        assert module.weight_scale.shape == scale.shape
        module.weight_scale.data.copy_(scale)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)


def group_order(model, group):
    """An activation order: columns belong to groups in a shuffled sequence."""
    for module in linears(model).values():
        columns = module.weight.shape[1]
        generator = torch.Generator().manual_seed(columns)
        order = torch.arange(columns) // group
        module.weight_g_idx.data.copy_(order[torch.randperm(columns, generator=generator)])


def write(folder, model, state, compressor, shard=None):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    model.config.save_pretrained(folder)
    compressor.update_config(str(folder))
    state = {k: v.detach().contiguous().clone() for k, v in state.items()}
    if shard:
        save_torch_state_dict(state, folder, max_shard_size=shard)
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def stored(folder):
    merged = {}
    for path in sorted(folder.glob("model*.safetensors")):
        merged |= load_file(path)
    return merged


def compress(model, quantization=None, sparsity=None):
    """The compressed state of a model, and the compressor that writes its configuration."""
    if RELEASE == "0.18.0":
        compressor = ModelCompressor(quantization_config=quantization)
        compressor.compress_model(model)
        return dict(model.state_dict()), compressor
    compressor = ModelCompressor(sparsity_config=sparsity, quantization_config=quantization)
    return compressor.compress(model, dict(model.state_dict())), compressor


def decode(folder, model, config):
    """Read the files back into a dense model."""
    if RELEASE == "0.18.0":
        config = {k: v for k, v in config.items() if k not in ("sparsity_config", "transform_config", "version")}
        quantization = QuantizationConfig.model_validate(config | {"quantization_status": "initialized"})
        apply_quantization_config(model, quantization)
        compressor = ModelCompressor(quantization_config=quantization)
        compressor.compress_model(model)
        state = stored(folder)
        assert model.state_dict().keys() == state.keys()
        model.load_state_dict(state)
        compressor.decompress_model(model)
        return
    same_name = {k: v for k, v in stored(folder).items() if k in model.state_dict() and v.dtype == model.dtype}
    model.load_state_dict(same_name, strict=False)
    ModelCompressor.from_compression_config(config).decompress(str(folder), model)


def finish(folder, dtype):
    """Decode with the package from the files alone and store the dense result."""
    model = build(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan") if RELEASE != "0.18.0" else 1.0)
    decode(folder, model, json.loads((folder / "config.json").read_text())["quantization_config"])
    names = set(build(dtype).state_dict())
    state = {k: v.detach().contiguous().clone() for k, v in model.state_dict().items() if k in names}
    assert state.keys() == names and not any(torch.isnan(v).any() for v in state.values())
    save_file(state, folder / "expected.safetensors", metadata={"format": "pt"})
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder.name:44} {size:6} bytes  " + " ".join(
        f"{k.removeprefix('model.layers.0.self_attn.q_proj.')}:{str(v.dtype)[6:]}{list(v.shape)}"
        for k, v in sorted(stored(folder).items()) if "q_proj" in k))
    return state


def sparse(folder, config, dtype, pattern, shard=None):
    model = build(dtype)
    fill(model, pattern, seed=1)
    dense = {k: v.clone() for k, v in model.state_dict().items()}
    state, compressor = compress(model, sparsity=config)
    write(folder, model, state, compressor, shard)
    state = finish(folder, dtype)
    for k, v in dense.items():
        assert state[k].dtype == dtype and torch.equal(state[k], v), k


def quantised(folder, dtype, groups, form, sparsity=None, group_index=None, pattern=None):
    model = build(dtype)
    fill(model, pattern, seed=2)
    config = QuantizationConfig(config_groups=groups, format=form, ignore=["lm_head"],
                                quantization_status="initialized")
    apply_quantization_config(model, config)
    calibrate(model)
    if group_index:
        group_order(model, group_index)
    dense = {k: v.detach().clone() for k, v in model.state_dict().items()}
    state, compressor = compress(model, config, sparsity)
    write(folder, model, state, compressor)
    state = finish(folder, dtype)
    for k in linears(build(dtype)):
        # an order of groups scatters the columns over scales made for other columns
        if not group_index:
            w, scale = dense[k + ".weight"].float(), dense[k + ".weight_scale"].float()
            bound = scale.repeat_interleave(w.shape[1] // scale.shape[-1], -1) if scale.dim() > 1 else scale
            if "float" in form:
                bound = 18 * bound  # a float8 step at the top of the range is 32 scales wide; bf16 rounding
            assert (state[k + ".weight"].float() - w).abs().le(bound * 1.05).all(), k
        if pattern == "2:4":
            assert ((state[k + ".weight"] != 0).reshape(-1, 4).sum(1) <= 2).all()


def rename_as_old(source, folder):
    """The 2:4 format under the names of releases up to 0.8.1 (`M.weight.bitmask`)."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = (".bitmask", ".compressed", ".shape")
    renamed = {}
    for k, v in load_file(source / "model.safetensors").items():
        part = next((p for p in parts if k.endswith(p)), None)
        renamed[k.removesuffix(part) + ".weight" + part if part else k] = v
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["compression_config"] = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    (folder / "expected.safetensors").write_bytes((source / "expected.safetensors").read_bytes())
    print(f"{folder.name:44} renamed from {source.name}")


def release_0_14_0(out):
    linear = dict(targets=["Linear"], ignore=["lm_head"])
    for dtype, short in ((torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")):
        sparse(out / f"case_sparse_bitmask_{short}",
               BitmaskConfig(global_sparsity=0.5, **linear), dtype, "unstructured")
        sparse(out / f"case_sparse_24_bitmask_{short}",
               Sparse24BitMaskConfig(global_sparsity=0.5, **linear), dtype, "2:4")
    sparse(out / "case_sparse_bitmask_sharded",
           BitmaskConfig(global_sparsity=0.5, **linear), torch.bfloat16, "unstructured", shard=1500)
    sparse(out / "case_sparse_bitmask_regex",
           BitmaskConfig(global_sparsity=0.5, targets=["re:.*mlp.*", "model.layers.0.self_attn.q_proj"],
                         ignore=["re:.*down_proj$"]), torch.float32, "unstructured")
    sparse(out / "case_dense_metadata",
           DenseSparsityConfig(global_sparsity=0.5, **linear), torch.bfloat16, "unstructured")
    rename_as_old(out / "case_sparse_24_bitmask_f16", out / "case_sparse_24_bitmask_f16_old_names")

    packed = "pack-quantized"
    bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
    quantised(out / "case_pack_w4_group_symmetric", bf16, {"group_0": scheme(4, group=4)}, packed)
    quantised(out / "case_pack_w4_group_asymmetric", f16, {"group_0": scheme(4, group=4, symmetric=False)}, packed)
    quantised(out / "case_pack_w4_channel_symmetric", f32, {"group_0": scheme(4, strategy="channel")}, packed)
    quantised(out / "case_pack_w4_channel_asymmetric", bf16,
              {"group_0": scheme(4, strategy="channel", symmetric=False)}, packed)
    quantised(out / "case_pack_w4_tensor", f32, {"group_0": scheme(4, strategy="tensor")}, packed)
    quantised(out / "case_pack_w8_group_symmetric", f16, {"group_0": scheme(8, group=4)}, packed)
    quantised(out / "case_pack_w8_channel_asymmetric", f32,
              {"group_0": scheme(8, strategy="channel", symmetric=False)}, packed)
    quantised(out / "case_pack_w2_group_asymmetric", f32, {"group_0": scheme(2, group=4, symmetric=False)}, packed)
    quantised(out / "case_pack_w3_padded_group_asymmetric", f32,
              {"group_0": scheme(3, group=4, symmetric=False)}, packed)
    ordered = scheme(4, group=4)
    ordered["weights"]["actorder"] = "group"
    quantised(out / "case_pack_w4_group_order", f32, {"group_0": ordered}, packed, group_index=4)
    quantised(out / "case_int_w8_channel", bf16, {"group_0": scheme(8, strategy="channel")}, "int-quantized")
    dynamic = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
    float8 = scheme(8, kind="float", strategy="channel", activations=dynamic)
    quantised(out / "case_float_w8_channel", bf16, {"group_0": float8}, "float-quantized")
    quantised(out / "case_sparse_24_bitmask_float_w8", bf16, {"group_0": float8}, "float-quantized",
              sparsity=Sparse24BitMaskConfig(global_sparsity=0.5, **linear), pattern="2:4")
    quantised(out / "case_sparse_bitmask_float_w8", bf16, {"group_0": float8}, "float-quantized",
              sparsity=BitmaskConfig(global_sparsity=0.5, **linear), pattern="unstructured")


def release_0_8_1(out):
    sparse(out / "case_sparse_bitmask_f32_release_0_8_1",
           BitmaskConfig(global_sparsity=0.5, targets=["Linear"], ignore=["lm_head"]),
           torch.float32, "unstructured")


def release_0_18_0(out):
    for bits in (3, 5):
        quantised(out / f"case_pack_w{bits}_dense_group_asymmetric", torch.float32,
                  {"group_0": scheme(bits, group=4, symmetric=False)}, "pack-quantized")
    quantised(out / "case_pack_w4_group_release_0_18_0", torch.bfloat16,
              {"group_0": scheme(4, group=4)}, "pack-quantized")


def main():
    run = {"0.14.0": release_0_14_0, "0.8.1": release_0_8_1, "0.18.0": release_0_18_0}
    if RELEASE not in run:
        raise SystemExit(f"compressed-tensors {RELEASE} is installed; wanted one of {sorted(run)}")
    run[RELEASE](Path(sys.argv[1]))
    names = ("compressed-tensors", "torch", "transformers", "safetensors", "huggingface-hub")
    print(", ".join(f"{n} {version(n)}" for n in names))


if __name__ == "__main__":
    main()
