"""What a GPU brings: time per token with 15, 25 and 50 % of a model's experts in its memory, policy by policy, and how
many tokens per second a batch makes there.

Made for a machine with nothing but this tree, a build of it, and an installed llama.cpp with the GPU's backend: the models
are made here from the ones in models/, and nothing is downloaded. All of it takes under ten minutes.

    bench/gpu.py --device CUDA0 [--models mixtral deepseek] [--shares 15 25 50] [--rounds 1] [--tokens 96]
                 [--out gpu.jsonl] [--llama-python ~/.cache/drafthorse/python] [--ram 40G]
                 [--speculative PATH/llama-speculative-simple] [--trace DIRECTORY]

Models are the trained pairs, widened: target and draft to the same width, so that SP-MoE's predictor has its scores. Prints
tables for each model and writes a line per run to --out. Columns:
  ms/token     median over the runs; "exposed" is what it is above the same contender with all experts on the device
  there, copied, on CPU   of the experts needed while decoding
  ahead, used  experts copied ahead of time per token, and how many of them were needed then
  link         bytes copied per second of decoding, of what the link gave when it was measured at loading
  tok/pass     tokens per verification
Texts of fixed placement must be the same whatever else differs; it fails if they are not.
"""

import argparse
import collections
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import against_llama as against_llama_cpp

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Pair, its layers, and how it is widened. Sizes of one expert's matrices are about those of such models: few large ones (of
# the Mixtral-like pair, 8, two used), many small ones (of the fine pair, 32, four used). Attention is llama's in both.
SHAPES = {
    "mixtral": ("models/mixtral", 8, ["--embd", "4096", "--ff", "7680", "--type", "Q4_K", "--noise", "0.5"]),
    "deepseek": ("models/fine", 8, ["--embd", "2048", "--ff", "1536", "--type", "Q4_K", "--noise", "0.5"]),
    "tiny": ("models/mixtral", 8, ["--embd", "512", "--ff", "640", "--type", "Q4_0"]),
}
POLICIES = ("on-demand", "next-use", "sp-moe", "sp-moe-sync", "adapmoe", "moe-infinity", "specter", "auto")
CONTENDERS = {
    "no draft": ["--drafter", "none"],
    "no draft, copies only": ["--drafter", "none", "--placement", "fixed"],
    "draft": ["-d", "DRAFT"],
    "draft, depth 4": ["-d", "DRAFT", "--draft-depth", "4"],
    "draft, copies only": ["-d", "DRAFT", "--placement", "fixed"],
    **{f"depth 4, {policy}": ["-d", "DRAFT", "--draft-depth", "4", "--placement", "fixed", "--policy", policy]
       for policy in POLICIES},
}
BATCHES = {
    "no draft": ["--drafter", "none"],
    "draft, depth 4": ["-d", "DRAFT", "--draft-depth", "4"],
    "draft": ["-d", "DRAFT"],
}


