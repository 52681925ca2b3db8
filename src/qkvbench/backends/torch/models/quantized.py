"""A decoder's stream as it is over a cache in few bits, and with matrices in few bits.

Rows are stored in few bits and read back as numbers again: what is lost is lost, no byte is saved.
The cache that saves them is `cache.quantize`, with the same numbers for the schemes that it has.
"""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.fft import dct
from scipy.linalg import hadamard
from torch import Tensor
from torch.nn import functional

from qkvbench.backends.torch.attention.ops import Heads
from qkvbench.backends.torch.attention.rope import RotaryEmbedding
from qkvbench.backends.torch.kernels.linear import Linear
from qkvbench.backends.torch.models.decoder import Decoder
from qkvbench.backends.torch.models.grown_cache import (
    GrownCache,
    GrownRows,
    grown_layers,
    head_maps,
)
from qkvbench.model.quantization import GROUP, Quantization
from qkvbench.variant import ROPE_KEY, ApplyRope, CachedTensor, Plan

# A row of int8 has one scale, as in the cache: its numbers are exact enough.
ROW_SCALE_BITS = 8
# Scores of so many tokens with all before them are held at once.
MOST_AT_ONCE = 512


@torch.no_grad()
def quantized_stream(
    network: Decoder, tokens: Int[Tensor, "batch time"], how: Quantization
) -> Float[Tensor, "batch time d_model"]:
    """The normed stream after the last block, each token read over the cache before it.

    Tokens are read in pieces: of any size if rows are quantized as they come, which bounds the
    scores that are held, else in groups of which all tokens read each other as they are.
    """
    blocks = network.layers()
    rows = {
        number: {
            tensor.name: _QuantizedRows(tensor, block.attention.plan, how, block.attention.rope)
            for tensor in block.attention.plan.cached
        }
        for number, block in enumerate(blocks)
        if block.attention
    }
    stream = network.embedding(tokens)
    pieces = stream.split(GROUP if how.waits else MOST_AT_ONCE, dim=1)
    read, longest = [], 0
    with _matrices_in(network, how.weight_bits) if how.weight_bits else nullcontext():
        layers = grown_layers(blocks, rows, head_maps(blocks))
        for piece in pieces:
            open_cache = GrownCache(layers, longest, piece.shape[1])
            read.append(network.blocks.step(piece, open_cache))
            longest += piece.shape[1]
        return network.norm(torch.cat(read, dim=1))


class _QuantizedRows(GrownRows):
    """Rows of one cached tensor, of which all but the newest group is in few bits."""

    def __init__(
        self, tensor: CachedTensor, plan: Plan, how: Quantization, rope: RotaryEmbedding | None
    ) -> None:
        self.heads = tensor.heads
        self.rows: Tensor | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
        self._newest: Tensor | None = None
        self._tensor, self._plan, self._how, self._rope = tensor, plan, how, rope

    def write(self, new: Heads) -> None:
        """Append the rows of a piece; those of the piece before it are quantized now at last."""
        if not self._how.waits:
            stored = self._stored(new)
            self.rows = stored if self.rows is None else torch.cat([self.rows, stored], dim=2)
            return
        before: list[Tensor] = []
        if self.rows is not None and self._newest is not None:
            old = self.rows[:, :, : self.rows.shape[2] - self._newest.shape[2]]
            before = [old, self._stored(self._newest)]
        self._newest = new
        self.rows = torch.cat([*before, new], dim=2)

    def _stored(self, rows: Heads) -> Heads:
        """The rows as they are read back."""
        how, name = self._how, self._tensor.name
        if how.bits is None:
            return rows
        match how.scheme:
            case "nope" if name == ROPE_KEY:
                return rows
            case "channel":
                return _by_channel(rows, how.bits)
            case "kivi" if name != self._plan.cached_value.name:
                return _by_channel(rows, how.bits)
            case "hadamard":
                turn = rotation(rows.shape[-1]).to(rows)
                return fake_quantize(rows @ turn, how.bits) @ turn.T
            case "before-rope" if ApplyRope() in self._tensor.derivation.ops:
                assert self._rope is not None, "an operation of a plan with RoPE"
                plain = fake_quantize(self._rope(rows, back=True), how.bits)
                return self._rope(plain)
            case _:
                return fake_quantize(rows, how.bits)


def fake_quantize(rows: Float[Tensor, "*rows width"], bits: int) -> Float[Tensor, "*rows width"]:
    """Rows in so many bits and back: a scale for each row of int8, or for each group of others."""
    width = rows.shape[-1]
    group = width if bits == ROW_SCALE_BITS else GROUP
    grouped = functional.pad(rows, (0, -width % group)).unflatten(-1, (-1, group))
    return _rounded(grouped, bits).flatten(-2)[..., :width]


def _by_channel(rows: Heads, bits: int) -> Heads:
    """As `fake_quantize`, with a scale for each channel of all these rows."""
    return _rounded(rows.transpose(2, 3), bits).transpose(2, 3)


def _rounded(groups: Float[Tensor, "*groups group"], bits: int) -> Float[Tensor, "*groups group"]:
    largest = 2 ** (bits - 1) - 1
    scales = groups.abs().amax(-1, keepdim=True) / largest
    steps = torch.where(scales > 0, scales, 1)
    return (groups / steps).round().clamp(-largest, largest) * steps


@cache
def rotation(width: int) -> Float[Tensor, "width width"]:
    """A fixed orthogonal matrix that spreads each channel over all of them.

    Hadamard's, times the discrete cosine transform of the odd factor of the width.
    """
    power = width & -width
    matrix = np.kron(hadamard(power) / power**0.5, dct(np.eye(width // power), norm="ortho"))
    return torch.from_numpy(matrix)


@contextmanager
def _matrices_in(network: Decoder, bits: int) -> Generator[None]:
    """The matrices of all blocks with the numbers that so many bits leave, for a while.

    Those of heads, such as the up-projections of latents, too.
    """
    weights = [each.weight for each in network.blocks.modules() if isinstance(each, Linear)]
    for block in network.layers():
        maps = block.attention.maps.values() if block.attention else ()
        # A rotation is made of a vector of numbers for each head.
        weights += [numbers for numbers in maps if numbers.ndim > 2]
    kept = [each.detach().clone() for each in weights]
    try:
        for each in weights:
            each.copy_(fake_quantize(each, bits))
        yield
    finally:
        for each, old in zip(weights, kept, strict=True):
            each.copy_(old)
