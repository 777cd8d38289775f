#!/usr/bin/env python3
"""Writes the models of a training folder as GGUF: target.gguf, and draft.gguf, distilled if it has been.

The parameters are named and laid out as GGUF wants them; what is added is the description of the shape and the
vocabulary. Matrices get the wanted type, norms and routers stay F32.

Needs torch, numpy and gguf.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from shapes import SHAPES

TYPES = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "BF16": gguf.GGMLQuantizationType.BF16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q5_0": gguf.GGMLQuantizationType.Q5_0,
}
# Architectures whose head libllama does not take from the embeddings when it is missing.
UNTIED = ("deepseek",)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES, metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--checkpoints", required=True, metavar="DIR", help="--out of train.py")
    parser.add_argument("--corpus", required=True, metavar="DIR", help="what pack_corpus.py wrote; for the tokenizer")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--type", default="Q8_0", choices=TYPES, help="of matrices (default %(default)s)")
    parser.add_argument("--expert-type", choices=TYPES, help="of routed experts' matrices (default: as --type)")
    parser.add_argument("--draft-type", choices=TYPES, help="of the draft's matrices (default: as --type)")
    return parser.parse_args()


def write_shape(writer, shape):
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocab)
    if shape.mla:
        # As converted DeepSeek models are: attention runs over the latent state, as with one key/value head.
        mla = shape.mla
        writer.add_head_count_kv(1)
        writer.add_q_lora_rank(mla.q_rank)
        writer.add_kv_lora_rank(mla.kv_rank)
        writer.add_key_length(mla.kv_rank + mla.rope)
        writer.add_value_length(mla.kv_rank)
        writer.add_key_length_mla(mla.nope + mla.rope)
        writer.add_value_length_mla(mla.value)
        writer.add_rope_dimension_count(mla.rope)
    else:
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
        writer.add_rope_dimension_count(shape.head_dim)
    # Llama has one number for the rows of an FFN, be it dense or an expert's.
    is_llama_moe = shape.architecture == "llama" and shape.is_moe
    writer.add_feed_forward_length(shape.expert_ff if is_llama_moe else shape.ff)
    if shape.is_moe:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.used)
    if shape.is_moe and not is_llama_moe:
        writer.add_expert_feed_forward_length(shape.expert_ff)
    if shape.architecture in ("deepseek", "deepseek2"):
        writer.add_leading_dense_block_count(shape.leading_dense if shape.is_moe else shape.layers)
        writer.add_expert_shared_count(shape.shared_ff // shape.expert_ff if shape.is_moe else 0)
        writer.add_expert_weights_scale(1.0)
        if not shape.is_moe:
            writer.add_expert_feed_forward_length(shape.ff)
    if shape.architecture == "deepseek2":
        writer.add_expert_weights_norm(shape.norms_expert_weights)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)


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


def write_model(path, name, shape, params, tokenizer, matrix_type, expert_type=None):
    """Writes one model; returns its path."""
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name(name)
    write_shape(writer, shape)
    write_vocabulary(writer, tokenizer)
    if shape.architecture in UNTIED:
        params = {**params, "output.weight": params["token_embd.weight"]}
    for key, tensor in params.items():
        array = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
        wanted = expert_type if expert_type is not None and "_exps." in key else matrix_type
        narrow = array.ndim < 2 or "ffn_gate_inp" in key or array.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]
        tensor_type = gguf.GGMLQuantizationType.F32 if narrow else wanted
        writer.add_tensor(key, gguf.quants.quantize(array, tensor_type), raw_dtype=tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def export_pair(shape_name, checkpoints, corpus, out, type_name, expert_type=None, draft_type=None):
    """Writes what has been trained so far; returns the paths."""
    pair = SHAPES[shape_name]
    tokenizer = json.loads((Path(corpus) / "tokenizer.json").read_text())
    Path(out).mkdir(parents=True, exist_ok=True)
    written = []
    for part, phases, shape in (("target", ("target",), pair.target), ("draft", ("distill", "draft"), pair.draft)):
        for phase in phases:
            path = Path(checkpoints) / f"{phase}.pt"
            if path.exists():
                params = torch.load(path, map_location="cpu", weights_only=True)["params"]
                name = f"drafthorse {shape_name} {part}"
                file = Path(out) / f"{part}.gguf"
                matrix_type = draft_type if part == "draft" and draft_type else type_name
                types = TYPES[matrix_type], TYPES[expert_type] if expert_type else None
                written.append(write_model(str(file), name, shape, params, tokenizer, *types))
                break
    return written


def main():
    args = parse_arguments()
    types = args.type, args.expert_type, args.draft_type
    for path in export_pair(args.shape, args.checkpoints, args.corpus, args.out, *types):
        print(path)


if __name__ == "__main__":
    main()
