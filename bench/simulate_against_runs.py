"""How well `drafthorse simulate` foretells runs: one recording a prompt, replayed as every policy and budget that was run.

Takes the lines that `drafthorse bench` kept (runs.jsonl of `--suite policies`, with one fixed depth). For each of its prompts it
records one run with policy `auto` at one of the budgets, replays it under all policies with each budget's slots, and compares
the times per token with the runs'. Prints the share that is within 10 %, and medians by policy, budget and prompt.

    bench/simulate_against_runs.py RUNS.jsonl [--record 35%] [--binary build/release/bin/drafthorse]
"""

import argparse
import collections
import json
import pathlib
import statistics
import subprocess
import tempfile

from replay import replay

ROOT = pathlib.Path(__file__).resolve().parent.parent


def record(args, run, prompt_file, trace):
    """A traced run of the model, draft, depth and tokens of `run`, under its budget."""
    subprocess.run(
        [args.binary, "run", "-m", run["model"], "-d", run["draft"], "--drafter", run["drafter"], "--draft-depth", run["depth"],
         "--ram", str(run["ram_bytes"]), "-f", prompt_file, "-n", str(run["tokens"]), "--ignore-eos", "-q",
         "--trace-routing", trace],
        check=True, stdout=subprocess.DEVNULL)  # fmt: skip


def replayed(args, trace, slots):
    """Seconds per token by policy."""
    result = replay(args.binary, trace, "--policy", "all", "--slots", str(slots))
    return {policy["policy"]: policy["tpot_s"] for policy in result["policies"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=pathlib.Path)
    parser.add_argument("--record", default="35%", help="the budget to record at (default %(default)s)")
    parser.add_argument("--prompts", type=pathlib.Path, default=ROOT / "models/prompts.jsonl")
    parser.add_argument("--binary", default=ROOT / "build/release/bin/drafthorse")
    args = parser.parse_args()
    texts = {line["id"]: line["text"] for line in map(json.loads, args.prompts.read_text(encoding="utf-8").splitlines())}
    runs = [line for line in map(json.loads, args.runs.read_text(encoding="utf-8").splitlines()) if line["kind"] == "run"]
    errors = []  # (relative, run)
    with tempfile.TemporaryDirectory() as folder:
        trace, prompt_file = f"{folder}/trace.jsonl", pathlib.Path(folder) / "prompt.txt"
        for prompt in sorted({run["prompt"] for run in runs}):
            of_prompt = [run for run in runs if run["prompt"] == prompt]
            prompt_file.write_text(texts[prompt], encoding="utf-8")
            record(args, next(run for run in of_prompt if run["budget"] == args.record), prompt_file, trace)
            for slots in sorted({run["slots"] for run in of_prompt}):
                times = replayed(args, trace, slots)
                errors += [(times[run["policy"]] / run["tpot_s"] - 1, run) for run in of_prompt
                           if run["slots"] == slots and run["policy"] in times]  # fmt: skip
    within = sum(abs(error) <= 0.1 for error, _ in errors)
    print(f"{within} of {len(errors)} within 10 %; median error {statistics.median(abs(error) for error, _ in errors):.1%}")
    for key in ("policy", "budget", "prompt"):
        groups = collections.defaultdict(list)
        for error, run in errors:
            groups[run[key]].append(error)
        for name, group in groups.items():
            print(f"{key:7} {name:14} {statistics.median(group):+.1%}, {sum(abs(e) <= 0.1 for e in group)} of {len(group)}")


if __name__ == "__main__":
    main()
