"""Feed-forwards and norms as functions of their weights, by their specs."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from qkvbench.backends.jax.attention.layer import linear
from qkvbench.backends.jax.models.weights import Weights, part
from qkvbench.backends.jax.training.precision import upcast
from qkvbench.model.parts import (
    AnyFeedForward,
    AnyNorm,
    Bilinear,
    DynamicTanh,
    FeedForward,
    LayerNorm,
    NoNorm,
    ReLU2,
    RMSNorm,
    SwiGLU,
)

Stream = Float[Array, "*positions d_model"]


def feed_forward(spec: AnyFeedForward, weights: Weights, x: Stream) -> Stream:
    """The feed-forward that `spec` describes, the same map at each position."""
    match spec:
        case FeedForward():
            hidden = linear(part(weights, "up"), x)
            return linear(part(weights, "down"), jax.nn.gelu(hidden, approximate=False))
        case ReLU2():
            hidden = linear(part(weights, "up"), x)
            return linear(part(weights, "down"), jnp.square(jax.nn.relu(hidden)))
        case SwiGLU():
            gate, up = (linear(part(weights, name), x) for name in ("gate", "up"))
            return linear(part(weights, "down"), jax.nn.silu(gate) * up)
        case Bilinear():
            gate, up = (linear(part(weights, name), x) for name in ("gate", "up"))
            return linear(part(weights, "down"), gate * up)


def normalize(spec: AnyNorm, weights: Weights, x: Stream) -> Stream:
    """The norm that `spec` describes, in fp32 or better."""
    wide = upcast(x)
    match spec:
        case LayerNorm(eps):
            centred = wide - wide.mean(-1, keepdims=True)
            variance = jnp.square(centred).mean(-1, keepdims=True)
            scaled = centred * jax.lax.rsqrt(variance + eps)
            return scaled * weights["weight"] + weights["bias"]
        case RMSNorm(eps=eps, scale=learned):
            scaled = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
            return scaled * weights["weight"] if learned else scaled
        case DynamicTanh():
            return jnp.tanh(weights["alpha"] * wide) * weights["weight"] + weights["bias"]
        case NoNorm():
            return x
