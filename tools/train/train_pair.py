"""Trains a small draft/target pair the way Mistral became Mixtral.

First a dense draft; then the target, upcycled from it (every expert starts as the draft's FFN with noise) and trained
on; last, the draft is distilled from the target. The corpus is a folder of Python files, such as the standard library
of the Python that runs this.

Needs jax, optax, tokenizers and numpy. Minutes of 0 skip a phase and load what an earlier run saved in OUT.
"""

import argparse
import functools
import json
import os
import random
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pair_model import HEAD_DIM, load, rms_norm, rope, save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SKIPPED_FOLDERS = ("test", "tests", "site-packages", "encodings", "lib2to3", "pydoc_data")
HELD_OUT_EVERY = 25  # files
CAPACITY_FACTOR = 1.5  # slots of an expert over its fair share of a batch
BALANCE_WEIGHT = 0.01  # of the router's load-balancing loss
EXPERT_NOISE = 0.3  # relative to the deviation of the draft's weights
SAVE_EVERY_S = 300


class Shape(NamedTuple):
    """Sizes of the pair; both share all but the experts."""

    d: int
    layers: int
    ff: int
    vocab: int
    experts: int
    top: int

    @property
    def heads(self):
        return self.d // HEAD_DIM

    @property
    def kv_heads(self):
        return max(1, self.d // (2 * HEAD_DIM))


class Corpus(NamedTuple):
    """Token streams: all files of a part end to end, each beginning with the end-of-text token."""

    train: np.ndarray
    held_out: np.ndarray


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", required=True, help="folder of Python files to train on")
    parser.add_argument("--out", required=True, help="folder for tokenizer, models and the list of held-out files")
    parser.add_argument("--vocab", type=int, default=4096, help="tokens (default %(default)s)")
    parser.add_argument("--d", type=int, default=256, help="width, a multiple of 64 (default %(default)s)")
    parser.add_argument("--layers", type=int, default=6, help="layers (default %(default)s)")
    parser.add_argument("--ff", type=int, default=256, help="FFN rows, of each expert too (default %(default)s)")
    parser.add_argument("--experts", type=int, default=16, help="experts of a layer (default %(default)s)")
    parser.add_argument("--top", type=int, default=2, help="experts a token uses (default %(default)s)")
    parser.add_argument("--draft-min", type=float, default=25, help="minutes for the draft (default %(default)s)")
    parser.add_argument("--target-min", type=float, default=80, help="minutes for the target (default %(default)s)")
    parser.add_argument("--distill-min", type=float, default=0, help="minutes of distilling (default %(default)s)")
    parser.add_argument("--seq", type=int, default=256, help="tokens of a sample (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="samples of a step (default %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of the draft (default %(default)s)")
    return parser.parse_args()


def load_tokenizer(path, texts, vocab):
    """Byte-level BPE, trained on the texts unless it was before."""
    if not os.path.exists(path):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.save(path)
    return Tokenizer.from_file(path)


def load_corpus(args):
    """Tokenizes the library; every 25th file in a shuffled order is held out and listed in OUT/heldout.json."""
    files = sorted(
        path for path in Path(args.lib).rglob("*.py") if not any(folder in path.parts for folder in SKIPPED_FOLDERS)
    )
    random.Random(1).shuffle(files)
    texts = [path.read_text("utf-8", "ignore") for path in files]
    tokenizer = load_tokenizer(f"{args.out}/tokenizer.json", texts, args.vocab)
    encoded = [np.array([0] + encoding.ids, np.int32) for encoding in tokenizer.encode_batch(texts)]
    is_held_out = [i % HELD_OUT_EVERY == 0 for i in range(len(files))]
    corpus = Corpus(
        train=np.concatenate([tokens for tokens, held in zip(encoded, is_held_out) if not held]),
        held_out=np.concatenate([tokens for tokens, held in zip(encoded, is_held_out) if held]),
    )
    with open(f"{args.out}/heldout.json", "w") as file:
        json.dump([str(path.relative_to(args.lib)) for path, held in zip(files, is_held_out) if held], file)
    megabytes = sum(map(len, texts)) / 1e6
    print(
        f"{len(files)} files {megabytes:.1f} MB, train {len(corpus.train) / 1e6:.2f}M "
        f"val {len(corpus.held_out) / 1e6:.2f}M tokens",
        flush=True,
    )
    return corpus


def new_draft(shape, key):
    """A dense model with random weights."""
    keys = iter(jax.random.split(key, 16))
    deviation = 0.02
    out_deviation = deviation / (2 * shape.layers) ** 0.5
    layers, d, ff = shape.layers, shape.d, shape.ff

    def normal(*sizes, scale=deviation):
        return jax.random.normal(next(keys), sizes, jnp.float32) * scale

    return dict(
        embd=normal(shape.vocab, d),
        norm=jnp.ones(d),
        an=jnp.ones((layers, d)),
        fn=jnp.ones((layers, d)),
        q=normal(layers, d, shape.heads * HEAD_DIM),
        k=normal(layers, d, shape.kv_heads * HEAD_DIM),
        v=normal(layers, d, shape.kv_heads * HEAD_DIM),
        o=normal(layers, shape.heads * HEAD_DIM, d, scale=out_deviation),
        g=normal(layers, d, ff),
        u=normal(layers, d, ff),
        w=normal(layers, ff, d, scale=out_deviation),
    )


def upcycle(draft, shape, key):
    """The target before training: each expert is the draft's FFN plus noise, the router is new."""
    target = dict(draft)
    *expert_keys, router_key = jax.random.split(key, 4)
    for name, expert_key in zip(("g", "u", "w"), expert_keys):
        weights = draft[name]
        noise = jax.random.normal(expert_key, (shape.layers, shape.experts) + weights.shape[1:])
        target[name] = jnp.repeat(weights[:, None], shape.experts, 1) + EXPERT_NOISE * jnp.std(weights) * noise
    target["r"] = jax.random.normal(router_key, (shape.layers, shape.d, shape.experts)) * 0.02
    return target


def moe(x, layer, top, capacity):
    """Routed FFN of tokens x [T, D] with `capacity` slots per expert; a token beyond them skips that expert.

    Returns the output and the load-balancing loss.
    """
    n_tokens, d = x.shape
    n_experts = layer["r"].shape[-1]
    probabilities = jax.nn.softmax(x @ layer["r"])
    top_values, top_experts = jax.lax.top_k(probabilities, top)
    weights = top_values / top_values.sum(-1, keepdims=True)

    # Each (token, rank) takes the next slot of its expert; the last, virtual slot is for those that find none.
    flat_experts = top_experts.reshape(-1)
    chosen = jax.nn.one_hot(flat_experts, n_experts, dtype=jnp.int32)
    place = (jnp.cumsum(chosen, 0) * chosen).sum(-1) - 1
    fits = place < capacity
    slot = jnp.where(fits, flat_experts * capacity + place, n_experts * capacity)
    token_of = jnp.arange(n_tokens * top) // top
    source = jnp.full(n_experts * capacity + 1, n_tokens).at[slot].set(token_of)[:-1]

    slots = jnp.concatenate([x, jnp.zeros((1, d))])[source].reshape(n_experts, capacity, d)
    hidden = jax.nn.silu(jnp.einsum("ecd,edf->ecf", slots, layer["g"])) * jnp.einsum("ecd,edf->ecf", slots, layer["u"])
    outputs = jnp.einsum("ecf,efd->ecd", hidden, layer["w"]).reshape(n_experts * capacity, d)
    outputs = jnp.concatenate([outputs, jnp.zeros((1, d))])[slot] * (weights.reshape(-1, 1) * fits[:, None])

    share = jax.nn.one_hot(top_experts, n_experts).sum((0, 1)) / (n_tokens * top)
    balance = n_experts * (share * probabilities.mean(0)).sum()
    return outputs.reshape(n_tokens, top, d).sum(1), balance


def attention(x, layer, positions, mask):
    """Causal attention of normed x [B, S, D] with grouped KV heads."""
    batch, length, _ = x.shape
    heads, kv_heads = layer["q"].shape[-1] // HEAD_DIM, layer["k"].shape[-1] // HEAD_DIM
    q = jax.vmap(lambda z: rope(z.reshape(length, heads, HEAD_DIM), positions))(x @ layer["q"])
    k = jax.vmap(lambda z: rope(z.reshape(length, kv_heads, HEAD_DIM), positions))(x @ layer["k"])
    v = (x @ layer["v"]).reshape(batch, length, kv_heads, HEAD_DIM)
    k = jnp.repeat(k, heads // kv_heads, 2)
    v = jnp.repeat(v, heads // kv_heads, 2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * HEAD_DIM**-0.5
    probabilities = jax.nn.softmax(jnp.where(mask, scores, -1e9))
    return jnp.einsum("bhqk,bkhd->bqhd", probabilities, v).reshape(batch, length, -1) @ layer["o"]


def forward(params, tokens, top):
    """Logits [B, S, V] and the mean load-balancing loss of a batch [B, S]."""
    batch, length = tokens.shape
    d = params["embd"].shape[1]
    is_moe = "r" in params
    positions = jnp.arange(length).astype(jnp.float32)
    mask = jnp.tril(jnp.ones((length, length), bool))
    names = ["an", "fn", "q", "k", "v", "o", "g", "u", "w"] + (["r"] if is_moe else [])

    def step(carry, layer):
        x, balance = carry
        x = x + attention(rms_norm(x, layer["an"]), layer, positions, mask)
        h = rms_norm(x, layer["fn"])
        if is_moe:
            capacity = int(CAPACITY_FACTOR * batch * length * top / layer["r"].shape[-1])
            y, layer_balance = moe(h.reshape(batch * length, d), layer, top, capacity)
            return (x + y.reshape(batch, length, d), balance + layer_balance), None
        return (x + (jax.nn.silu(h @ layer["g"]) * (h @ layer["u"])) @ layer["w"], balance), None

    (x, balance), _ = jax.lax.scan(step, (params["embd"][tokens], 0.0), {name: params[name] for name in names})
    return rms_norm(x, params["norm"]) @ params["embd"].T, balance / params["q"].shape[0]


def text_loss(top):
    """Cross-entropy of the next token plus load balancing; reports the cross-entropy."""

    def loss(params, tokens):
        logits, balance = forward(params, tokens[:, :-1], top)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()
        return entropy + BALANCE_WEIGHT * balance, entropy

    return loss


def distillation_loss(teacher, top):
    """Cross-entropy to the teacher's distribution; reports the share of equal argmax."""
    teacher = jax.tree.map(jnp.asarray, teacher)

    def loss(params, tokens):
        logits, _ = forward(params, tokens[:, :-1], top)
        wanted = jax.lax.stop_gradient(forward(teacher, tokens[:, :-1], top)[0])
        same = (logits.argmax(-1) == wanted.argmax(-1)).mean()
        return optax.softmax_cross_entropy(logits, jax.nn.softmax(wanted)).mean(), same

    return loss


def learning_rate(peak, done):
    """Warm-up over the first 2 % of the time, then a cosine down to 5 % of the peak."""
    return peak * min(1, done / 0.02) * (0.5 * (1 + np.cos(np.pi * min(done, 1))) * 0.95 + 0.05)


def train(params, args, corpus, name, minutes, peak, loss):
    """Trains for a time, saving OUT/name.pkl now and then and at the end; returns the parameters."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.98), optax.add_decayed_weights(0.02)
    )
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, tokens, rate):
        (_, figure), gradients = jax.value_and_grad(loss, has_aux=True)(params, tokens)
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(lambda x, update: x - rate * update, params, updates), state, figure

    evaluate = jax.jit(lambda params, tokens: loss(params, tokens)[1])

    def sample(rng, data):
        starts = rng.randint(0, len(data) - args.seq - 1, args.batch)
        return np.stack([data[start : start + args.seq + 1] for start in starts])

    rng = np.random.RandomState(0)
    started = last_saved = time.time()
    n_steps, running = 0, None
    while True:
        done = (time.time() - started) / (minutes * 60)
        if done >= 1:
            break
        params, state, figure = step(params, state, sample(rng, corpus.train), learning_rate(peak, done))
        n_steps += 1
        running = float(figure) if running is None else 0.98 * running + 0.02 * float(figure)
        if n_steps % 50 == 0:
            held_out = float("nan")
            if n_steps % 200 == 0:
                held_out_rng = np.random.RandomState(7)
                held_out = np.mean([float(evaluate(params, sample(held_out_rng, corpus.held_out))) for _ in range(4)])
            speed = n_steps * args.batch * args.seq / (time.time() - started)
            print(
                f"{name} step {n_steps} {done * 100:.1f}% {speed:.0f} tok/s train {running:.3f} val {held_out:.3f}",
                flush=True,
            )
        if time.time() - last_saved > SAVE_EVERY_S:
            save(jax.device_get(params), f"{args.out}/{name}.pkl")
            last_saved = time.time()
    params = jax.device_get(params)
    save(params, f"{args.out}/{name}.pkl")
    return params


def main():
    args = parse_arguments()
    os.makedirs(args.out, exist_ok=True)
    corpus = load_corpus(args)
    shape = Shape(args.d, args.layers, args.ff, args.vocab, args.experts, args.top)

    if args.draft_min == 0:
        draft = load(f"{args.out}/draft.pkl")
    else:
        draft = new_draft(shape, jax.random.PRNGKey(0))
        draft = train(draft, args, corpus, "draft", args.draft_min, args.lr, text_loss(shape.top))
    target = None
    if args.target_min:
        target = upcycle(draft, shape, jax.random.PRNGKey(1))
        target = train(target, args, corpus, "target", args.target_min, args.lr * 0.6, text_loss(shape.top))
    if args.distill_min:  # reports the share of equal argmax in place of the loss
        teacher = target or load(f"{args.out}/target.pkl")
        loss = distillation_loss(teacher, shape.top)
        train(draft, args, corpus, "draft", args.distill_min, args.lr * 0.3, loss)


if __name__ == "__main__":
    main()
