"""`drafthorse batch` against llama.cpp's parallel decoding, on one file under one real memory limit, alternating.

The peer is llama-batched-bench: as many sequences side by side as asked for, all of one length, which is the best that
llama.cpp's parallel decoding can do (its tokens are arbitrary; with 8 and more sequences nearly all experts are used
whatever they are). Each contender runs inside a memory cgroup of its own (version 1 or 2; needs root), the file's pages
dropped before. Tokens per second are generated tokens over the time of prompts and generation together, and of
generation alone. JSON lines go to standard output, a table to standard error.

    bench/batch_against_llama.py --model BIG.gguf --limit 1500M --peer PATH/llama-batched-bench \\
        [--draft DRAFT.gguf --drafter shared-kv] [--sequences 16,64] [--rounds 3] [--prompt-tokens 46] [--tokens 48]
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from against_llama import ROOT, Cgroup, commit, disk_of, drop_cache, parse_size, probe_bandwidth

RESERVE = 24 * 2**20  # of the limit, for the kernel's pages, which the cgroup counts too


def in_cgroup(command, limit):
    group = Cgroup(limit)
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, preexec_fn=group.enter)
    finally:
        group.remove()
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return done.stdout


def llama(args, sequences, limit, _folder):
    positions = sequences * (args.prompt_tokens + args.tokens)
    out = in_cgroup([args.peer, "-m", args.model, "-c", positions, "-b", 2048, "-ub", 512, "-npp", args.prompt_tokens,
                     "-ntg", args.tokens, "-npl", sequences, "-t", args.threads, "-tb", args.threads,
                     "--output-format", "jsonl"], limit)
    line = json.loads([text for text in out.splitlines() if text.startswith("{")][-1])
    generated = sequences * args.tokens
    return {"tokens_per_s": generated / (line["t_pp"] + line["t_tg"]), "decode_tokens_per_s": line["speed_tg"]}


def requests_file(args, sequences, folder):
    prompts = [json.loads(line)["text"] for line in open(args.prompts)]
    path = os.path.join(folder, "requests.jsonl")
    with open(path, "w") as file:
        for number in range(sequences):
            body = {"prompt": prompts[number % len(prompts)], "max_tokens": args.tokens, "ignore_eos": True}
            file.write(json.dumps({"custom_id": str(number), "url": "/v1/completions", "body": body}) + "\n")
    return path


def ours(flags):
    def run(args, sequences, limit, folder):
        stats, results = os.path.join(folder, "stats.json"), os.path.join(folder, "results.jsonl")
        pathlib.Path(results).unlink(missing_ok=True)
        budget = f"{(limit - RESERVE) // 2**20}M" if limit else "64G"
        in_cgroup([args.binary, "--no-config", "batch", "-m", args.model, "--ram", budget, "--sequences", sequences,
                   "--in", requests_file(args, sequences, folder), "--out", results, "--stats-file", stats,
                   "--threads", args.threads, "--ctx", 1024, "--quiet", *flags], limit)
        one = json.loads(pathlib.Path(stats).read_text())
        return {"tokens_per_s": one["generated_tokens"] / one["busy_s"],
                "decode_tokens_per_s": one["decode_tokens_per_s"], "acceptance": one["acceptance"],
                "peak_rss_bytes": one["peak_rss_bytes"], "prompt_tokens": one["prompt_tokens"] / sequences}
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft")
    parser.add_argument("--drafter", default="auto")
    parser.add_argument("--limit", default="0", help="of every contender; default: none")
    parser.add_argument("--peer", required=True, help="llama-batched-bench")
    parser.add_argument("--sequences", default="16,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=46, help="of the peer's sequences; ours have what they have")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--read-ahead-kib", type=int, help="set the disk's read-ahead for the run (the peer maps the file)")
    parser.add_argument("--binary", default=ROOT / "build/release/bin/drafthorse")
    parser.add_argument("--probe", default=ROOT / "build/release/bin/drafthorse-disk-probe")
    parser.add_argument("--prompts", default=ROOT / "models/prompts.jsonl")
    args = parser.parse_args()

    limit = parse_size(args.limit)
    contenders = {"llama.cpp": llama, "no draft": ours(["--drafter", "none"])}
    if args.draft:
        name = f"draft {pathlib.Path(args.draft).stem}"
        contenders[name] = ours(["-d", args.draft, "--drafter", args.drafter])
    read_ahead = disk_of(args.model) / "queue/read_ahead_kb"
    before = read_ahead.read_text()
    if args.read_ahead_kib:
        read_ahead.write_text(str(args.read_ahead_kib))
    results = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(args.rounds):
                for sequences in map(int, args.sequences.split(",")):
                    bandwidth = probe_bandwidth(args.probe, args.model)
                    for name, run in contenders.items():
                        if limit:
                            drop_cache(args.model)
                        one = run(args, sequences, limit, folder)
                        one.update(round=number, contender=name, sequences=sequences, limit=limit, commit=commit(),
                                   probe_bytes_per_s=bandwidth, model=os.path.basename(args.model),
                                   read_ahead_kib=int(read_ahead.read_text()), command=" ".join(sys.argv))
                        print(json.dumps(one), flush=True)
                        results.setdefault((sequences, name), []).append(one)
    finally:
        read_ahead.write_text(before)

    print(f"\n{os.path.basename(args.model)}, limit {limit / 2**20:.0f} MiB, {args.prompt_tokens} + {args.tokens} tokens, "
          f"{args.rounds} rounds, read-ahead {next(iter(results.values()))[0]['read_ahead_kib']} KiB", file=sys.stderr)
    print(f"{'at once':>8} {'':<36} {'tokens/s':>24} {'decoding':>10} {'x llama.cpp':>22}", file=sys.stderr)
    for (sequences, name), rows in results.items():
        speed = [row["tokens_per_s"] for row in rows]
        ratio = [row["tokens_per_s"] / base["tokens_per_s"] for row, base in zip(rows, results[sequences, "llama.cpp"])]
        decode = statistics.median(row["decode_tokens_per_s"] for row in rows)
        cells = [f"{statistics.median(v):.2f} ({min(v):.2f}-{max(v):.2f})" for v in (speed, ratio)]
        print(f"{sequences:>8} {name:<36} {cells[0]:>24} {decode:>10.2f} {cells[1]:>22}", file=sys.stderr)


if __name__ == "__main__":
    main()
