"""Greedy generation with llama.cpp through its Python package: the peer in comparisons.

Run by the Python in which `import llama_cpp` works. Streams the text to standard output; writes JSON with
decode_tokens_per_s and so on to --stats-file, with the meaning drafthorse gives them.
"""

import argparse
import ctypes
import json
import pathlib
import resource
import sys
import time

import llama_cpp


def keep_experts_on_cpu(layers):
    """As llama.cpp's --n-cpu-moe: routed experts of the first so many layers stay in the host's memory."""

    class Override(ctypes.Structure):
        _fields_ = [("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p)]

    ggml = next(
        library
        for name in ("libggml-cpu.so", "libggml.so")
        for library in [ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib" / name))]
        if hasattr(library, "ggml_backend_cpu_buffer_type")
    )
    ggml.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
    cpu = ggml.ggml_backend_cpu_buffer_type()
    overrides = (Override * (layers + 1))(
        *(Override(rf"blk\.{layer}\.ffn_(up|down|gate)_(ch|)exps".encode(), cpu) for layer in range(layers))
    )
    defaults = llama_cpp.llama_model_default_params

    def with_overrides():
        params = defaults()
        params.tensor_buft_overrides = ctypes.addressof(overrides)
        return params

    llama_cpp.llama_cpp.llama_model_default_params = with_overrides
    llama_cpp.llama_model_default_params = with_overrides
    return overrides  # must live as long as the model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-p", "--prompt", required=True)
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--n-cpu-moe", type=int, default=0)
    parser.add_argument("--stats-file", required=True)
    a = parser.parse_args()

    overrides = keep_experts_on_cpu(a.n_cpu_moe) if a.n_cpu_moe > 0 else None  # noqa: F841
    started = time.monotonic()
    model = llama_cpp.Llama(
        a.model,
        n_ctx=a.ctx,
        n_threads=a.threads,
        n_threads_batch=a.threads,
        n_gpu_layers=a.gpu_layers,
        verbose=False,
    )
    loaded = time.monotonic()
    prompt = model.tokenize(a.prompt.encode(), add_bos=True)
    generated = []
    first = None
    for token in model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        if token == model.token_eos() or len(generated) >= a.tokens:
            break
        first = first or time.monotonic()
        generated.append(token)
        sys.stdout.buffer.write(model.detokenize([token], prev_tokens=prompt + generated[:-1]))
        sys.stdout.buffer.flush()
    ended = time.monotonic()
    # The first token comes out of the prompt's pass; what follows is decoding.
    decode = (len(generated) - 1) / (ended - first) if len(generated) > 1 else 0
    stats = {
        "decode_tokens_per_s": decode,
        "prefill_tokens_per_s": len(prompt) / (first - loaded) if first else 0,
        "ttft_s": first - loaded if first else 0,
        "load_s": loaded - started,
        "generated_tokens": len(generated),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    with open(a.stats_file, "w") as file:
        json.dump(stats, file)


if __name__ == "__main__":
    main()
