"""The models of a pair as functions of their parameters.

A model's parameters are a dictionary of tensors under the names they have in GGUF, in its orientation: matrices are
[out, in], stacked experts [expert, out, in]. So a file's tensors can be run as they are, and a trained model is
written as it is. The head is the embeddings.

Everything runs on whatever device the parameters are on.
"""

import ctypes
import dataclasses

import torch
import torch.nn.functional as F

EXPERT_NOISE = 0.3  # of an upcycled expert, relative to the deviation of the draft's weights
LEAST_WEIGHT_SUM = 6.103515625e-5  # of a token's experts; as llama.cpp


def new_parameters(shape, seed, device="cpu"):
    """A model with random weights."""
    generator = torch.Generator().manual_seed(seed)
    deviation = shape.width**-0.5 * 0.5
    out_deviation = deviation / (2 * shape.layers) ** 0.5
    params = {}

    def normal(name, *sizes, scale=deviation):
        params[name + ".weight"] = torch.randn(*sizes, generator=generator) * scale

    def ones(name, size):
        params[name + ".weight"] = torch.ones(size)

    normal("token_embd", shape.vocab, shape.width, scale=0.02)
    ones("output_norm", shape.width)
    for i in range(shape.layers):
        ones(f"blk.{i}.attn_norm", shape.width)
        ones(f"blk.{i}.ffn_norm", shape.width)
        if shape.mla:
            mla = shape.mla
            normal(f"blk.{i}.attn_q_a", mla.q_rank, shape.width)
            ones(f"blk.{i}.attn_q_a_norm", mla.q_rank)
            normal(f"blk.{i}.attn_q_b", shape.heads * (mla.nope + mla.rope), mla.q_rank)
            normal(f"blk.{i}.attn_kv_a_mqa", mla.kv_rank + mla.rope, shape.width)
            ones(f"blk.{i}.attn_kv_a_norm", mla.kv_rank)
            normal(f"blk.{i}.attn_k_b", shape.heads, mla.kv_rank, mla.nope)
            normal(f"blk.{i}.attn_v_b", shape.heads, mla.value, mla.kv_rank)
            normal(f"blk.{i}.attn_output", shape.width, shape.heads * mla.value, scale=out_deviation)
        else:
            normal(f"blk.{i}.attn_q", shape.heads * shape.head_dim, shape.width)
            normal(f"blk.{i}.attn_k", shape.kv_heads * shape.head_dim, shape.width)
            normal(f"blk.{i}.attn_v", shape.kv_heads * shape.head_dim, shape.width)
            normal(f"blk.{i}.attn_output", shape.width, shape.heads * shape.head_dim, scale=out_deviation)
        if shape.qk_norm:
            ones(f"blk.{i}.attn_q_norm", shape.head_dim)
            ones(f"blk.{i}.attn_k_norm", shape.head_dim)
        if shape.has_experts(i):
            normal(f"blk.{i}.ffn_gate_inp", shape.experts, shape.width)
            experts = [("_exps", (shape.experts,), shape.expert_ff)]
            if shape.shared_ff:
                experts.append(("_shexp", (), shape.shared_ff))
        else:
            experts = [("", (), shape.ff)]
        for suffix, stack, rows in experts:
            normal(f"blk.{i}.ffn_gate{suffix}", *stack, rows, shape.width)
            normal(f"blk.{i}.ffn_up{suffix}", *stack, rows, shape.width)
            normal(f"blk.{i}.ffn_down{suffix}", *stack, shape.width, rows, scale=out_deviation)
    return {name: tensor.to(device) for name, tensor in params.items()}


