"""The figures of a pair's card: plain functions of token rows and traces."""

import numpy as np
import torch
from pair_model import forward, gated_ffn

WINDOWS = (1, 2, 3, 5, 9, 17)
DEPTHS = range(1, 9)
BATCH = 20  # rows run at once


@torch.no_grad()
def run_rows(model, rows):
    """Logits [S, V] and trace of each row [S] of tokens, all of one length, one after another."""
    for row in rows:
        output = forward(model.shape, model.params, row[None], with_trace=True)
        yield output.logits[0], output.trace


@torch.no_grad()
def argmax_rows(model, rows):
    """The model's choice behind each token of rows [N, S]."""
    parts = [forward(model.shape, model.params, part).logits.argmax(-1) for part in rows.split(BATCH)]
    return torch.cat(parts)


@torch.no_grad()
def greedy(model, prompts, n_tokens):
    """Continues each prompt (a list of tokens) greedily; end of text does not stop it. Returns lists of tokens.

    Rows are filled up behind their end, which causal attention does not see.
    """
    texts = [list(prompt) for prompt in prompts]
    for _ in range(n_tokens):
        longest = max(map(len, texts))
        rows = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        following = argmax_rows(model, rows)
        for text, row in zip(texts, following):
            text.append(int(row[len(text) - 1]))
    return texts


def agreement(model, texts, prompts):
    """Whether the model's choice at each generated position is the text's own; one array for each text."""
    longest = max(map(len, texts))
    rows = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    chosen = argmax_rows(model, rows)
    return [
        np.array([int(row[i - 1]) == text[i] for i in range(len(prompt), len(text))])
        for row, text, prompt in zip(chosen, texts, prompts)
    ]


def accepted_by_depth(agreements):
    """Share of drafts from any position whose first d tokens are all accepted, for each depth d."""
    shares = {}
    for depth in DEPTHS:
        runs = [one[i : i + depth].all() for one in agreements for i in range(len(one) - depth + 1)]
        if runs:
            shares[depth] = float(np.mean(runs))
    return shares


def agreement_by_place(agreements, parts=4):
    """Mean agreement in each successive part of the generated texts."""
    return [float(np.mean(part)) for part in np.array_split(np.stack(agreements), parts, axis=1)]


def held_out_rows(stream, seq, count):
    """Rows spread evenly over a token stream."""
    starts = np.linspace(0, len(stream) - seq - 2, count).astype(int)
    return torch.from_numpy(np.stack([stream[start : start + seq + 1] for start in starts]).astype(np.int64))


@torch.no_grad()
def text_loss(model, rows):
    """Mean cross-entropy in nats per token of rows [N, S + 1]."""
    losses = []
    for part in rows.split(BATCH):
        logits = forward(model.shape, model.params, part[:, :-1]).logits
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten()).item() * len(part))
    return sum(losses) / len(rows)


def overlap(some, others):
    """Mean share of the rows of `some` [N, k] found in those of `others` [N, m]."""
    return (some[:, :, None] == others[:, None, :]).any(-1).float().mean().item()


class Routing:
    """Collects what a target's routers chose, layer by layer, and how well its draft's states foretell it."""

    def __init__(self, target):
        self.target = target
        self.layers = [i for i in range(target.shape.layers) if target.shape.has_experts(i)]
        n_experts = target.shape.experts
        self.counts = {i: torch.zeros(n_experts) for i in self.layers}
        self.token_entropy = {i: [] for i in self.layers}
        self.neighbours = {i: [] for i in self.layers}
        self.union = {n: [] for n in WINDOWS}
        self.foretold = {name: {i: [] for i in self.layers} for name in ("draft", "layer before")}
        self.likeness = {i: [] for i in self.layers}

    def add(self, target_trace, draft_trace):
        """One text's traces."""
        for i in self.layers:
            layer = target_trace[i]
            chosen = layer.chosen
            self.counts[i] += torch.bincount(chosen.flatten(), minlength=self.target.shape.experts)
            log_probabilities = layer.router_logits.log_softmax(-1)
            self.token_entropy[i].append(-(log_probabilities.exp() * log_probabilities).sum(-1).mean().item())
            self.neighbours[i].append(overlap(chosen[:-1], chosen[1:]))
            for n in WINDOWS:
                for start in range(0, len(chosen) - n + 1, 7):
                    self.union[n].append(len(chosen[start : start + n].unique()))
            self.foretell("draft", i, draft_trace[i].ffn_input, chosen)
            if i > 0:
                self.foretell("layer before", i, target_trace[i - 1].ffn_input, chosen)
            self.compare_experts(i, layer.ffn_input[::64])

    def foretell(self, name, i, states, chosen):
        router = self.target.params[f"blk.{i}.ffn_gate_inp.weight"]
        used = self.target.shape.used
        ranked = (states @ router.T).argsort(-1, descending=True)
        first = (ranked[:, 0] == chosen[:, 0]).float().mean().item()
        among_used = (ranked[:, :1] == chosen).any(-1).float().mean().item()
        self.foretold[name][i].append(
            (first, among_used, overlap(chosen, ranked[:, :used]), overlap(chosen, ranked[:, : 2 * used]))
        )

    def compare_experts(self, i, states):
        """Mean cosine of two experts' outputs for the same state; 1 if all experts were one."""
        outputs = []
        for e in range(self.target.shape.experts):
            parts = (self.target.params[f"blk.{i}.ffn_{part}_exps.weight"][e] for part in ("gate", "up", "down"))
            outputs.append(torch.nn.functional.normalize(gated_ffn(states, *parts), dim=-1))
        total = torch.stack(outputs)  # [experts, states, width]
        n = len(outputs)
        sums = total.sum(0).pow(2).sum(-1)  # of all pairs, each expert with itself included
        self.likeness[i].append(((sums - n) / (n * (n - 1))).mean().item())

    def figures(self):
        most = np.log2(self.target.shape.experts)
        layers = []
        for i in self.layers:
            share = self.counts[i] / self.counts[i].sum()
            even = 1 / len(share)
            nonzero = share[share > 0]
            layers.append(
                {
                    "layer": i,
                    "load_least_over_even": round(float(share.min() / even), 3),
                    "load_most_over_even": round(float(share.max() / even), 3),
                    "dead_experts": int((share == 0).sum()),
                    "load_entropy_bits": round(float(-(nonzero * nonzero.log2()).sum()), 3),
                    "token_entropy_bits": round(float(np.mean(self.token_entropy[i]) / np.log(2)), 3),
                    "neighbour_overlap": round(float(np.mean(self.neighbours[i])), 3),
                    "experts_cosine": round(float(np.mean(self.likeness[i])), 3),
                    "foretold": {
                        name: [round(float(value), 3) for value in np.mean(rows[i], 0)]
                        for name, rows in self.foretold.items()
                        if rows[i]
                    },
                }
            )
        return {
            "entropy_bits_at_most": round(float(most), 3),
            "neighbour_overlap": round(float(np.mean([layer["neighbour_overlap"] for layer in layers])), 3),
            "neighbour_overlap_by_chance": round(self.target.shape.used / self.target.shape.experts, 3),
            "experts_touched_by_window": {n: round(float(np.mean(seen)), 2) for n, seen in self.union.items() if seen},
            "layers": layers,
        }


def acceptance_at_temperature_one(target_logits, draft_logits):
    """Expected acceptance of one drafted token by rejection sampling: the overlap of the two distributions."""
    return torch.minimum(target_logits.softmax(-1), draft_logits.softmax(-1)).sum(-1).mean().item()
