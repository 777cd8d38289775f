"""The shapes of model pairs: what is trained, by name.

A pair is a dense draft and a Mixture-of-Experts target that begins as a copy of it. Both have the same width, layers,
heads and vocabulary: the target is upcycled from the draft, and the draft's states can be put through the target's
routers.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2): queries, and keys with values, pass through a narrow state."""

    q_rank: int
    kv_rank: int
    nope: int  # dimensions of a head without rotary embedding
    rope: int  # dimensions of a head with it; for keys one head's, shared by all
    value: int  # dimensions of a head's values


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """One model. Without experts it is dense."""

    architecture: str  # general.architecture of its GGUF file
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    ff: int  # rows of a dense FFN: of all layers, or of the leading dense ones
    experts: int = 0
    used: int = 0  # experts a token uses
    expert_ff: int = 0
    shared_ff: int = 0  # rows of the shared expert
    leading_dense: int = 0  # layers without experts in front
    mla: Mla | None = None
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5
    context: int = 2048

    @property
    def is_moe(self):
        return self.experts > 0

    @property
    def qk_norm(self):
        """Queries and keys are normed per head."""
        return self.architecture in ("qwen3", "qwen3moe")

    @property
    def rope_is_interleaved(self):
        """Rotary embedding turns neighbours together; otherwise the halves of a head."""
        return self.architecture not in ("qwen3", "qwen3moe")

    @property
    def norms_expert_weights(self):
        """The weights of a token's experts sum to one."""
        return self.architecture != "deepseek"

    def has_experts(self, layer):
        return self.is_moe and layer >= self.leading_dense


@dataclasses.dataclass(frozen=True)
class PairShape:
    name: str
    draft: ModelShape
    target: ModelShape

    def __post_init__(self):
        for field in ("layers", "width", "heads", "kv_heads", "head_dim", "vocab", "mla"):
            assert getattr(self.draft, field) == getattr(self.target, field), f"{self.name}: {field} differs"
        assert not self.draft.is_moe and self.target.is_moe


def pair(name, common, draft_architecture, ff, target_architecture, **experts):
    """A pair whose models have `common` in common; the draft's FFN has `ff` rows."""
    draft = ModelShape(architecture=draft_architecture, ff=ff, **common)
    target = ModelShape(architecture=target_architecture, **{"ff": ff, **experts}, **common)
    return PairShape(name, draft, target)


def mixtral_like(name, ff, expert_ff, **common):
    """Few large experts: 8, of which 2 are used."""
    return pair(name, common, "llama", ff, "llama", experts=8, used=2, expert_ff=expert_ff)


def qwen3_like(name, ff, expert_ff, **common):
    """Many small experts, normed queries and keys: 32 experts, of which 4 are used."""
    return pair(name, common, "qwen3", ff, "qwen3moe", experts=32, used=4, expert_ff=expert_ff)


def fine_llama(name, ff, expert_ff, **common):
    """The experts of `qwen3_like` in architecture "llama", for engines that know no other."""
    return pair(name, common, "llama", ff, "llama", experts=32, used=4, expert_ff=expert_ff)


def deepseek_like(name, ff, expert_ff, **common):
    """64 experts, of which 6 are used, beside a shared one; the first layer dense; latent attention."""
    common = {**common, "mla": common.get("mla")}
    return pair(
        name,
        common,
        "deepseek2",
        ff,
        "deepseek2",
        experts=64,
        used=6,
        expert_ff=expert_ff,
        shared_ff=2 * expert_ff,
        leading_dense=1,
    )


def deepseek1_like(name, ff, expert_ff, **common):
    """As `deepseek_like` with plain attention: architecture "deepseek", and a Llama as its draft."""
    return pair(
        name,
        common,
        "llama",
        ff,
        "deepseek",
        experts=64,
        used=6,
        expert_ff=expert_ff,
        shared_ff=2 * expert_ff,
        leading_dense=1,
    )


# Sized so that three pairs in Q8_0 stay under 40 MB.
CPU = dict(layers=8, width=128, heads=4, kv_heads=2, head_dim=32, vocab=4096)
GPU = dict(layers=12, width=128, heads=4, kv_heads=2, head_dim=32, vocab=4096)
TINY = dict(layers=2, width=64, heads=2, kv_heads=1, head_dim=32, vocab=512)
LARGE_MLA = Mla(q_rank=96, kv_rank=64, nope=32, rope=16, value=32)
TINY_MLA = Mla(q_rank=32, kv_rank=32, nope=32, rope=16, value=32)


def mla_sizes(sizes, mla):
    return {**sizes, "kv_heads": sizes["heads"], "mla": mla}


SHAPES = {
    shape.name: shape
    for shape in (
        # A GPU's minutes: 12 layers.
        mixtral_like("mixtral", ff=192, expert_ff=256, **GPU),
        qwen3_like("qwen3", ff=192, expert_ff=64, **GPU),
        fine_llama("fine", ff=192, expert_ff=64, **GPU),
        deepseek_like("deepseek", ff=128, expert_ff=32, **mla_sizes(GPU, LARGE_MLA)),
        deepseek1_like("deepseek1", ff=192, expert_ff=32, **GPU),
        # An hour or two of two CPU cores: 8 layers.
        mixtral_like("mixtral-cpu", ff=256, expert_ff=320, **CPU),
        qwen3_like("qwen3-cpu", ff=256, expert_ff=96, **CPU),
        fine_llama("fine-cpu", ff=256, expert_ff=96, **CPU),
        deepseek_like("deepseek-cpu", ff=192, expert_ff=64, **mla_sizes(CPU, LARGE_MLA)),
        deepseek1_like("deepseek1-cpu", ff=256, expert_ff=64, **CPU),
        # Seconds: for tests.
        mixtral_like("mixtral-tiny", ff=96, expert_ff=96, **TINY),
        qwen3_like("qwen3-tiny", ff=96, expert_ff=32, **TINY),
        fine_llama("fine-tiny", ff=96, expert_ff=32, **TINY),
        deepseek_like("deepseek-tiny", ff=96, expert_ff=32, **mla_sizes(TINY, TINY_MLA)),
        deepseek1_like("deepseek1-tiny", ff=96, expert_ff=32, **TINY),
    )
}