def upcycle(draft, draft_shape, shape, seed):
    """The target before training: all is the draft's but the experts and the routers.

    An expert takes random rows of the draft's FFN, as often as needed, plus noise; the down projection is scaled so
    that the weighted sum of a token's experts is about the draft's FFN, as far as so many rows can.
    """
    generator = torch.Generator().manual_seed(seed)
    target = new_parameters(shape, seed)
    for name, fresh in target.items():
        if name in draft and draft[name].shape == fresh.shape:
            target[name] = draft[name].detach().float().cpu().clone()
    for i in range(shape.layers):
        if not shape.has_experts(i):
            continue
        dense = {part: draft[f"blk.{i}.ffn_{part}.weight"].detach().float().cpu() for part in ("gate", "up", "down")}

        def slices(suffix, count, rows, scale):
            picks = torch.stack([random_rows(draft_shape.ff, rows, generator) for _ in range(count)])
            parts = {
                "gate": dense["gate"][picks],
                "up": dense["up"][picks],
                "down": dense["down"].T[picks].transpose(-1, -2) * scale,
            }
            for part, weights in parts.items():
                noise = torch.randn(weights.shape, generator=generator) * (EXPERT_NOISE * weights.std())
                name = f"blk.{i}.ffn_{part}{suffix}.weight"
                target[name] = (weights + noise).reshape(target[name].shape)

        weight_sum = 1.0 if shape.norms_expert_weights else shape.used / shape.experts
        routed_share = 1.0 if not shape.shared_ff else 0.5
        slices("_exps", shape.experts, shape.expert_ff, routed_share * draft_shape.ff / shape.expert_ff / weight_sum)
        if shape.shared_ff:
            slices("_shexp", 1, shape.shared_ff, 0.5 * draft_shape.ff / shape.shared_ff)
    return target


@torch.no_grad()
def center_routers(shape, params, tokens):
    """Takes from each router what it would say to the mean of its inputs, over a batch of tokens [B, S].

    The inputs of a layer have much in common; a router with random rows likes the same few experts for all of them,
    and the others die before balancing reaches them.
    """
    trace = forward(shape, params, tokens, with_trace=True).trace
    for i in range(shape.layers):
        if shape.has_experts(i):
            mean = F.normalize(trace[i].ffn_input.mean(0), dim=0)
            router = params[f"blk.{i}.ffn_gate_inp.weight"]
            router -= torch.outer(router @ mean, mean)


