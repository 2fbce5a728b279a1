import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny import FAMILIES, twins  # noqa: E402  (after the check that torch is there)

from branchwise.backends.hf import layer as layers  # noqa: E402  (as above)
from branchwise.backends.hf import packed  # noqa: E402  (as above)
from branchwise.backends.hf.attention import Pass, Span  # noqa: E402  (as above)
from branchwise.backends.hf.layer import Fused  # noqa: E402  (as above)
from branchwise.backends.hf.native import library  # noqa: E402  (as above)
from branchwise.backends.hf.pool import Pool, Run, Shape  # noqa: E402  (as above)

KNOWN = ["llama", "qwen2", "qwen3", "mistral", "mistral-windowed"]
SLOTS = 700


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    if not packed.supported(request.param):
        pytest.skip("no kernel for this machine")
    return request.param


def model(family, dtype=torch.float32, **more):
    """A model whose biases and norms are not what they are before training."""
    ours = (
        twins(family, initializer_range=0.1, **more)[1]
        .to(dtype)
        .requires_grad_(requires_grad=False)
    )
    for parameter in ours.parameters():
        if parameter.ndim == 1:
            parameter.normal_(1, 0.5)
    return ours


def fused(model):
    return [part for part in model.modules() if type(part) is Fused]


class Text:
    """What layers read: hidden states of some tokens, their angles, and a pool of their own."""

    def __init__(self, model, tokens):
        config, random = model.config, torch.Generator().manual_seed(tokens)
        self.shape = Shape.of(config, model.dtype)
        self.x = torch.randn(1, tokens, config.hidden_size, generator=random).to(model.dtype)
        angles = torch.rand(1, tokens, self.shape.size, generator=random) * 7
        self.angles = angles.cos().to(model.dtype), angles.sin().to(model.dtype)

    def through(self, layer, spans, rows=slice(None)):
        """The layer's output, and the pool afterwards."""
        pool = Pool(self.shape, self.shape.token_bytes * SLOTS, torch.device("cpu"))
        for block in (pool.keys, pool.values):
            block.copy_(torch.randn(block.shape, generator=torch.Generator().manual_seed(1)))
        angles = tuple(angle[:, rows] for angle in self.angles)
        memory = Pass(pool, spans)
        y = layer(self.x[:, rows], attention_mask=None, position_embeddings=angles, memory=memory)
        assert memory.layers == 1
        return y, pool.keys, pool.values


def spans(*lengths):
    """Sequences of these lengths after one of 20 tokens that they share, in slots from 20 on."""
    ends = [20 + 9 * i + sum(lengths[:i]) for i in range(len(lengths))]
    return [
        Span(range(n), 20, [Run(0, 20)], [Run(end, n)], 0)
        for n, end in zip(lengths, ends, strict=True)
    ]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("family", KNOWN)
def test_gives_what_transformers_gives(family, dtype, threads):
    ours = model(family, dtype)
    packed.pack(ours)
    torch.set_num_threads(threads)
    assert len(fused(ours)) == 3
    for lengths in [(1,), (1, 1, 1, 5), (40, 1, 1), (300,), (256, 1)]:
        text = Text(ours, sum(lengths))
        for layer in fused(ours):
            found = text.through(layer, spans(*lengths))
            wanted = text.through(layer.layer, spans(*lengths))
            tolerance = 2e-5 if dtype == torch.float32 else 0.03
            for one, other in zip(found, wanted, strict=True):
                size = other.float().abs().max().item()
                torch.testing.assert_close(one, other, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_row_does_not_depend_on_its_batch(family, dtype):
    ours = model(family, dtype)
    packed.pack(ours)
    each = spans(*[1] * 290)[:60]
    text, layer = Text(ours, 60), fused(ours)[0]
    whole = text.through(layer, each)[0]
    for rows in (slice(0, 1), slice(3, 20), slice(31, 60)):
        assert torch.equal(text.through(layer, each[rows], rows)[0], whole[:, rows])


def test_what_is_not_a_number_stays_in_its_row(dtype):
    ours = model("llama", dtype)
    packed.pack(ours)
    text = Text(ours, 5)
    text.x[0, 2, 7] = torch.nan
    bad = text.through(fused(ours)[0], spans(1, 1, 1, 1, 1))[0].isnan().all(dim=-1)
    assert bad.tolist() == [[False, False, True, False, False]]


@pytest.mark.parametrize("more", [{"num_key_value_heads": 1}, {"num_key_value_heads": 4}])
def test_any_number_of_key_heads_and_biases_everywhere(more):
    ours = model("llama", attention_bias=True, mlp_bias=True, **more)
    packed.pack(ours)
    text, layer = Text(ours, 9), fused(ours)[1]
    found, wanted = (text.through(one, spans(1, 8))[0] for one in (layer, layer.layer))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - KNOWN))
def test_other_families_are_left_alone(family):
    ours = model(family)
    packed.pack(ours)
    assert not fused(ours)


def _spoil(layer):
    layer.self_attn.o_proj.weight[3, 4] = torch.nan


def _activate_otherwise(layer):
    layer.mlp.act_fn = torch.nn.Tanh()


def _forget_a_norm(layer):
    layer.input_layernorm = torch.nn.Identity()


def _turn_otherwise(layer):
    attention = layer.self_attn
    forward = attention.forward

    def turned(hidden_states, position_embeddings, **rest):
        cos, sin = position_embeddings
        return forward(hidden_states, position_embeddings=(cos, -sin), **rest)

    attention.forward = turned


CHANGES = [_spoil, _activate_otherwise, _forget_a_norm, _turn_otherwise]


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_computes_something_else_is_left_alone(change):
    ours = model("qwen2")
    change(ours.model.layers[1])
    packed.pack(ours)
    kinds = [type(layer) for layer in ours.model.layers]
    assert [kind is Fused for kind in kinds] == [True, False, True]


def test_without_a_pass_the_original_is_asked():
    ours = model("llama")
    packed.pack(ours)
    text = Text(ours, 3)
    with pytest.raises(NotImplementedError, match="hidden arguments"):
        fused(ours)[0](text.x, position_embeddings=text.angles, attention_mask=None)


def test_without_kernels_in_c(monkeypatch):
    monkeypatch.setenv("BRANCHWISE_NATIVE", "0")
    caches = (library, packed._library, layers._library, layers._share)
    for cache in caches:
        cache.cache_clear()
    ours = model("llama")
    packed.pack(ours)
    for cache in caches:
        cache.cache_clear()
    assert not fused(ours)
