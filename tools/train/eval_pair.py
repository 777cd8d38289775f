"""Figures of a trained pair on held-out files of its corpus.

Agreement and acceptance of the draft, how many experts n tokens touch together, how evenly experts are used, and how
well the target's experts are predicted from hidden states the draft has.

Needs jax, tokenizers and numpy. For pairs of 64-wide heads and two experts a token, as train_pair.py makes them.
"""

import argparse
import collections
import json

import jax
import jax.numpy as jnp
import numpy as np
from pair_model import HEAD_DIM, load, rms_norm, rope
from tokenizers import Tokenizer

TOP = 2
N_FILES = 12
N_TOKENS = 512  # of each file
LEAST_TOKENS = 200
WINDOWS = (1, 2, 3, 5, 9)
WINDOW_STRIDE = 7


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="what train_pair.py wrote: draft.pkl, target.pkl, tokenizer.json, heldout.json")
    parser.add_argument("lib", help="the folder of Python files the pair was trained on")
    return parser.parse_args()


Trace = collections.namedtuple("Trace", "logits residuals normed attention experts")


def forward(params, tokens):
    """Runs one text. Returns logits and, per layer: the residual stream and its norm before the FFN, attention's
    output, and the experts chosen (none in a dense model)."""
    length = tokens.shape[0]
    x = params["embd"][tokens]
    positions = jnp.arange(length).astype(jnp.float32)
    mask = jnp.tril(jnp.ones((length, length), bool))
    heads, kv_heads = params["q"].shape[-1] // HEAD_DIM, params["k"].shape[-1] // HEAD_DIM
    residuals, normed, attention, experts = [], [], [], []
    for i in range(params["q"].shape[0]):
        h = rms_norm(x, params["an"][i])
        q = rope((h @ params["q"][i]).reshape(length, heads, HEAD_DIM), positions)
        k = rope((h @ params["k"][i]).reshape(length, kv_heads, HEAD_DIM), positions)
        v = (h @ params["v"][i]).reshape(length, kv_heads, HEAD_DIM)
        k = jnp.repeat(k, heads // kv_heads, 1)
        v = jnp.repeat(v, heads // kv_heads, 1)
        scores = jnp.where(mask, jnp.einsum("qhd,khd->hqk", q, k) * HEAD_DIM**-0.5, -1e9)
        attended = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), v).reshape(length, -1) @ params["o"][i]
        attention.append(attended)
        x = x + attended
        h = rms_norm(x, params["fn"][i])
        residuals.append(x)
        normed.append(h)
        if "r" in params:
            y, chosen = routed_ffn(params, i, h)
            experts.append(chosen)
            x = x + y
        else:
            x = x + (jax.nn.silu(h @ params["g"][i]) * (h @ params["u"][i])) @ params["w"][i]
    logits = rms_norm(x, params["norm"]) @ params["embd"].T
    return Trace(logits, residuals, normed, attention, experts)


def routed_ffn(params, i, h):
    """Layer i's experts for h [S, D], every expert computed and the chosen two taken."""
    length = h.shape[0]
    router_logits = h @ params["r"][i]
    chosen = jnp.argsort(-router_logits, -1)[:, :TOP]
    weights = jax.nn.softmax(jnp.take_along_axis(router_logits, chosen, 1))
    hidden = jax.nn.silu(jnp.einsum("sd,edf->esf", h, params["g"][i]))
    hidden = hidden * jnp.einsum("sd,edf->esf", h, params["u"][i])
    outputs = jnp.einsum("esf,efd->esd", hidden, params["w"][i])
    y = sum(weights[:, rank : rank + 1] * outputs[chosen[:, rank], jnp.arange(length)] for rank in range(TOP))
    return y, chosen


def overlap(some, others):
    """Mean share of the chosen experts that two lists of rows have in common."""
    return [len(set(a) & set(b)) / TOP for a, b in zip(some, others)]


