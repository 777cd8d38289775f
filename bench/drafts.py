"""What a draft brings: the same model and budget without a draft, with each draft, and with it loaded but unused.

Alternating, one prompt a round: those of models/prompts.jsonl, or of a file of that form. Prints median and range of the
speed against no draft at all, and, of the last column, how much of the ceiling was reached: what the same drafting,
acceptance and experts would give if a verification took only as much longer than a single token's pass as it reads more
weights (all of them from memory: for budgets that hold the model).

With --repeats each prompt's runs are made so many times, and a text's ratio is the median of them: the range is then one
of texts, not of the machine's whims. --texts prints each text's.

    bench/drafts.py --model TARGET.gguf --ram 1.5G --draft DRAFT.gguf [--draft ...] [--depth 4 ...] [--rounds 5]
                    [--repeats 1] [--texts] [--kept] [--tokens 192] [--drafter ngram ...] [--with-draft shared-kv ...] [--prompts FILE.jsonl]
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def weights_read(row):
    """Bytes of weights that the target's passes touched while decoding, each expert once per pass."""
    memory = {part["tag"]: part["bytes"] for part in row["memory"]}
    experts = sum(layer["hits"] + layer["in_flight_hits"] + layer["misses"] for layer in row["decode_layers"])
    expert_bytes = memory["expert slots"] / row["expert_slots"]
    return row["steps"] * memory["dense weights"] + experts * expert_bytes


def share_of_ceiling(row, base):
    """base: the same prompt without a draft."""
    verify = base["decode_s"] * weights_read(row) / weights_read(base)
    return (verify + row["draft_s"]) / row["decode_s"] * base["generated_tokens"] / row["generated_tokens"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft", action="append", default=[])
    parser.add_argument("--ram", required=True)
    parser.add_argument("--depth", action="append", default=[], help="fixed depths to try as well")
    parser.add_argument("--drafter", action="append", default=[], help="drafters without a draft model")
    parser.add_argument("--with-draft", action="append", default=[], help="drafters with each draft, beside auto")
    parser.add_argument("--kept", action="store_true", help="each draft also kept where auto would give it up")
    parser.add_argument("--no-unused", action="store_true", help="leave out loaded but unused drafts")
    parser.add_argument("--prompts", default=ROOT / "models/prompts.jsonl")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1, help="of each prompt's runs")
    parser.add_argument("--texts", action="store_true", help="each text's ratio as well")
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--binary", default=ROOT / "build/release/bin/drafthorse")
    args = parser.parse_args()

    prompts = [json.loads(line)["text"] for line in open(args.prompts)]
    contenders = {"no draft": ["--drafter", "none"]}
    for drafter in args.drafter:
        name, _, depth = drafter.partition(":")
        contenders[f"{name}, depth {depth or 'auto'}"] = ["--drafter", name, "--draft-depth", depth or "auto"]
    for draft in args.draft:
        stem = pathlib.Path(draft).stem
        contenders[f"{stem}, auto"] = ["-d", draft]
        if args.kept:
            contenders[f"{stem}, auto, kept"] = ["-d", draft, "--keep-draft"]
        for drafter in args.with_draft:
            contenders[f"{stem}, {drafter}"] = ["-d", draft, "--drafter", drafter]
        for depth in [*([] if args.no_unused else ["0"]), *args.depth]:
            contenders[f"{stem}, depth {depth}"] = ["-d", draft, "--draft-depth", depth]
    results = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        stats_file = f"{folder}/stats.json"
        for number in [number for number in range(args.rounds) for _ in range(args.repeats)]:
            for name, flags in contenders.items():
                command = [args.binary, "run", "-m", args.model, "-p", prompts[number * 7 % len(prompts)], "--ram", args.ram,
                           "-n", str(args.tokens), "--stats-file", stats_file, *flags]
                subprocess.run(command, check=True, capture_output=True)
                results[name].append(json.loads(pathlib.Path(stats_file).read_text()))

    print(f"{'':<36} {'x no draft':>22} {'tokens/s':>9} {'MB/token':>9} {'accepted':>9} {'slots':>6} "
          f"{'given up':>8} {'of ceiling':>11}  text")
    for name, rows in results.items():
        singly = [row["decode_tokens_per_s"] / base["decode_tokens_per_s"] for row, base in zip(rows, results["no draft"])]
        ratios = [statistics.median(singly[i : i + args.repeats]) for i in range(0, len(singly), args.repeats)]
        median = lambda key: statistics.median(row[key] for row in rows)
        same = all(row["text_hash"] == base["text_hash"] for row, base in zip(rows, results["no draft"]))
        ceiling = statistics.median(share_of_ceiling(row, base) for row, base in zip(rows, results["no draft"]))
        given_up = sum(row["draft_release"] is not None for row in rows)
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"{name:<36} {spread:>22} {median('decode_tokens_per_s'):9.2f} {median('bytes_read_per_token') / 1e6:9.0f} "
              f"{median('acceptance'):9.0%} {rows[0]['expert_slots']:6d} {given_up:5d}/{len(rows):<2d} "
              f"{ceiling:11.0%}  {'the same' if same else 'DIFFERENT'}")
        if args.texts:
            print("    " + " ".join(f"{ratio:.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
