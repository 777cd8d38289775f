"""What a GPU brings: time per token with 15, 25 and 50 % of a model's experts in its memory, policy by policy.

Made for a machine with nothing but this tree, a build of it, and an installed llama.cpp with the GPU's backend: the models
are made here from the ones in models/, and nothing is downloaded. All of it takes under ten minutes.

    bench/gpu.py --device CUDA0 [--models mixtral deepseek] [--shares 15 25 50] [--rounds 1] [--tokens 96]
                 [--out gpu.jsonl] [--llama-python ~/.cache/drafthorse/python] [--ram 40G]

Prints a table for each model and writes a line per run to --out. Columns:
  ms/token     median over the runs; "exposed" is what it is above the same contender with all experts on the device
  there, copied, on CPU   of the experts needed while decoding
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Sizes of one expert's matrices as in those models; there are as many of them as the demo model has.
SHAPES = {
    "mixtral": ["--embd", "4096", "--ff", "7168", "--type", "Q4_K", "--noise", "0.5"],
    "deepseek": ["--embd", "2048", "--ff", "1536", "--type", "Q4_K", "--noise", "0.5"],
    "tiny": ["--type", "Q4_0"],
}
CONTENDERS = {
    "no draft": ["--drafter", "none"],
    "no draft, copies only": ["--drafter", "none", "--placement", "fixed"],
    "draft": ["-d", "DRAFT"],
    "draft, depth 4": ["-d", "DRAFT", "--draft-depth", "4"],
    "draft, copies only": ["-d", "DRAFT", "--placement", "fixed"],
    "draft, lru": ["-d", "DRAFT", "--eviction", "lru"],
    "draft, lfu": ["-d", "DRAFT", "--eviction", "lfu"],
    "draft, stale-first": ["-d", "DRAFT", "--eviction", "stale-first"],
}


def call(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nfailed with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def device_flags(args):
    return ["--device", args.device, *(flag for server in args.rpc for flag in ("--rpc", server))]


def budgets(args, model):
    """Bytes of the device's memory with a share of the routed experts in it: share -> bytes, and how much they are."""
    plan = [args.binary, "--no-config", "plan", "-m", model, "-d", args.draft, "--json", "--ram", args.ram, "--ctx", "1024"]
    device = json.loads(call(plan + device_flags(args)))["device"]
    slots = {part["tag"]: part["bytes"] for part in device["memory"]}["expert slots"]
    rest = device["booked_bytes"] - slots
    # What the device could hold of them decides nothing here: their whole size does.
    stats = one_run(args, model, CONTENDERS["no draft"], None, args.prompts[0], 1)
    whole = stats["device"]["expert_bytes"] * stats["experts"]
    room = 16 << 20  # tensors begin at aligned addresses
    return {share: rest + room + whole * share // 100 for share in [*args.shares, 100]}, whole


def one_run(args, model, flags, vram, prompt, tokens):
    with tempfile.TemporaryDirectory() as folder:
        stats = pathlib.Path(folder) / "stats.json"
        command = [args.binary, "--no-config", "run", "-m", model, "-q", "-p", prompt, "-n", tokens, "--ctx", "1024",
                   "--ram", args.ram, "--ignore-eos", "--stats-file", stats, *device_flags(args)]
        command += [str(args.draft) if flag == "DRAFT" else flag for flag in flags]
        if vram is not None:
            command += ["--vram", str(vram)]
        call(command)
        return json.loads(stats.read_text())


def row_of(stats):
    device = stats["device"]
    total = collections.Counter()
    for layer in device["decode_layers"]:
        total.update({key: layer[key] for key in ("hits", "copied", "on_host", "extra_waits", "bytes_copied")})
    needed = max(1, total["hits"] + total["copied"] + total["on_host"])
    link = device["link_bytes_per_s"]
    return {
        "ms": 1e3 * stats["decode_s"] / max(1, stats["generated_tokens"]),
        "there": total["hits"] / needed,
        "copied": total["copied"] / needed,
        "on_host": total["on_host"] / needed,
        "copied_bytes_per_s": total["bytes_copied"] / stats["decode_s"],
        "link_bytes_per_s": link,
        "extra_waits": total["extra_waits"],
        "tokens_per_verification": stats["tokens_per_verification"],
        "near_ties": device["near_ties"],
        "text_hash": stats["text_hash"],
    }


def print_table(rows, shares):
    print(f"{'experts there':>14}  {'contender':<24}{'ms/token':>9}{'exposed':>9}{'there':>7}{'copied':>8}{'on CPU':>8}"
          f"{'GB/s':>7}{'link':>6}{'tok/pass':>10}")
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
                  f"{middle('there'):>7.0%}{middle('copied'):>8.0%}{middle('on_host'):>8.0%}{rate / 1e9:>7.2f}"
                  f"{rate / link if link else 0:>6.0%}{middle('tokens_per_verification'):>10.2f}")


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
    parser.add_argument("--draft", type=pathlib.Path, default=ROOT / "models/draft.gguf")
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
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.models:
            folder = args.folder or pathlib.Path(scratch)
            model = folder / f"{name}.gguf"
            if not model.exists():
                call([args.widen, ROOT / "models/target.gguf", model, *SHAPES[name]])
            sizes, whole = budgets(args, model)
            print(f"\n{name}: {model.stat().st_size / 1e9:.2f} GB, of it routed experts {whole / 1e9:.2f} GB; {args.device}")
            rows = []
            for number in range(args.rounds):
                for share in [100, *args.shares]:
                    for contender, flags in CONTENDERS.items():
                        if time.monotonic() > end:
                            continue
                        stats = one_run(args, model, flags, sizes[share], args.prompts[number], args.tokens)
                        row = {"model": name, "share": share, "contender": contender, "prompt": number, **row_of(stats)}
                        rows.append(row)
                        if out:
                            print(json.dumps(row), file=out, flush=True)
            print_table(rows, args.shares)
            for number in range(args.rounds):
                fixed = {row["text_hash"] for row in rows if "copies only" in row["contender"] and row["prompt"] == number}
                if len(fixed) > 1:
                    failed = True
                    print(f"FAILED: texts of fixed placement differ for prompt {number}: {sorted(fixed)}")
            if args.llama_python and time.monotonic() < end:
                for layers in (4, 3, 2, 0):
                    stats = against_llama(args, model, layers)
                    print(f"llama.cpp, experts of {layers} of 4 layers on the CPU: {1e3 / stats['decode_tokens_per_s']:.2f} ms/token")
            if not args.folder:
                model.unlink()
    if time.monotonic() > end:
        print(f"\nnot everything was run: {args.minutes} minutes were over")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