def predictions(draft, target, params, i):
    """Hidden states that could be put through layer i's router before the target is there."""
    before = target.normed[i - 1] if i else target.normed[0] * 0
    return {
        "draft, post-norm": draft.normed[i],
        "draft, target's norm": rms_norm(draft.residuals[i], params["fn"][i]),
        "draft, raw attention": draft.attention[i],
        "target, one layer before": before,
    }


class Figures:
    """Collects over texts."""

    def __init__(self, target_params):
        self.target_params = target_params
        self.layers = target_params["r"].shape[0]
        self.used = np.zeros((self.layers, target_params["r"].shape[-1]))
        self.same_argmax, self.rejection, self.shared_noise = [], [], []
        self.union = {n: [] for n in WINDOWS}
        self.neighbours = []
        self.accuracy = collections.defaultdict(list)
        self.rng = np.random.RandomState(0)

    def add(self, draft, target):
        p_draft, p_target = (np.asarray(jax.nn.softmax(trace.logits)) for trace in (draft, target))
        self.same_argmax.append((p_draft.argmax(-1) == p_target.argmax(-1)).mean())
        self.rejection.append(np.minimum(p_draft, p_target).sum(-1).mean())
        noise = self.rng.gumbel(size=p_draft.shape)
        sampled = [(np.log(p + 1e-30) + noise).argmax(-1) for p in (p_draft, p_target)]
        self.shared_noise.append((sampled[0] == sampled[1]).mean())
        for i in range(self.layers):
            self.add_layer(i, draft, target)

    def add_layer(self, i, draft, target):
        chosen = np.asarray(target.experts[i])
        np.add.at(self.used[i], chosen.reshape(-1), 1)
        for name, h in predictions(draft, target, self.target_params, i).items():
            ranked = np.asarray(jnp.argsort(-(h @ self.target_params["r"][i]), -1))
            top1 = (ranked[:, :1] == chosen[:, :1]).mean()
            in_two = np.mean(overlap(ranked[:, :2], chosen))
            in_four = np.mean(overlap(chosen, ranked[:, :4]))
            self.accuracy[name, i].append((top1, in_two, in_four))
        for n in WINDOWS:
            starts = range(0, len(chosen) - n, WINDOW_STRIDE)
            self.union[n] += [len(set(chosen[start : start + n].reshape(-1))) for start in starts]
        self.neighbours += overlap(chosen[:-1], chosen[1:])

    def show(self):
        print(
            f"same argmax {np.mean(self.same_argmax):.3f}, acceptance at temperature 1: "
            f"rejection {np.mean(self.rejection):.3f}, shared noise {np.mean(self.shared_noise):.3f}"
        )
        union = ", ".join(f"{n}: {np.mean(counts):.2f}" for n, counts in self.union.items())
        print(f"experts touched by n tokens: {union}; overlap of neighbours {np.mean(self.neighbours):.3f}")
        print("predicted experts: first right, share of the two within two, within four")
        for (name, i), rows in sorted(self.accuracy.items()):
            print(f"  {name}, layer {i}:", *(f"{value:.3f}" for value in np.mean(rows, 0)))
        for i, counts in enumerate(self.used):
            print(
                f"load of layer {i}: least {counts.min() / counts.mean():.2f}, most {counts.max() / counts.mean():.2f} "
                "of the mean"
            )


def main():
    args = parse_arguments()
    draft_params, target_params = load(f"{args.out}/draft.pkl"), load(f"{args.out}/target.pkl")
    tokenizer = Tokenizer.from_file(f"{args.out}/tokenizer.json")
    with open(f"{args.out}/heldout.json") as file:
        names = json.load(file)[:N_FILES]
    run = jax.jit(forward)
    figures = Figures(target_params)
    for name in names:
        with open(f"{args.lib}/{name}", errors="ignore") as file:
            tokens = np.array([0] + tokenizer.encode(file.read()).ids)[:N_TOKENS]
        if len(tokens) >= LEAST_TOKENS:
            figures.add(run(draft_params, tokens), run(target_params, tokens))
    figures.show()


if __name__ == "__main__":
    main()
