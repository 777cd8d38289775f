"""How far `drafthorse plan` is off: predicted against measured speed and memory on a grid of models, budgets and drafts.

    bench/plan_against_runs.py run --case MODEL:BUDGET[:DRAFT[:DEPTH]] [--case ...] --out F.jsonl [--prompts 5]
    bench/plan_against_runs.py judge F.jsonl [...]

`run` measures: each case on several prompts, one row a run. The machine's speed changes from minute to minute, so it is
profiled between all runs. Where the disk differs by more than --most-drift in the profiles before and after a run, the
run says nothing of a plan: it is repeated, and counted. Memory is touched before each run, as much as it may take: where
a host takes back what a virtual machine has freed, getting it again can be slower than the disk, and would be measured
instead of it.

`judge` plans each of these runs and compares: of a case, the median over its runs of planned over measured speed. The
disk is the mean of the profiles before and after the run. A profile measures each kernel for a fiftieth of a second
only, on a machine whose speed changes within one, so that all else is the mean of all profiles. "Informed" plans know
the run's own hit rate and acceptance (--like): what is left of the error is the model of time. Memory is the largest
peak.

BUDGET is a share of the model's routed experts (40%), to which all else is added, or a size in MiB (1500M). Prompts are
every so-many-th of models/prompts.jsonl, from --first on, so that what a constant was fitted on and what it is judged
by can be kept apart. Without a draft the model runs alone (--drafter none): that is what is planned.
"""

import argparse
import json
import mmap
import os
import pathlib
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
MOST_REPEATS = 4


def output_of(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command}: exit code {done.returncode}: {done.stderr}")
    return done.stdout


# --- measuring -------------------------------------------------------------------------------------------------------


def inspected(args, model):
    return json.loads(output_of([args.binary, "inspect", model, "--json"]))


def parse_case(args, text):
    model, budget, *rest = text.split(":")
    case = {"asked": text, "model": model, "budget": budget, "draft": rest[0] if rest else "",
            "depth": rest[1] if len(rest) > 1 else "auto"}  # fmt: skip
    if budget.endswith("%"):
        # What a plan books beside the slots, and so many of those.
        plan = json.loads(output_of([args.binary, "plan", *flags_of({**case, "budget": "1T"}), "--json"]))
        slots = next(entry["bytes"] for entry in plan["memory"] if entry["tag"] == "expert slots")
        share = float(budget[:-1]) / 100
        case["budget"] = f"{int(plan['booked_bytes'] - (1 - share) * slots) // (1 << 20) + 2}M"
    return case


def flags_of(case):
    flags = ["-m", case["model"], "--ram", case["budget"]]
    return flags + (["-d", case["draft"], "--draft-depth", case["depth"]] if case["draft"] else [])


def take_profile(args, types, file, folder):
    """A profile of its own: the user's is not touched."""
    command = [args.binary, "profile", "--seconds", args.profile_seconds, "--types", ",".join(types), file]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, env={**os.environ, "XDG_CACHE_HOME": folder})
    return json.loads(pathlib.Path(folder, "drafthorse", "profile.json").read_text(encoding="utf-8"))


def disk_rate(profile):
    return max(profile["disk"], key=lambda rate: (rate["read_bytes"], rate["in_flight"]))["bytes_per_s"]


def drift(before, after):
    """How many times faster the disk was in one of the two."""
    rates = disk_rate(before), disk_rate(after)
    return max(rates) / min(rates)


