"""What the trained pair is made of: its parameters and the parts both training and evaluation compute with.

A model is a dictionary of arrays; L layers, width D, vocabulary V, FFN rows F, E experts:

    embd [V, D]                      embeddings, also the head
    norm [D], an [L, D], fn [L, D]   RMSNorm weights: last, before attention, before the FFN
    q [L, D, heads * 64], k and v [L, D, KV heads * 64], o [L, heads * 64, D]
    g, u [L, D, F], w [L, F, D]      gate, up and down; with experts [L, E, D, F] and [L, E, F, D]
    r [L, D, E]                      the router; absent in a dense model
"""

import pickle

import jax
import jax.numpy as jnp

HEAD_DIM = 64
NORM_EPSILON = 1e-5
ROPE_BASE = 10000.0


def load(path):
    """Reads a pickled model."""
    with open(path, "rb") as file:
        return pickle.load(file)


def save(params, path):
    """Pickles a model."""
    with open(path, "wb") as file:
        pickle.dump(params, file)


def rms_norm(x, weight):
    """RMSNorm over the last axis."""
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + NORM_EPSILON) * weight


def rope(x, positions):
    """Rotary embedding of x [S, heads, 64]: neighbouring numbers are rotated together, as llama.cpp's "norm" rope."""
    angles = positions[:, None] * (ROPE_BASE ** (-jnp.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)
