"""How far `drafthorse plan` is off: predicted against measured speed and memory on a grid of models, budgets and drafts.

Runs each case on several prompts. The machine's speed changes from minute to minute, so that right before each run a
profile is taken and the run is planned from it; planned speed is the mean over the prompts, in time per token. Speed
is all generated tokens over all time of decoding; memory is the largest peak.

    bench/plan_against_runs.py --case MODEL:BUDGET[:DRAFT[:DEPTH]] [--case ...] [--prompts 4] [--tokens 96] [--out F.jsonl]

BUDGET is a share of the model's file (0.5) or a size (1500M). Prompts are every so-many-th of models/prompts.jsonl,
from --first on, so that what a constant was fitted on and what it is judged by can be kept apart. "Informed" plans
know the run's own hit rate and acceptance (--like): what is left of the error is the model of time.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def parse_case(text):
    model, budget, *rest = text.split(":")
    draft = rest[0] if rest else ""
    depth = rest[1] if len(rest) > 1 else "auto"
    if "." in budget and budget[-1].isdigit():
        budget = f"{int(float(budget) * os.path.getsize(model)) >> 20}M"
    return {"model": model, "budget": budget, "draft": draft, "depth": depth}


def flags_of(case):
    flags = ["-m", case["model"], "--ram", case["budget"]]
    return flags + (["-d", case["draft"], "--draft-depth", case["depth"]] if case["draft"] else [])


def output_of(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command}: exit code {done.returncode}: {done.stderr}")
    return done.stdout


def take_profile(args, case, folder):
    """A profile of its own, of what the case needs: the user's is not touched."""
    types = set()
    for model in filter(None, (case["model"], case["draft"])):
        types |= set(json.loads(output_of([args.binary, "inspect", model, "--json"]))["types"])
    environment = {**os.environ, "XDG_CACHE_HOME": folder}
    command = [args.binary, "profile", "--seconds", args.profile_seconds, "--types", ",".join(sorted(types)), case["model"]]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, env=environment)
    return f"{folder}/drafthorse/profile.json"


def planned(args, case, prompt_tokens, profile, *more):
    return json.loads(output_of([args.binary, "plan", *flags_of(case), "--json", "--prompt-tokens", prompt_tokens,
                                 "-n", args.tokens, "--profile", profile, *more]))  # fmt: skip


def acceptance_of(row):
    """Of draft positions that were reached, those accepted; None without a draft."""
    reached = sum(row["depth"]["reached_by_position"])
    return sum(row["depth"]["accepted_by_position"]) / reached if reached else None


def one_prompt(args, case, prompt, folder, more):
    """A row of statistics, and the plans for it."""
    stats = f"{folder}/stats.json"
    profile = take_profile(args, case, folder)
    # What is planned for is the model alone, or its draft.
    output_of([args.binary, "run", *flags_of(case), *([] if "-d" in flags_of(case) else ["--drafter", "none"]),
               "-p", prompt, "-n", args.tokens, "--stats-file", stats])  # fmt: skip
    row = json.loads(pathlib.Path(stats).read_text(encoding="utf-8"))
    plan = planned(args, case, row["prompt_tokens"], profile, *more)
    informed = planned(args, case, row["prompt_tokens"], profile, "--like", stats)
    return row, plan, informed


def total_speed(pairs):
    return sum(tokens for tokens, _ in pairs) / sum(seconds for _, seconds in pairs)