def call(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nfailed with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def device_flags(args):
    return ["--device", args.device, *(flag for server in args.rpc for flag in ("--rpc", server))]


def with_draft(flags, draft):
    return [str(draft) if flag == "DRAFT" else flag for flag in flags]


def budgets(args, model, draft):
    """Bytes of the device's memory with a share of the routed experts in it: share -> bytes, and how much they are."""
    plan = [args.binary, "--no-config", "plan", "-m", model, "-d", draft, "--json", "--ram", args.ram, "--ctx", "1024"]
    device = json.loads(call(plan + device_flags(args)))["device"]
    slots = {part["tag"]: part["bytes"] for part in device["memory"]}["expert slots"]
    rest = device["booked_bytes"] - slots
    # What the device could hold of them decides nothing here: their whole size does.
    stats = one_run(args, model, draft, CONTENDERS["no draft"], None, args.prompts[0], 1)
    whole = stats["device"]["expert_bytes"] * stats["experts"]
    room = whole // 50  # tensors begin at aligned addresses
    return {share: rest + room + whole * share // 100 for share in [*args.shares, 100]}, whole


def one_run(args, model, draft, flags, vram, prompt, tokens):
    with tempfile.TemporaryDirectory() as folder:
        stats = pathlib.Path(folder) / "stats.json"
        command = [args.binary, "--no-config", "run", "-m", model, "-q", "-p", prompt, "-n", tokens, "--ctx", "1024",
                   "--ram", args.ram, "--ignore-eos", "--stats-file", stats, *device_flags(args)]
        command += with_draft(flags, draft)
        if vram is not None:
            command += ["--vram", str(vram)]
        call(command)
        return json.loads(stats.read_text())


def row_of(stats):
    device = stats["device"]
    total = collections.Counter()
    for layer in device["decode_layers"]:
        total.update({key: value for key, value in layer.items() if key != "layer"})
    needed = max(1, total["hits"] + total["copied"] + total["on_host"])
    link = device["link_bytes_per_s"]
    return {
        "ms": 1e3 * stats["decode_s"] / max(1, stats["generated_tokens"]),
        "there": total["hits"] / needed,
        "copied": total["copied"] / needed,
        "on_host": total["on_host"] / needed,
        "ahead": total["prefetched"] / max(1, stats["generated_tokens"]),
        "ahead_used": total["prefetched_used"] / max(1, total["prefetched"]),
        "copied_bytes_per_s": (total["bytes_copied"] + total["bytes_prefetched"]) / stats["decode_s"],
        "link_bytes_per_s": link,
        "extra_waits": total["extra_waits"],
        "tokens_per_verification": stats["tokens_per_verification"],
        "near_ties": device["near_ties"],
        "text_hash": stats["text_hash"],
    }


def print_table(rows, shares):
    print(f"{'experts there':>14}  {'contender':<24}{'ms/token':>9}{'exposed':>9}{'there':>7}{'copied':>8}{'on CPU':>8}"
          f"{'ahead':>7}{'used':>6}{'GB/s':>7}{'link':>6}{'tok/pass':>10}")
    for share in [*shares, 100]:
        for name in CONTENDERS:
            of = [row for row in rows if row["share"] == share and row["contender"] == name]
            if not of:
                continue
            middle = lambda key: statistics.median(row[key] for row in of)
            full = [row["ms"] for row in rows if row["share"] == 100 and row["contender"] == name]
            link = max((row["link_bytes_per_s"] for row in rows), default=0)
            rate = middle("copied_bytes_per_s")
            print(f"{share:>12} %  {name:<24}{middle('ms'):>9.2f}{middle('ms') - statistics.median(full):>9.2f}"
                  f"{middle('there'):>7.0%}{middle('copied'):>8.0%}{middle('on_host'):>8.0%}"
                  f"{middle('ahead'):>7.1f}{middle('ahead_used'):>6.0%}{rate / 1e9:>7.2f}"
                  f"{rate / link if link else 0:>6.0%}{middle('tokens_per_verification'):>10.2f}")


def one_batch(args, model, draft, flags, vram=None, trace=None):
    """Many prompts at once: keys and values in RAM, the experts streamed."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        stats = folder / "stats.json"
        with open(folder / "in.jsonl", "w") as lines:
            for number in range(args.requests):
                body = {"prompt": args.prompts[number % len(args.prompts)], "max_tokens": args.tokens, "ignore_eos": True}
                print(json.dumps({"custom_id": str(number), "url": "/v1/completions", "body": body}), file=lines)
        command = [args.binary, "--no-config", "batch", "-m", model, "-q", "--in", folder / "in.jsonl", "--out",
                   folder / "out.jsonl", "--ctx", "1024", "--ram", args.ram, "--sequences", args.requests,
                   "--stats-file", stats, *device_flags(args), *with_draft(flags, draft)]
        if vram:
            command += ["--vram", vram]
        if trace:
            command += ["--trace", trace]
        call(command)
        return json.loads(stats.read_text())


def batch_row(stats):
    experts = stats["device"]["experts"]
    return {
        "tokens_per_s": stats["decode_tokens_per_s"],
        "end_to_end_tokens_per_s": stats["end_to_end_tokens_per_s"],
        "iteration_s": stats["busy_s"] / max(1, stats["iterations"]),
        "sequences": stats["mean_sequences"],
        "acceptance": stats["acceptance"],
        "up_to_routers": stats["attention_s"] / stats["busy_s"],
        "copied_bytes_per_s": (experts["bytes_copied"] + experts["bytes_prefetched"]) / stats["busy_s"],
        "link_bytes_per_s": stats["device"]["link_bytes_per_s"],
    }


def batches(args, name, model, draft, whole, end):
    print(f"\n{args.requests} requests at once, {args.tokens} tokens each")
    print(f"{'experts there':>14}  {'contender':<24}{'tokens/s':>9}{'iteration':>11}{'attention':>11}{'GB/s':>7}{'link':>6}")
    # A batch's activations are others: their size is what a run with memory to spare has booked beside the slots.
    rest = {}
    for contender, flags in BATCHES.items():
        if time.monotonic() > end:
            return
        memory = {part["tag"]: part["bytes"] for part in one_batch(args, model, draft, flags)["device"]["memory"]}
        rest[contender] = sum(memory.values()) - memory["expert slots"]
    for share in args.shares:
        for contender, flags in BATCHES.items():
            if time.monotonic() > end:
                return
            size = rest[contender] + whole // 50 + whole * share // 100
            trace = args.trace / f"{name}-{share}-{contender.replace(', ', '-').replace(' ', '-')}.json" if args.trace else None
            row = batch_row(one_batch(args, model, draft, flags, size, trace))
            rate, link = row["copied_bytes_per_s"], row["link_bytes_per_s"]
            print(f"{share:>12} %  {contender:<24}{row['tokens_per_s']:>9.1f}{row['iteration_s']:>9.3f} s"
                  f"{row['up_to_routers']:>11.0%}{rate / 1e9:>7.2f}{rate / link if link else 0:>6.0%}")
            yield {"model": name, "share": share, "contender": f"batch, {contender}", **row}


def llama_speculative(args, model, draft, layers):
    """llama.cpp with the same draft, the experts of so many layers on the CPU: tokens per second."""
    said = subprocess.run([str(part) for part in (
        args.speculative, "-m", model, "-md", draft, "-p", args.prompts[0], "-n", args.tokens, "-c", 1024, "-ngl", 99,
        "-ngld", 99, "--n-cpu-moe", layers, "--temp", 0, "--spec-type", "draft-simple", "--spec-draft-n-max", 4)],
        capture_output=True, text=True, check=True)  # fmt: skip
    return against_llama_cpp.peer_statistics(said.stdout + said.stderr)["decode_tokens_per_s"]


def against_llama(args, model, layers):
    """llama.cpp with the experts of so many layers on the CPU, the rest on the GPU."""
    with tempfile.TemporaryDirectory() as folder:
        stats = pathlib.Path(folder) / "stats.json"
        command = [args.llama_python, ROOT / "bench/llama_generate.py", "-m", model, "-p", args.prompts[0], "-n",
                   args.tokens, "--ctx", "1024", "--threads", args.threads, "--gpu-layers", "999", "--n-cpu-moe", layers,
                   "--stats-file", stats]
        call(command)
        return json.loads(stats.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="CUDA0")
    parser.add_argument("--rpc", action="append", default=[])
    parser.add_argument("--models", nargs="+", default=["mixtral", "deepseek"], choices=list(SHAPES))
    parser.add_argument("--shares", nargs="+", type=int, default=[15, 25, 50])
    parser.add_argument("--rounds", type=int, default=1, help="prompts per contender")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--ram", default="40G")
    parser.add_argument("--threads", type=int, default=8, help="llama.cpp's")
    parser.add_argument("--requests", type=int, default=64, help="of a batch; 0: no batches")
    parser.add_argument("--trace", type=pathlib.Path, help="where timelines of batches go, for ui.perfetto.dev")
    parser.add_argument("--speculative", help="llama-speculative-simple, built for the device: llama.cpp with the draft")
    parser.add_argument("--binary", default=ROOT / "build/release/bin/drafthorse")
    parser.add_argument("--widen", default=ROOT / "build/release/bin/drafthorse-widen")
    parser.add_argument("--folder", type=pathlib.Path, help="where the models are made, and left; default: none are left")
    parser.add_argument("--llama-python", help="a Python in which llama_cpp works, built for the device")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=9, help="no run begins after so long")
    args = parser.parse_args()
    args.prompts = [json.loads(line)["text"] for line in open(ROOT / "models/prompts.jsonl")]
    end = time.monotonic() + 60 * args.minutes
    out = open(args.out, "a") if args.out else None
    if args.trace:
        args.trace.mkdir(parents=True, exist_ok=True)
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.models:
            folder = args.folder or pathlib.Path(scratch)
            model = folder / f"{name}.gguf"
            pair, layer_count, widening = SHAPES[name]
            if not model.exists():
                call([args.widen, ROOT / pair / "target.gguf", model, *widening])
            draft = folder / f"{name}-draft.gguf"
            if not draft.exists():
                call([args.widen, ROOT / pair / "draft.gguf", draft, *widening[:2], "--type", "Q8_0"])
            sizes, whole = budgets(args, model, draft)
            print(f"\n{name}: {model.stat().st_size / 1e9:.2f} GB, of it routed experts {whole / 1e9:.2f} GB; {args.device}")
            rows = []
            for number in range(args.rounds):
                for share in [100, *args.shares]:
                    for contender, flags in CONTENDERS.items():
                        if time.monotonic() > end:
                            continue
                        stats = one_run(args, model, draft, flags, sizes[share], args.prompts[number], args.tokens)
                        row = {"model": name, "share": share, "contender": contender, "prompt": number, **row_of(stats)}
                        rows.append(row)
                        if out:
                            print(json.dumps(row), file=out, flush=True)
            print_table(rows, args.shares)
            for number in range(args.rounds):
                fixed = {row["text_hash"] for row in rows
                         if "--placement" in CONTENDERS[row["contender"]] and row["prompt"] == number}
                if len(fixed) > 1:
                    failed = True
                    print(f"FAILED: texts of fixed placement differ for prompt {number}: {sorted(fixed)}")
            for row in batches(args, name, model, draft, whole, end) if args.requests else []:
                if out:
                    print(json.dumps(row), file=out, flush=True)
            if args.llama_python and time.monotonic() < end:
                for layers in (layer_count, layer_count * 3 // 4, layer_count // 2, 0):
                    stats = against_llama(args, model, layers)
                    print(f"llama.cpp, experts of {layers} of {layer_count} layers on the CPU: {1e3 / stats['decode_tokens_per_s']:.2f} ms/token")
            if args.speculative and time.monotonic() < end:
                for layers in (layer_count, layer_count * 3 // 4, layer_count // 2):
                    rate = llama_speculative(args, model, draft, layers)
                    print(f"llama.cpp with the draft, experts of {layers} of {layer_count} layers on the CPU: {1e3 / rate:.2f} ms/token")
            if not args.folder:
                model.unlink()
                draft.unlink()
    if time.monotonic() > end:
        print(f"\nnot everything was run: {args.minutes} minutes were over")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