def random_rows(available, wanted, generator):
    """Indices of `wanted` rows; each row as often as any other, give or take one."""
    rounds = -(-wanted // available)
    return torch.cat([torch.randperm(available, generator=generator) for _ in range(rounds)])[:wanted]


def rms_norm(x, weight, epsilon):
    """RMSNorm over the last axis, in F32 whatever the type."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon) * weight.float()).to(x.dtype)


def rope_table(length, dims, base, device):
    """Cosines and sines [length, dims / 2]."""
    frequencies = base ** (-torch.arange(0, dims, 2, device=device, dtype=torch.float32) / dims)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rope(x, table, interleaved):
    """Rotary embedding of x [B, S, heads, dims]."""
    cos, sin = (part[None, :, None].to(x.dtype) for part in table)
    if interleaved:
        one, other = x[..., 0::2], x[..., 1::2]
        return torch.stack([one * cos - other * sin, one * sin + other * cos], -1).flatten(-2)
    one, other = x.chunk(2, -1)
    return torch.cat([one * cos - other * sin, one * sin + other * cos], -1)


@dataclasses.dataclass
class LayerTrace:
    """What one layer did with a batch: tensors [B * S, ...]."""

    attention: torch.Tensor  # what attention added to the residual stream
    residual: torch.Tensor  # the stream behind attention
    ffn_input: torch.Tensor  # its norm: what a router sees
    router_logits: torch.Tensor | None = None  # [B * S, experts]
    chosen: torch.Tensor | None = None  # [B * S, used], best first


@dataclasses.dataclass
class Output:
    logits: torch.Tensor  # [B, S, vocabulary]
    balance: torch.Tensor  # load-balancing losses of the routers, summed; one for each is even
    z_loss: torch.Tensor  # mean square of the routers' log partition functions
    load: torch.Tensor | None  # [layers with experts, experts]: share of the choices, 1 / experts is even
    trace: list | None


def attention(shape, params, i, x, table):
    """Causal attention of normed x [B, S, D]."""
    batch, length, _ = x.shape

    def weight(name):
        return params[f"blk.{i}.{name}.weight"]

    if shape.mla:
        q, k, v = latent_heads(shape, weight, x, table)
    else:
        q = F.linear(x, weight("attn_q")).view(batch, length, shape.heads, shape.head_dim)
        k = F.linear(x, weight("attn_k")).view(batch, length, shape.kv_heads, shape.head_dim)
        v = F.linear(x, weight("attn_v")).view(batch, length, shape.kv_heads, shape.head_dim)
        if shape.qk_norm:
            q = rms_norm(q, weight("attn_q_norm"), shape.norm_epsilon)
            k = rms_norm(k, weight("attn_k_norm"), shape.norm_epsilon)
        q, k = (rope(part, table, shape.rope_is_interleaved) for part in (q, k))
        k, v = (part.repeat_interleave(shape.heads // shape.kv_heads, 2) for part in (k, v))
    heads = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)), is_causal=True)
    return F.linear(heads.transpose(1, 2).reshape(batch, length, -1), weight("attn_output"))


def latent_heads(shape, weight, x, table):
    """Queries, keys and values [B, S, heads, ...] of latent attention."""
    batch, length, _ = x.shape
    mla = shape.mla
    q = rms_norm(F.linear(x, weight("attn_q_a")), weight("attn_q_a_norm"), shape.norm_epsilon)
    q = F.linear(q, weight("attn_q_b")).view(batch, length, shape.heads, mla.nope + mla.rope)
    q_nope, q_rope = q.split([mla.nope, mla.rope], -1)
    latent, k_rope = F.linear(x, weight("attn_kv_a_mqa")).split([mla.kv_rank, mla.rope], -1)
    latent = rms_norm(latent, weight("attn_kv_a_norm"), shape.norm_epsilon)
    q_rope = rope(q_rope, table, shape.rope_is_interleaved)
    k_rope = rope(k_rope[:, :, None], table, shape.rope_is_interleaved)
    k_nope = torch.einsum("bsr,hrn->bshn", latent, weight("attn_k_b").to(latent.dtype))
    v = torch.einsum("bsr,hvr->bshv", latent, weight("attn_v_b").to(latent.dtype))
    q = torch.cat([q_nope, q_rope], -1)
    k = torch.cat([k_nope, k_rope.expand(-1, -1, shape.heads, -1)], -1)
    return q, k, v


def gated_ffn(x, gate, up, down):
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def route(shape, x, router):
    """The router's logits for x [T, D] in F32, the experts chosen and their weights [T, used]."""
    with torch.autocast(x.device.type, enabled=False):
        logits = F.linear(x.float(), router.float())
    probabilities = logits.softmax(-1)
    weights, chosen = probabilities.topk(shape.used, -1)
    if shape.norms_expert_weights:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(LEAST_WEIGHT_SUM)
    return logits, probabilities, chosen, weights


def routed_ffn(x, chosen, weights, gate, up, down):
    """Sum of the chosen experts' FFNs of x [T, D]; no token is dropped."""
    run = experts_padded if x.is_cuda else experts_in_turn
    return run(x, chosen, weights, gate, up, down)


def experts_in_turn(x, chosen, weights, gate, up, down):
    """Expert after expert, each over its own tokens: little memory, many small products; for CPUs."""
    used = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=gate.shape[0]).tolist()
    token_of = order // used
    rows = x.index_select(0, token_of).split(counts)
    matrices = zip(gate.unbind(), up.unbind(), down.unbind())
    outputs = torch.cat([gated_ffn(own, *expert) for own, expert in zip(rows, matrices) if len(own)])
    return weighted_sum(x, outputs, weights.flatten()[order], token_of)


