#!/usr/bin/env python3
"""Recomputes every figure of a pair's card from its GGUF files.

  card.py models/mixtral/target.gguf models/mixtral/draft.gguf --corpus DIR > card.json
  card.py ... --markdown

What is run are the files' own tensors, dequantised, through the same forward pass the pair was trained with (a test
holds it to libllama's). Along the target's own greedy text from the prompts: agreement, routing, what foretells it.
On the corpus's held-out files: losses. Without --corpus there are no losses. On a CPU some minutes.

Needs torch, numpy, gguf and tokenizers.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path

import figures
import gguf
import numpy as np
import torch
from gguf_model import GgufModel
from pair_model import keep_freed_memory

ROOT = Path(__file__).resolve().parents[2]
SHOWN_TEXTS = ("fn-fibonacci", "class-stack", "prose-error")
HELD_OUT_ROWS, HELD_OUT_SEQ = 160, 256


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="GGUF file")
    parser.add_argument("draft", help="GGUF file")
    parser.add_argument("--corpus", metavar="DIR", help="what pack_corpus.py wrote, for the held-out files")
    parser.add_argument("--prompts", default=ROOT / "models/prompts.jsonl", help="(default: models/prompts.jsonl)")
    parser.add_argument("--tokens", type=int, default=64, help="to generate from each prompt (default %(default)s)")
    parser.add_argument("--most-prompts", type=int, default=1000, help="(default: all)")
    parser.add_argument("--show", default=",".join(SHOWN_TEXTS), help="prompts to show the text of (%(default)s)")
    parser.add_argument("--markdown", action="store_true", help="tables instead of JSON")
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args(argv)


def describe(model):
    types = sorted(set(model.types.values()))
    return {
        "file_bytes": os.path.getsize(model.path),
        "sha256": hashlib.sha256(Path(model.path).read_bytes()).hexdigest(),
        "parameters": sum(tensor.numel() for tensor in model.params.values()),
        "types": types,
        "shape": dataclasses.asdict(model.shape),
    }


def in_q4_0(model):
    """The same model with its matrices rounded to Q4_0: the draft a user makes from the target itself."""
    rounded = dict(model.params)
    for name, tensor in model.params.items():
        if tensor.ndim >= 2 and "ffn_gate_inp" not in name and tensor.shape[-1] % 32 == 0:
            blocks = gguf.quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType.Q4_0)
            values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0)
            rounded[name] = torch.from_numpy(values.astype(np.float32).reshape(tensor.shape))
    copy = GgufModel.__new__(GgufModel)
    copy.shape, copy.params, copy.tokenizer, copy.path = model.shape, rounded, model.tokenizer, model.path
    return copy


def show(texts, prompts, model, wanted):
    """Some texts as they come out, prompt and all."""
    return [
        {"id": prompt["id"], "text": model.tokenizer.decode(text[1:])}
        for prompt, text in zip(prompts, texts)
        if prompt["id"] in wanted
    ]


def summarize(agreements):
    return {
        "same_argmax": round(float(np.mean(np.concatenate(agreements))), 4),
        "accepted_by_depth": {d: round(share, 3) for d, share in figures.accepted_by_depth(agreements).items()},
        "by_quarter_of_text": [round(share, 3) for share in figures.agreement_by_place(agreements)],
    }


def compute(args):
    target, draft = GgufModel(args.target), GgufModel(args.draft)
    if target.value("tokenizer.ggml.tokens") != draft.value("tokenizer.ggml.tokens"):
        sys.exit("target and draft have different vocabularies")
    prompts = [json.loads(line) for line in Path(args.prompts).read_text().splitlines()][: args.most_prompts]
    starts = [target.encode(prompt["text"]) for prompt in prompts]
    texts = figures.greedy(target, starts, args.tokens)
    card = {"target": describe(target), "draft": describe(draft)}
    draft_agreements = figures.agreement(draft, texts, starts)
    card["on_prompts"] = {
        "prompts": len(prompts),
        "tokens": len(prompts) * args.tokens,
        "draft": summarize(draft_agreements),
        "draft_by_kind": by_kind(draft_agreements, prompts),
        "target_in_q4_0": summarize(figures.agreement(in_q4_0(target), texts, starts)),
    }
    routing, acceptance = figures.Routing(target), []
    rows = [torch.tensor(text) for text in texts]
    for (target_logits, target_trace), (draft_logits, draft_trace) in zip(
        figures.run_rows(target, rows), figures.run_rows(draft, rows)
    ):
        routing.add(target_trace, draft_trace)
        acceptance.append(figures.acceptance_at_temperature_one(target_logits, draft_logits))
    card["on_prompts"]["acceptance_at_temperature_1"] = round(float(np.mean(acceptance)), 4)
    card["routing_on_prompts"] = routing.figures()
    if args.corpus:
        card["held_out"] = held_out(args, target, draft)
    card["texts"] = show(texts, prompts, target, args.show.split(","))
    return card


def by_kind(agreements, prompts):
    kinds = sorted({prompt["kind"] for prompt in prompts})
    return {
        kind: round(float(np.mean([a.mean() for a, prompt in zip(agreements, prompts) if prompt["kind"] == kind])), 3)
        for kind in kinds
    }


def held_out(args, target, draft):
    folder = Path(args.corpus)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    if sorted(vocabulary, key=vocabulary.get) != target.value("tokenizer.ggml.tokens"):
        sys.exit(f"{folder} was packed with another vocabulary than the models have")
    rows = figures.held_out_rows(np.load(folder / "tokens.npz")["held_out"], HELD_OUT_SEQ, HELD_OUT_ROWS)
    same = (figures.argmax_rows(target, rows[:, :-1]) == figures.argmax_rows(draft, rows[:, :-1])).float().mean()
    routing = figures.Routing(target)
    for (_, target_trace), (_, draft_trace) in zip(
        figures.run_rows(target, rows[::4, :-1]), figures.run_rows(draft, rows[::4, :-1])
    ):
        routing.add(target_trace, draft_trace)
    return {
        "tokens": rows[:, 1:].numel(),
        "target_loss": round(figures.text_loss(target, rows), 4),
        "draft_loss": round(figures.text_loss(draft, rows), 4),
        "same_argmax": round(float(same), 4),
        "routing": routing.figures(),
    }


def row(*cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table(header, rows):
    return "\n".join([row(*header), row(*("---" for _ in header)), *(row(*cells) for cells in rows), ""])


def markdown(card):
    """The card as tables."""
    prompts, routing = card["on_prompts"], card["routing_on_prompts"]
    draft, quantised = prompts["draft"], prompts["target_in_q4_0"]
    lines = []
    if "held_out" in card:
        held = card["held_out"]
        lines.append(
            table(
                ("held-out files", "target", "draft"),
                [
                    ("loss, nats per token", held["target_loss"], held["draft_loss"]),
                    ("same argmax as the target", "", held["same_argmax"]),
                ],
            )
        )
    depths = list(draft["accepted_by_depth"])
    header = (f"along the target's greedy text, {prompts['prompts']} prompts", "draft", "target in Q4_0")
    lines.append(
        table(
            header,
            [
                ("same argmax", draft["same_argmax"], quantised["same_argmax"]),
                *(
                    (
                        f"first {depth} drafted all accepted",
                        draft["accepted_by_depth"][depth],
                        quantised["accepted_by_depth"][depth],
                    )
                    for depth in depths
                ),
                ("same argmax, by quarter of the text", *(
                    " ".join(map(str, one["by_quarter_of_text"])) for one in (draft, quantised)
                )),
                ("acceptance at temperature 1", prompts["acceptance_at_temperature_1"], ""),
            ],
        )
    )
    union = routing["experts_touched_by_window"]
    lines.append(table(("tokens in a window", *union), [("experts touched in a layer", *union.values())]))
    lines.append(
        f"Neighbouring tokens share {routing['neighbour_overlap']} of their experts "
        f"({routing['neighbour_overlap_by_chance']} by chance). "
        f"Entropy is at most {routing['entropy_bits_at_most']} bits.\n"
    )
    lines.append(
        table(
            (
                "layer",
                "load, least/most over even",
                "entropy of load",
                "of a token's router",
                "shared by neighbours",
                "cosine of two experts",
                "draft's state: first right, among the used, of the used in as many, in twice as many",
                "the layer before's",
            ),
            [
                (
                    layer["layer"],
                    f"{layer['load_least_over_even']}/{layer['load_most_over_even']}",
                    layer["load_entropy_bits"],
                    layer["token_entropy_bits"],
                    layer["neighbour_overlap"],
                    layer["experts_cosine"],
                    *(" ".join(map(str, layer["foretold"].get(name, []))) for name in ("draft", "layer before")),
                )
                for layer in routing["layers"]
            ],
        )
    )
    for text in card["texts"]:
        lines.append(f"`{text['id']}`:\n\n```\n{text['text']}\n```\n")
    return "\n".join(lines)


def main(argv=None):
    args = parse_arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    card = compute(args)
    print(markdown(card) if args.markdown else json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
