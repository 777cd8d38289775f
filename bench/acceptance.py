"""How many drafted tokens are accepted: shared noise (the text does not depend on the draft) against rejection sampling.

    ~/.cache/drafthorse/python bench/acceptance.py build/release/bin/drafthorse models/mixtral/target.gguf models/mixtral/draft.gguf

Every prompt, both ways, per temperature and depth: accepted of the drafted tokens whose predecessors all were, at the
first drafted position and at all, and tokens per pass of the target.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

PROMPTS = pathlib.Path(__file__).resolve().parent.parent / "models" / "prompts.jsonl"


def run(arguments, prompt, temperature, depth, accept, seed):
    with tempfile.NamedTemporaryFile(suffix=".json") as stats:
        subprocess.run(
            [arguments.binary, "run", "-m", arguments.target, "-d", arguments.draft, "-p", prompt]
            + ["-n", str(arguments.tokens), "--temp", str(temperature), "--draft-depth", str(depth)]
            + ["--accept", accept, "--seed", str(seed), "--ctx", "1024", "--ignore-eos", "--stats-file", stats.name],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return json.load(stats)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("target")
    parser.add_argument("draft")
    parser.add_argument("--temps", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=60)
    arguments = parser.parse_args()
    prompts = [json.loads(line)["text"] for line in PROMPTS.read_text().splitlines()][: arguments.prompts]
    print("temperature  depth  accept     first position  all positions  tokens per pass")
    for temperature in arguments.temps:
        for depth in arguments.depths:
            for accept in ("noise", "rejection"):
                runs = [run(arguments, p, temperature, depth, accept, i) for i, p in enumerate(prompts)]
                reached = [sum(r["depth"]["reached_by_position"][i] for r in runs) for i in range(depth)]
                accepted = [sum(r["depth"]["accepted_by_position"][i] for r in runs) for i in range(depth)]
                per_pass = sum(r["generated_tokens"] for r in runs) / sum(r["steps"] for r in runs)
                print(
                    f"{temperature:11} {depth:6}  {accept:9} {accepted[0] / reached[0]:15.3f} "
                    f"{sum(accepted) / sum(reached):14.3f} {per_pass:16.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
