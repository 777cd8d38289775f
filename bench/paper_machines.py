"""SP-MoE's machines and models (arXiv 2510.10302), replayed from recordings of one's own: seconds per token beside the paper's.

Each recording is what `drafthorse run -d DRAFT --draft-depth 16 --trace-routing FILE` wrote. Prints a table in Markdown: for
on-demand and sp-moe, in the paper's way (one drafted token), the paper's figure, the same policy at the paper's own drafting
and computing times (`--stack paper`) and at the GPU's own speed; then `auto` at the GPU's own speed with deeper drafts, and
Belady's bound there. Medians over the recordings; nothing in it depends on the machine it runs on.

    bench/paper_machines.py RECORDING.jsonl... [--binary build/release/bin/drafthorse]
"""

import argparse
import pathlib
import statistics

from replay import replay

ROOT = pathlib.Path(__file__).resolve().parent.parent
MACHINES = {"rtx3090": "RTX 3090", "rtx4090": "RTX 4090", "a100": "A100 40 GB"}
MODELS = {"mixtral-8x7b": "Mixtral", "phi-3.5-moe": "Phi-3.5-MoE", "deepseek-v2-lite": "DeepSeek-V2-Lite"}


def replayed(args, machine, model, policies, depth, stack="native"):
    """Of each recording the replayed policies by name."""
    out = []
    for recording in args.recordings:
        result = replay(args.binary, recording, "--preset", machine, "--scale", model, "--stack", stack,
                        "--policy", ",".join(policies), "--depth", depth)  # fmt: skip
        out.append({policy["policy"]: {**policy, "slots": result["expert_slots"]} for policy in result["policies"]})
    return out


def seconds(rows, policy, key=lambda policy: policy["tpot_s"]):
    value = statistics.median(key(row[policy]) for row in rows)
    return f"{value:.2f}".lstrip("0") if value >= 0.02 else f"{value:.3f}".lstrip("0")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="+")
    parser.add_argument("--binary", default=ROOT / "build/release/bin/drafthorse")
    parser.add_argument("--models", default=",".join(MODELS), help="of %(default)s")
    args = parser.parse_args()
    for model in args.models.split(","):
        if model not in MODELS:
            parser.error(f"--models: '{model}' is none of {', '.join(MODELS)}")
    print("| | memory holds | `on-demand`: paper, its stack, native | `sp-moe`: paper, its stack, native "
          "| `auto`, depth 1 | depth 8 | depth `auto` | Belady's bound there |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for model in args.models.split(","):
        for machine, name in MACHINES.items():
            theirs = replayed(args, machine, model, ["on-demand", "sp-moe"], "1", "paper")
            ours = replayed(args, machine, model, ["on-demand", "sp-moe", "auto"], "1")
            cells = [f"{MODELS[model]}, {name}", str(ours[0]["auto"]["slots"])]
            for policy in ("on-demand", "sp-moe"):
                cells.append(f"{seconds(theirs, policy, lambda row: row['paper_tpot_s'])}, {seconds(theirs, policy)}, "
                             f"{seconds(ours, policy)}")  # fmt: skip
            cells.append(seconds(ours, "auto"))
            for depth in ("8", "auto"):
                deep = replayed(args, machine, model, ["auto"], depth)
                cells.append(seconds(deep, "auto"))
            cells.append(seconds(deep, "auto", lambda row: row["bound"]["tpot_s"]))
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
