"""Reads a GGUF file written by export_gguf.py back into a shape and parameters, so that the file itself is measured."""

import gguf
import numpy as np
import torch
from shapes import Mla, ModelShape
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


class GgufModel:
    """A model as it stands in a file: `shape`, `params` (F32) and `tokenizer`."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.path = path
        self.fields = reader.fields
        self.shape = self.read_shape(reader)
        self.params = {}
        self.types = {}
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            sizes = [int(size) for size in reversed(tensor.shape)]
            self.params[tensor.name] = torch.from_numpy(values.reshape(sizes).copy())
            self.types[tensor.name] = tensor.tensor_type.name
        self.tokenizer = self.read_tokenizer()

    def value(self, key, otherwise=None):
        field = self.fields.get(key)
        return otherwise if field is None else field.contents()

    def read_shape(self, reader):
        architecture = self.value("general.architecture")

        def number(key, otherwise=0):
            return self.value(f"{architecture}.{key}", otherwise)

        names = {tensor.name: tensor for tensor in reader.tensors}
        experts = number("expert_count")
        heads = number("attention.head_count")
        mla = None
        if number("attention.kv_lora_rank"):
            rope = number("rope.dimension_count")
            mla = Mla(
                q_rank=number("attention.q_lora_rank"),
                kv_rank=number("attention.kv_lora_rank"),
                nope=number("attention.key_length_mla") - rope,
                rope=rope,
                value=number("attention.value_length_mla"),
            )
        shared = names.get(f"blk.{number('block_count') - 1}.ffn_up_shexp.weight")
        return ModelShape(
            architecture=architecture,
            layers=number("block_count"),
            width=number("embedding_length"),
            heads=heads,
            kv_heads=heads if mla else number("attention.head_count_kv"),
            head_dim=0 if mla else number("attention.key_length", number("embedding_length") // heads),
            vocab=len(self.value("tokenizer.ggml.tokens")),
            ff=number("feed_forward_length"),
            experts=experts,
            used=number("expert_used_count"),
            expert_ff=(number("expert_feed_forward_length") or number("feed_forward_length")) if experts else 0,
            shared_ff=int(shared.shape[1]) if shared is not None else 0,
            leading_dense=number("leading_dense_block_count") if experts else 0,
            mla=mla,
            rope_base=number("rope.freq_base", 10000.0),
            norm_epsilon=number("attention.layer_norm_rms_epsilon"),
            context=number("context_length"),
        )

    def read_tokenizer(self):
        tokens = self.value("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in self.value("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def encode(self, text):
        """The text's tokens behind the one that begins texts."""
        return [self.value("tokenizer.ggml.bos_token_id", 0)] + self.tokenizer.encode(text).ids
