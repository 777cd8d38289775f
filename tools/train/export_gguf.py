"""Writes a model trained by train_pair.py as GGUF, architecture "llama": dense, or with experts as Mixtral's.

Needs numpy and gguf.
"""

import argparse
import json
import pickle

import gguf
import numpy as np

HEAD_DIM = 64
TYPES = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("params", help="the model: OUT/draft.pkl or OUT/target.pkl")
    parser.add_argument("tokenizer", help="OUT/tokenizer.json")
    parser.add_argument("out", help="the GGUF file to write")
    parser.add_argument("--name", default="drafthorse demo", help="general.name (default: %(default)s)")
    parser.add_argument("--type", default="Q8_0", choices=TYPES, help="of matrices (default: %(default)s)")
    parser.add_argument("--ctx", type=int, default=2048, help="context length to state (default: %(default)s)")
    parser.add_argument("--top", type=int, default=2, help="experts a token uses (default: %(default)s)")
    return parser.parse_args()


def write_shape(writer, params, context, top):
    vocab, d = params["embd"].shape
    writer.add_context_length(context)
    writer.add_embedding_length(d)
    writer.add_block_count(params["q"].shape[0])
    writer.add_feed_forward_length(params["u"].shape[-1])
    writer.add_head_count(params["q"].shape[-1] // HEAD_DIM)
    writer.add_head_count_kv(params["k"].shape[-1] // HEAD_DIM)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    if "r" in params:
        writer.add_expert_count(params["r"].shape[-1])
        writer.add_expert_used_count(top)


def write_vocabulary(writer, tokenizer):
    """Byte-level BPE as GPT-2's; token 0 begins and ends texts."""
    tokens = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    merges = tokenizer["model"]["merges"]
    control, normal = 3, 1
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([control if token == 0 else normal for _, token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(True)


def write_tensors(writer, params, matrix_type):
    """Matrices are trained as [in, out]; GGUF wants rows of inputs. Norms and routers stay F32."""

    def add(name, array, quantize=True):
        array = np.ascontiguousarray(array, dtype=np.float32)
        tensor_type = matrix_type if quantize and array.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(array, tensor_type), raw_dtype=tensor_type)

    is_moe = "r" in params
    add("token_embd.weight", params["embd"])
    add("output_norm.weight", params["norm"])
    for i in range(params["q"].shape[0]):
        prefix = f"blk.{i}."
        add(prefix + "attn_norm.weight", params["an"][i])
        add(prefix + "ffn_norm.weight", params["fn"][i])
        for name, key in (("attn_q", "q"), ("attn_k", "k"), ("attn_v", "v"), ("attn_output", "o")):
            add(f"{prefix}{name}.weight", params[key][i].T)
        suffix = "_exps" if is_moe else ""
        for name, key in (("ffn_gate", "g"), ("ffn_up", "u"), ("ffn_down", "w")):
            add(f"{prefix}{name}{suffix}.weight", np.swapaxes(params[key][i], -1, -2))
        if is_moe:
            add(prefix + "ffn_gate_inp.weight", params["r"][i].T, quantize=False)


def main():
    args = parse_arguments()
    with open(args.params, "rb") as file:
        params = pickle.load(file)
    with open(args.tokenizer) as file:
        tokenizer = json.load(file)
    writer = gguf.GGUFWriter(args.out, "llama")
    writer.add_name(args.name)
    write_shape(writer, params, args.ctx, args.top)
    write_vocabulary(writer, tokenizer)
    write_tensors(writer, params, TYPES[args.type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
