"""How close the engine's own choice of depth comes to the best fixed one, in replays of recorded runs.

Each recording is what `drafthorse run -d DRAFT --drafter model --draft-depth N --trace-routing FILE` wrote, the deeper the better.
It is replayed with policy `auto` at fixed depths and at `auto`, with the slots of the recording times each of --slots. Prints by
slots: of each depth, and of `auto`, the mean over the texts of the speed over that text's best fixed depth; and what `auto` is
over depth 0 (the draft loaded and unused), mean and least. Replays take virtual time: the same figures on any machine.

    bench/depths_from_recordings.py RECORDING.jsonl... [--slots 0.6,1,1.4] [--depths 0,1,2,4,8,16]
"""

import argparse
import json
import pathlib
import statistics

from replay import replay

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEAST_SLOTS = 10


def seconds_per_token(args, recording, slots, depth):
    flags = ("--policy", "auto", "--slots", str(slots), "--depth", depth)
    return replay(args.binary, recording, *flags)["policies"][0]["tpot_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="+")
    parser.add_argument("--slots", default="0.6,1,1.4", help="times those of the recording (default %(default)s)")
    parser.add_argument("--depths", default="0,1,2,4,8,16", help="(default %(default)s)")
    parser.add_argument("--binary", default=ROOT / "build/release/bin/drafthorse")
    args = parser.parse_args()
    depths = args.depths.split(",")
    if "0" not in depths:
        parser.error("--depths: 0 must be among them")
    for share in map(float, args.slots.split(",")):
        times = {depth: [] for depth in [*depths, "auto"]}
        for recording in args.recordings:
            with open(recording, encoding="utf-8") as lines:
                recorded = json.loads(lines.readline())["slots"]
            for depth, row in times.items():
                row.append(seconds_per_token(args, recording, max(LEAST_SLOTS, int(recorded * share)), depth))
        best = [min(one) for one in zip(*(times[depth] for depth in depths))]
        over_best = {depth: statistics.mean(b / t for b, t in zip(best, row)) for depth, row in times.items()}
        over_none = [none / t for none, t in zip(times["0"], times["auto"])]
        print(f"slots x {share:g}: " + "  ".join(f"{depth} {value:.2f}" for depth, value in over_best.items())
              + f"; auto over depth 0: {statistics.mean(over_none):.2f}, least {min(over_none):.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