def touch_memory(bytes_):
    memory = mmap.mmap(-1, bytes_, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    for at in range(0, bytes_, 4096):
        memory[at] = 1
    memory.close()


def one_run(args, case, prompt, before, profile, folder):
    """Statistics of a run on a machine that stayed as fast, its profiles, and how many runs were thrown away."""
    stats = f"{folder}/stats.json"
    for discarded in range(MOST_REPEATS):
        touch_memory(int(case["budget"][:-1]) << 20)
        output_of([args.binary, "run", *flags_of(case), *([] if case["draft"] else ["--drafter", "none"]), "-p", prompt,
                   "-n", args.tokens, "--ignore-eos", "--stats-file", stats])  # fmt: skip
        after = profile()
        if drift(before, after) <= 1 + args.most_drift:
            return json.loads(pathlib.Path(stats).read_text(encoding="utf-8")), [before, after], discarded
        before = after
    return None, [before, after], MOST_REPEATS


def run(args):
    texts = [json.loads(line)["text"] for line in open(ROOT / "models/prompts.jsonl", encoding="utf-8")]
    prompts = [texts[(args.first + i * len(texts) // args.prompts) % len(texts)] for i in range(args.prompts)]
    cases = [parse_case(args, text) for text in args.case]
    models = {case[key] for case in cases for key in ("model", "draft") if case[key]}
    types = sorted({name for model in models for name in inspected(args, model)["types"]})
    with tempfile.TemporaryDirectory() as folder, open(args.out, "a", encoding="utf-8") as out:
        def profile():
            return take_profile(args, types, max(models, key=os.path.getsize), folder)

        latest = profile()
        # Prompts outside: what a minute does to the machine falls on all cases.
        for prompt in prompts:
            for case in cases:
                stats, profiles, discarded = one_run(args, case, prompt, latest, profile, folder)
                latest = profiles[1]
                row = {"case": case, "prompt": prompt, "stats": stats, "profiles": profiles, "discarded": discarded,
                       "tokens": args.tokens}  # fmt: skip
                out.write(json.dumps(row) + "\n")
                out.flush()


# --- judging ---------------------------------------------------------------------------------------------------------


def mean_of(all_):
    """Of profiles of the same form, or parts of them."""
    first = all_[0]
    if isinstance(first, dict):
        return {key: mean_of([one[key] for one in all_]) for key in first}
    if isinstance(first, list):
        return [mean_of(part) for part in zip(*all_)]
    return statistics.mean(all_) if isinstance(first, float) else first


def planned(args, row, kernels, folder, *more):
    path = pathlib.Path(folder, "profile.json")
    disk = {key: mean_of([profile[key] for profile in row["profiles"]]) for key in ("disk", "disk_latency_s")}
    path.write_text(json.dumps({**kernels, **disk}), encoding="utf-8")
    return json.loads(output_of([args.binary, "plan", *flags_of(row["case"]), "--json", "--prompt-tokens",
                                 row["stats"]["prompt_tokens"], "-n", row["tokens"], "--profile", path, *more]))  # fmt: skip


def per_token(row):
    stats = row["stats"]
    tokens = stats["generated_tokens"]
    return {"stall": stats["stall_s"] / tokens, "compute": (stats["verify_s"] - stats["stall_s"]) / tokens,
            "draft": stats["draft_s"] / tokens}  # fmt: skip


def acceptance_of(row):
    """Of draft positions that were reached, those accepted; None without a draft."""
    reached = sum(row["stats"]["depth"]["reached_by_position"])
    return sum(row["stats"]["depth"]["accepted_by_position"]) / reached if reached else None


def judge_case(args, rows, kernels, folder):
    plans = [planned(args, row, kernels, folder, *args.plan_flag) for row in rows]
    stats = f"{folder}/stats.json"
    informed = []
    for row in rows:
        pathlib.Path(stats).write_text(json.dumps(row["stats"]), encoding="utf-8")
        informed.append(planned(args, row, kernels, folder, "--like", stats))
    best = [plan["prediction"]["best"] for plan in plans]
    speeds = [row["stats"]["decode_tokens_per_s"] for row in rows]
    pairs = {
        "speed": (speeds, [one["tokens_per_s"] for one in best]),
        "hits": ([row["stats"]["hit_rate"] for row in rows],
                 [1 - one["experts_missed"] / max(1e-9, one["experts_demanded"]) for one in best]),
        "ttft": ([row["stats"]["ttft_s"] for row in rows], [plan["prediction"]["ttft_s"] for plan in plans]),
        "tokens_per_cycle": ([row["stats"]["tokens_per_verification"] for row in rows],
                             [one["tokens_per_cycle"] for one in best]),
    }  # fmt: skip
    for part in ("stall", "compute", "draft"):
        pairs[part] = ([per_token(row)[part] for row in rows],
                       [one[f"{part}_s"] / one["tokens_per_cycle"] for one in best])  # fmt: skip
    accepted = [share for share in map(acceptance_of, rows) if share is not None]
    return {
        "case": rows[0]["case"],
        "runs": len(rows),
        "slots": rows[0]["stats"]["expert_slots"],
        "experts": rows[0]["stats"]["experts"],
        **{key: [statistics.median(measured), statistics.median(foretold)] for key, (measured, foretold) in pairs.items()},
        "speeds": speeds,
        "off": statistics.median(theirs / ours for ours, theirs in zip(*pairs["speed"])) - 1,
        "informed_off": statistics.median(
            plan["prediction"]["best"]["tokens_per_s"] / speed for speed, plan in zip(speeds, informed)) - 1,
        "acceptance": statistics.median(accepted) if accepted else None,
        "disk_gb_per_s": statistics.median(disk_rate(mean_of(row["profiles"])) for row in rows) / 1e9,
        "peak": [max(row["stats"]["peak_rss_bytes"] for row in rows), max(plan["expected_peak_bytes"] for plan in plans)],
        "booked": [sum(entry["bytes"] for entry in rows[0]["stats"]["memory"]), plans[0]["booked_bytes"]],
    }  # fmt: skip


def case_text(case):
    name = f"{pathlib.Path(case['model']).stem.replace('demo-', '')} {case['budget']}"
    if case["draft"]:
        name += f" +{pathlib.Path(case['draft']).stem.replace('demo-draft-', '')} @{case['depth']}"
    return name


def print_case(judged):
    def milliseconds(key):
        return f"{judged[key][0] * 1e3:5.1f}/{judged[key][1] * 1e3:5.1f}"

    speed, peak, booked = judged["speed"], judged["peak"], judged["booked"]
    print(f"{case_text(judged['case']):<34} {judged['runs']:>4} {judged['slots']:>3}/{judged['experts']:<4} | "
          f"{speed[0]:7.2f} {speed[1]:7.2f} {judged['off']:+5.0%} {judged['informed_off']:+5.0%} | "
          f"{' '.join(map(milliseconds, ('stall', 'compute', 'draft')))} | "
          f"{judged['hits'][0]:4.0%}/{judged['hits'][1]:4.0%} | "
          f"{judged['tokens_per_cycle'][0]:4.1f}/{judged['tokens_per_cycle'][1]:4.1f} {judged['acceptance'] or 0:4.2f} | "
          f"{judged['ttft'][0]:5.2f}/{judged['ttft'][1]:5.2f} | {peak[0] >> 20:5d}/{peak[1] >> 20:5d} "
          f"{peak[1] / peak[0] - 1:+6.1%} {'equal' if abs(booked[1] - booked[0]) < 3 << 20 else 'DIFFERS'} | "
          f"{judged['disk_gb_per_s']:.2f} {min(judged['speeds']):.0f}..{max(judged['speeds']):.0f}", flush=True)  # fmt: skip


def judge(args):
    rows = [json.loads(line) for path in args.rows for line in open(path, encoding="utf-8")]
    kernels = mean_of([profile for row in rows for profile in row["profiles"]])
    cases = {}
    for row in rows:
        if row["stats"] is not None:
            cases.setdefault(row["case"]["asked"], []).append(row)
    print(f"{'case':<34} runs {'slots':<8} | {'tok/s':>7} planned   off  informed | {'ms stall':>11} {'compute':>11} "
          f"{'draft':>11} | {'hits':>9} | tokens/cycle acc. | {'TTFT':>11} | {'peak MiB':>11}    off booked | GB/s, speeds")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for of_case in cases.values():
            results.append(judge_case(args, of_case, kernels, folder))
            print_case(results[-1])
    errors = [abs(one["off"]) for one in results]
    print(f"a/b: measured and planned, medians over prompts. Speed: median error {statistics.median(errors):.0%}, largest "
          f"{max(errors):.0%}, within 15 %: {sum(error <= 0.15 for error in errors)} of {len(errors)}; memory: largest "
          f"{max(abs(one['peak'][1] / one['peak'][0] - 1) for one in results):.1%}; runs discarded for drift: "
          f"{sum(row['discarded'] for row in rows)} of {sum(row['discarded'] for row in rows) + len(rows)}")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("run")
    measuring.add_argument("--case", action="append", required=True)
    measuring.add_argument("--prompts", type=int, default=5)
    measuring.add_argument("--first", type=int, default=0)
    measuring.add_argument("--tokens", type=int, default=96)
    measuring.add_argument("--profile-seconds", type=float, default=0.05)
    measuring.add_argument("--most-drift", type=float, default=0.25)
    measuring.add_argument("--out", required=True, help="append a JSON line for each run")
    measuring.set_defaults(function=run)
    judging = commands.add_parser("judge")
    judging.add_argument("rows", nargs="+")
    judging.add_argument("--plan-flag", action="append", default=[], help="another flag for plan, such as --skew=1")
    judging.set_defaults(function=judge)
    for command in (measuring, judging):
        command.add_argument("--binary", default=ROOT / "build/release/bin/drafthorse")
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
