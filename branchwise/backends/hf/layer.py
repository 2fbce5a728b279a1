"""A decoder layer in three calls, which transformers spells in some thirty operators.

Linear layers take most of a pass, but for small batches what stands between them is not much less:
each operator writes its result to memory, to be read by the next, and asks all threads to meet.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

import torch

from branchwise.backends.hf.attention import Pass, Span
from branchwise.backends.hf.native import library
from branchwise.backends.hf.norm import Norm
from branchwise.backends.hf.pool import Pool, Run, Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from branchwise.backends.hf.packed import Siblings

# Their code is known: what they compute depends on nothing but what `_fused` varies.
_KNOWN = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
_LINEARS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "self_attn.q_norm",
    "self_attn.k_norm",
)
_KINDS = {torch.float32: 1, torch.bfloat16: 2}  # as in native/linear.c
_CHUNK = 256  # rows, as in native/layer.c
_TRIED = 6  # tokens of the comparison

_Memory: TypeAlias = dict[tuple[int, ...], list[torch.Tensor]]


class _Group(ctypes.Structure):
    _fields_ = (("layers", ctypes.c_void_p), ("count", ctypes.c_int64))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("linear", ctypes.c_void_p),
        ("linears", _Group * 4),
        ("next", _Group),
        ("norms", ctypes.c_void_p * 4),
        ("eps", ctypes.c_float * 4),
        ("sizes", ctypes.c_int64 * 6),
        ("inputs", ctypes.c_int64 * 3),
        ("memory", ctypes.c_void_p * 3),
    )


class _Places(ctypes.Structure):
    _fields_ = (("addresses", ctypes.c_void_p * 6), ("slots", ctypes.c_int64))


class _Parts(NamedTuple):
    """What a layer of the known structure consists of, in the order of the names above."""

    linears: list[Siblings]
    norms: list[Norm]  # two, or four


class _Asked(NamedTuple):
    """What a layer asks attention for."""

    layer: int
    scale: float
    window: int
    softcap: float


class _Listening(Pass):
    """A pass that notes what it is asked for."""

    asked: _Asked | None = None

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
    ) -> torch.Tensor:
        self.asked = _Asked(layer, scale, window, softcap)
        return super().attend(layer, query, key, value, scale=scale, window=window, softcap=softcap)


class Fused(torch.nn.Module):
    """A decoder layer: norm, attention, norm, gated linear unit, each added to what went in.

    Args:
        layer: the module that it stands for, which is still asked where a pass is not given.
        parts: of the layer.
        asked: what it asks attention for.
        size: of a head.
        memory: shared with other layers of these sizes, none of which run at the same time.
    """

    def __init__(
        self, layer: torch.nn.Module, parts: _Parts, asked: _Asked, size: int, memory: _Memory
    ) -> None:
        super().__init__()
        self.layer, self._asked = layer, asked
        linears, norms = parts
        weight, heads = norms[0].scale, [outputs // size for outputs in linears[0].sizes]
        width, middle = weight.numel(), linears[2].sizes[0]
        self._dtype, self._shape = weight.dtype, (heads[0], size)
        wide = max(sum(linears[0].sizes), 2 * middle, width)
        described = [siblings.described(torch.float32) for siblings in linears]
        attends, mixes, _, reduces = inputs = [group[0].inputs for group in described]
        rows = max(inputs) * weight.element_size(), width * 4, wide * 4
        if rows not in memory:
            memory[rows] = [torch.empty(_CHUNK * row, dtype=torch.uint8) for row in rows]
        scales = [norm.scale.float() for norm in norms]
        # The kernel knows addresses alone.
        self._kept = linears, described, scales, memory[rows]
        self._c = _Layer(
            _share(),
            tuple((ctypes.addressof(group), len(group)) for group in described),
            (None, 0),
            tuple(scale.data_ptr() for scale in scales),
            tuple(norm.eps for norm in norms),
            (_KINDS[self._dtype], width, *heads[:2], size, middle),
            (attends, mixes, reduces),
            tuple(part.data_ptr() for part in memory[rows]),
        )
        kernel = _library()
        assert kernel is not None
        self._before, self._after = kernel.before, kernel.after

    def precede(self, other: Fused) -> None:
        """Fetch the first weights of the layer that comes next before it is asked."""
        self._c.next = other._c.linears[0]

    def forward(self, x: torch.Tensor, *more: object, **rest: object) -> torch.Tensor:
        """The layer's output, shape (1, tokens, width).

        Args:
            x: shape (1, tokens, width).
            more: what transformers hands to its layer.
            rest: the same, with the pass as `memory` and `position_embeddings` among it.
        """
        memory, angles = rest.get("memory"), rest.get("position_embeddings")
        if not isinstance(memory, Pass) or not isinstance(angles, tuple) or not x.is_cpu:
            return self.layer(x, *more, **rest)
        at, scale, window, softcap = self._asked
        x, cos, sin = (y.contiguous() for y in (x, *cast("tuple[torch.Tensor, ...]", angles)))
        tokens, threads = x.shape[1], torch.get_num_threads()
        if not x.dtype == cos.dtype == self._dtype or cos.shape != (1, tokens, self._shape[1]):
            return self.layer(x, *more, **rest)
        keys, values, slots = memory.places(at)
        query = x.new_empty((tokens, *self._shape))
        places = [y.data_ptr() for y in (cos, sin, slots, query, keys, values)]
        places = _Places(tuple(places), keys.shape[1])
        self._before(self._c, x.data_ptr(), places, tokens, threads)
        out = memory.attended(query, keys, values, scale=scale, window=window, softcap=softcap)
        y = torch.empty_like(x)
        self._after(self._c, x.data_ptr(), out.data_ptr(), y.data_ptr(), tokens, threads)
        return y


def fuse(model: PreTrainedModel) -> None:
    """Replace a model's decoder layers of which all parts are packed already, and known.

    Args:
        model: its layers on a processor are replaced in place.
    """
    layers = [(name, part) for name, part in model.named_modules() if _known(part)]
    if not layers or _library() is None:
        return
    shape = Shape.of(model.config.get_text_config(), model.dtype)
    pool = Pool(shape, shape.token_bytes * _TRIED, torch.device("cpu"))
    memory: _Memory = {}
    before: Fused | None = None
    for name, layer in layers:
        if (fused := _fused(layer, pool, memory)) is not None:
            model.set_submodule(name, fused)
            if before is not None:
                before.precede(fused)
            before = fused


def _known(layer: torch.nn.Module) -> bool:
    kind = type(layer)
    return kind.__name__ in _KNOWN and kind.__module__.startswith("transformers.models.")


@torch.no_grad()
def _fused(layer: torch.nn.Module, pool: Pool, memory: _Memory) -> Fused | None:
    """The layer that gives the same as another one; None where that is not certain."""
    _, key_heads, tokens, size = pool.keys.shape
    parts = _parts(layer)
    if parts is None or size % 2 or not _fits(parts, key_heads, size):
        return None
    random, dtype = torch.Generator().manual_seed(0), pool.keys.dtype
    # Where little goes in, the result is what the layer adds to it.
    sizes = torch.logspace(-2, 1, tokens)[:, None]
    x = torch.randn(1, tokens, parts.norms[0].scale.numel(), generator=random) * sizes
    angles = (torch.rand(2, 1, tokens, size, generator=random) * 2 - 1).to(dtype).unbind()
    spans = [Span(range(tokens), 0, [], [Run(0, tokens)], 0)]
    how = {"attention_mask": None, "position_embeddings": angles}
    heard = _Listening(pool, spans)
    theirs = layer(x.to(dtype), **how, memory=heard)
    if heard.asked is None or not isinstance(theirs, torch.Tensor):
        return None
    fused = Fused(layer, parts, heard.asked, size, memory)
    ours = fused(x.to(dtype), **how, memory=Pass(pool, spans))
    differences = (ours.double() - theirs.double()).norm(dim=-1)
    # Transformers rounds to 8 bits after each operator: trained layers differ by up to 0.014.
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    return fused if (differences <= tolerance * theirs.double().norm(dim=-1)).all() else None


def _parts(layer: torch.nn.Module) -> _Parts | None:
    modules = dict(layer.named_modules())
    linears: list[Siblings] = []
    for names in _LINEARS:
        siblings, *others = {getattr(modules.get(name), "siblings", None) for name in names}
        if siblings is None or others:
            return None
        linears.append(siblings)
    norms = [norm for name in _NORMS if isinstance(norm := modules.get(name), Norm)]
    whole = len(norms) == sum(name in modules for name in _NORMS) in {2, 4}
    return _Parts(linears, norms) if whole else None


def _fits(parts: _Parts, key_heads: int, size: int) -> bool:
    """Whether all sizes are as the kernel takes them for granted."""
    attend, mix, expand, reduce = (siblings.sizes for siblings in parts.linears)
    first, second, *of_heads = (norm.scale.numel() for norm in parts.norms)
    return (
        attend[1:] == [key_heads * size] * 2
        and attend[0] % size == 0
        and mix == reduce == [first] == [second]
        and expand == expand[:1] * 2
        and all(numbers == size for numbers in of_heads)
    )


@cache
def _library() -> ctypes.CDLL | None:
    kernel = library("layer")
    if kernel is not None:
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        layer, places = ctypes.POINTER(_Layer), ctypes.POINTER(_Places)
        kernel.before.argtypes = [layer, pointer, places, number, number]
        kernel.after.argtypes = [layer, *[pointer] * 3, number, number]
        kernel.before.restype = kernel.after.restype = None
    return kernel


@cache
def _share() -> int | None:
    """Where the kernel for linear layers is."""
    linear = library("linear")
    return linear and ctypes.cast(linear.linear_share, ctypes.c_void_p).value
