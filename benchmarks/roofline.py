"""The least time that a model's work can take on a machine: bytes over bandwidth, or arithmetic.

A step of decoding reads every weight once, the keys and values that its rows share once, and those
that are a row's own once for the row. Whichever of memory and arithmetic takes longer is the limit
(Williams et al. 2009, "Roofline").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WIDTHS = {"float32": 4, "bfloat16": 2}  # bytes of a number
DTYPES = tuple(WIDTHS)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine gave at one moment.

    Args:
        bandwidth: bytes read per second.
        flops: operations per second of a large matrix product, by dtype.
    """

    bandwidth: float
    flops: dict[str, float]


@dataclass(frozen=True, slots=True)
class Shape:
    """A model, as far as the limit depends on it.

    Args:
        layers: how many there are.
        query_heads: per layer.
        key_heads: per layer.
        size: numbers of a head.
        body: weights of the layers' matrices.
        head: weights of the matrix that makes logits; tied to the embedding or not, it is read.
        dtype: of weights, keys and values.
    """

    layers: int
    query_heads: int
    key_heads: int
    size: int
    body: int
    head: int
    dtype: str

    @staticmethod
    def of(config: Any, dtype: str) -> Shape:
        """Of a transformers configuration of a dense model with a gated feed-forward network."""
        hidden, heads = config.hidden_size, config.num_attention_heads
        size = getattr(config, "head_dim", None) or hidden // heads
        attention = 2 * hidden * size * (heads + config.num_key_value_heads)
        layer = attention + 3 * hidden * config.intermediate_size
        layers = config.num_hidden_layers
        return Shape(
            layers,
            heads,
            config.num_key_value_heads,
            size,
            layers * layer,
            config.vocab_size * hidden,
            dtype,
        )

    @property
    def weights(self) -> int:
        """Bytes of all weights that a step reads."""
        return (self.body + self.head) * WIDTHS[self.dtype]

    @property
    def token(self) -> int:
        """Bytes of one token's keys and values."""
        return 2 * self.layers * self.key_heads * self.size * WIDTHS[self.dtype]

    def step(self, machine: Machine, rows: int, shared: int, own: float = 0) -> float:
        """Seconds of one token for each row.

        Args:
            machine: what it runs on.
            rows: that are decoded together.
            shared: tokens of context that all of them share.
            own: tokens of context that each has alone.
        """
        read = self.weights + self.token * (shared + rows * own)
        pairs = rows * (shared + own)
        work = 2 * rows * (self.body + self.head) + self._attention(pairs)
        return self._seconds(machine, read, work)

    def decode(self, machine: Machine, rows: int, shared: int, tokens: int) -> float:
        """Seconds of several steps, from the first token after the shared context on."""
        return sum(self.step(machine, rows, shared, own + 1) for own in range(tokens))

    def prefill(self, machine: Machine, tokens: int) -> float:
        """Seconds until a context is read and its first token can be drawn."""
        read = self.weights + self.token * tokens
        work = 2 * (self.body * tokens + self.head) + self._attention(tokens * tokens / 2)
        return self._seconds(machine, read, work)

    def tree(self, machine: Machine, forwarded: int, sampled: int, steps: int) -> float:
        """Seconds of a search, its attention left out.

        Args:
            machine: what it runs on.
            forwarded: tokens that go through the layers.
            sampled: tokens that are drawn.
            steps: the longest chain of tokens, each of which needs the one before.
        """
        work = 2 * (self.body * forwarded + self.head * sampled)
        return self._seconds(machine, self.weights * steps, work)

    def _attention(self, pairs: float) -> float:
        """Operations for so many pairs of a query and a key."""
        return 4 * self.layers * self.query_heads * self.size * pairs

    def _seconds(self, machine: Machine, read: float, work: float) -> float:
        return max(read / machine.bandwidth, work / machine.flops[self.dtype])