def judge(args, case, prompts, folder, more):
    rows, plans, informed = zip(*(one_prompt(args, case, prompt, folder, more) for prompt in prompts))

    def planned_speed(of):
        return total_speed([(row["generated_tokens"], row["generated_tokens"] / plan["prediction"]["best"]["tokens_per_s"])
                            for row, plan in zip(rows, of)])  # fmt: skip

    best = [plan["prediction"]["best"] for plan in plans]
    return {
        "case": case,
        "slots": rows[0]["expert_slots"],
        "tokens_per_s": total_speed([(row["generated_tokens"], row["decode_s"]) for row in rows]),
        "planned_tokens_per_s": planned_speed(plans),
        "informed_tokens_per_s": planned_speed(informed),
        "acceptance": [acceptance_of(row) for row in rows],
        "hit_rate": statistics.mean(row["hit_rate"] for row in rows),
        "planned_hit_rate": statistics.mean(1 - one["experts_missed"] / max(1e-9, one["experts_demanded"]) for one in best),
        "ttft_s": statistics.median(row["ttft_s"] for row in rows),
        "planned_ttft_s": statistics.median(plan["prediction"]["ttft_s"] for plan in plans),
        "peak_bytes": max(row["peak_rss_bytes"] for row in rows),
        "planned_peak_bytes": max(plan["expected_peak_bytes"] for plan in plans),
        "booked_bytes": sum(entry["bytes"] for entry in rows[0]["memory"]),
        "planned_booked_bytes": plans[0]["booked_bytes"],
        "stall_s_per_token": sum(row["stall_s"] for row in rows) / sum(row["generated_tokens"] for row in rows),
        "planned_stall_s_per_token": statistics.mean(one["stall_s"] / one["tokens_per_cycle"] for one in best),
        "compute_s_per_token": sum(row["verify_s"] - row["stall_s"] for row in rows)
        / sum(row["generated_tokens"] for row in rows),
        "planned_compute_s_per_token": statistics.mean(one["compute_s"] / one["tokens_per_cycle"] for one in best),
        "draft_s_per_token": sum(row["draft_s"] for row in rows) / sum(row["generated_tokens"] for row in rows),
        "planned_draft_s_per_token": statistics.mean(one["draft_s"] / one["tokens_per_cycle"] for one in best),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", required=True)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--binary", default=ROOT / "build/release/bin/drafthorse")
    parser.add_argument("--profile-seconds", default="0.05")
    parser.add_argument("--skew", help="another than the default")
    parser.add_argument("--out", help="append a JSON line for each case")
    args = parser.parse_args()

    texts = [json.loads(line)["text"] for line in open(ROOT / "models/prompts.jsonl", encoding="utf-8")]
    prompts = [texts[(args.first + i * len(texts) // args.prompts) % len(texts)] for i in range(args.prompts)]
    cases = [parse_case(text) for text in args.case]
    more = ["--skew", args.skew] if args.skew else []
    errors = []
    def off(judged, key):
        return judged[f"planned_{key}"] / judged[key] - 1

    print(f"{'case':<40} {'slots':>5} | {'tok/s':>7} {'planned':>7} {'off':>5} {'informed':>8} {'off':>5} | "
          f"{'ms stall':>9} {'compute':>9} {'draft':>9} | {'hits':>9} | {'TTFT':>11} | {'peak MiB':>11} {'off':>6} booked")
    memory_errors = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            judged = judge(args, case, prompts, folder, more)
            errors.append(abs(off(judged, "tokens_per_s")))
            memory_errors.append(abs(off(judged, "peak_bytes")))
            name = f"{pathlib.Path(case['model']).stem.replace('demo-', '')} {case['budget']}"
            if case["draft"]:
                name += f" +{pathlib.Path(case['draft']).stem.replace('demo-draft-', '')} @{case['depth']}"
            parts = " ".join(f"{judged[key] * 1e3:4.1f}/{judged[f'planned_{key}'] * 1e3:4.1f}" for key in
                             ("stall_s_per_token", "compute_s_per_token", "draft_s_per_token"))
            same = abs(judged["planned_booked_bytes"] - judged["booked_bytes"]) < 3 << 20
            print(f"{name:<40} {judged['slots']:5d} | {judged['tokens_per_s']:7.2f} {judged['planned_tokens_per_s']:7.2f} "
                  f"{off(judged, 'tokens_per_s'):+5.0%} {judged['informed_tokens_per_s']:8.2f} "
                  f"{judged['informed_tokens_per_s'] / judged['tokens_per_s'] - 1:+5.0%} | {parts} | "
                  f"{judged['hit_rate']:4.0%}/{judged['planned_hit_rate']:4.0%} | "
                  f"{judged['ttft_s']:5.2f}/{judged['planned_ttft_s']:5.2f} | "
                  f"{judged['peak_bytes'] >> 20:5d}/{judged['planned_peak_bytes'] >> 20:5d} {off(judged, 'peak_bytes'):+6.1%} "
                  f"{'equal' if same else 'DIFFERS'}", flush=True)
            if args.out:
                with open(args.out, "a", encoding="utf-8") as out:
                    out.write(json.dumps(judged) + "\n")
    print(f"a/b: measured and planned. Speed: median error {statistics.median(errors):.0%}, largest {max(errors):.0%}; "
          f"memory: largest {max(memory_errors):.1%}")


if __name__ == "__main__":
    main()