def experts_padded(x, chosen, weights, gate, up, down):
    """All experts at once, each with as many slots as the busiest needs: three batched products; for GPUs."""
    n_tokens, used = chosen.shape
    n_experts = gate.shape[0]
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=n_experts)
    slots = int(counts.max())
    first = counts.cumsum(0) - counts
    place = torch.arange(n_tokens * used, device=x.device) - first[flat[order]]
    slot = flat[order] * slots + place  # of each (token, rank), sorted by expert
    token_of = order // used
    padded = x.new_zeros(n_experts * slots, x.shape[1]).index_copy(0, slot, x.index_select(0, token_of))
    padded = padded.view(n_experts, slots, -1)
    hidden = F.silu(torch.bmm(padded, gate.transpose(1, 2))) * torch.bmm(padded, up.transpose(1, 2))
    outputs = torch.bmm(hidden, down.transpose(1, 2)).flatten(0, 1).index_select(0, slot)
    return weighted_sum(x, outputs, weights.flatten()[order], token_of)


def weighted_sum(x, outputs, weights, token_of):
    """Adds each row of outputs, weighted, to its token's; in F32."""
    return torch.zeros_like(x, dtype=torch.float32).index_add(0, token_of, outputs.float() * weights[:, None])


def as_product_input(x):
    """In the type products take, converted once and not by each of them."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def forward(shape, params, tokens, with_trace=False):
    """Runs a batch of token rows [B, S]."""
    batch, length = tokens.shape
    rope_dims = shape.mla.rope if shape.mla else shape.head_dim
    table = rope_table(length, rope_dims, shape.rope_base, tokens.device)
    embeddings = params["token_embd.weight"]
    x = F.embedding(tokens, embeddings)
    balance, z_loss, loads, trace = [], [], [], []
    for i in range(shape.layers):
        def weight(name):
            return params[f"blk.{i}.{name}.weight"]

        h = as_product_input(rms_norm(x, weight("attn_norm"), shape.norm_epsilon))
        attended = attention(shape, params, i, h, table)
        x = x + attended
        normed = rms_norm(x, weight("ffn_norm"), shape.norm_epsilon).flatten(0, 1)
        flat = as_product_input(normed)
        if with_trace:
            trace.append(LayerTrace(attended.flatten(0, 1), x.flatten(0, 1), normed))
        if not shape.has_experts(i):
            x = x + gated_ffn(flat, weight("ffn_gate"), weight("ffn_up"), weight("ffn_down")).view_as(x)
            continue
        logits, probabilities, chosen, weights = route(shape, normed, weight("ffn_gate_inp"))
        if with_trace:
            trace[-1].router_logits, trace[-1].chosen = logits, chosen
        load = torch.bincount(chosen.flatten(), minlength=shape.experts) / chosen.numel()
        loads.append(load)
        balance.append(shape.experts * (load * probabilities.mean(0)).sum())
        z_loss.append(logits.logsumexp(-1).pow(2).mean())
        y = routed_ffn(flat, chosen, weights, weight("ffn_gate_exps"), weight("ffn_up_exps"), weight("ffn_down_exps"))
        if shape.shared_ff:
            y = y + gated_ffn(flat, weight("ffn_gate_shexp"), weight("ffn_up_shexp"), weight("ffn_down_shexp"))
        x = x + y.view_as(x)
    zero = torch.zeros((), device=tokens.device)
    return Output(
        logits=F.linear(rms_norm(x, params["output_norm.weight"], shape.norm_epsilon), embeddings),
        balance=torch.stack(balance).sum() if balance else zero,
        z_loss=torch.stack(z_loss).mean() if z_loss else zero,
        load=torch.stack(loads) if loads else None,
        trace=trace if with_trace else None,
    )


def keep_freed_memory():
    """Has glibc keep what is freed. A step frees and takes large tensors; fetching their pages anew took a quarter of
    its time on a CPU."""
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(arena_max, 1)
