import weakref

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from branchwise.backends.hf import native, packed  # noqa: E402  (after the check that torch is there)

KINDS = [torch.float32, torch.bfloat16]
# One output and one input, whole panels and tiles, one more and one less, more than one depth.
SHAPES = [(1, 1), (31, 33), (32, 32), (33, 31), (64, 385), (100, 577), (7, 800)]
ROWS = [0, 1, 2, 3, 14, 15, 16, 17, 33, 64, 129, 200]
TINY = {
    "vocab_size": 67,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=KINDS, ids=str)
def dtype(request):
    if not packed.supported(request.param):
        pytest.skip("no kernel for this machine")
    return request.param


def linear(outputs, inputs, dtype, *, bias=True):
    layer = torch.nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    return layer.requires_grad_(requires_grad=False)


def single(layer, dtype=None):
    return packed.Packed(packed.Siblings([layer], dtype), 0)


def check(y, layer, x):
    """Against float64: float32 sums err by some of their last bits, bfloat16 by its own rounding."""
    x, weight = x.double(), layer.weight.double()
    exact = torch.nn.functional.linear(x, weight, layer.bias.double())
    size = torch.nn.functional.linear(x.abs(), weight.abs(), layer.bias.double().abs())
    error = 1e-6 * size + (exact.abs() / 256 if y.dtype == torch.bfloat16 else 0)
    assert y.shape == exact.shape
    assert ((y - exact).abs() <= error).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_equals_a_linear_layer(dtype, shape, threads):
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    layer = linear(*shape, dtype)
    for rows in ROWS:
        x = torch.randn(rows, shape[1]).to(dtype)
        check(single(layer)(x), layer, x)
        check(single(layer, torch.float32)(x), layer, x)


def test_equals_a_linear_layer_over_many_rows_of_many_inputs(dtype):
    layer = linear(40, 4500, dtype)
    x = torch.randn(300, 4500).to(dtype)
    check(single(layer)(x), layer, x)


def test_a_layer_without_bias(dtype):
    layer = linear(40, 50, dtype, bias=False)
    x = torch.randn(5, 50).to(dtype)
    torch.testing.assert_close(single(layer)(x), layer(x), atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize("inputs", [64, 50])
def test_any_shape_and_any_strides(dtype, inputs):
    layer = linear(40, inputs, dtype)
    x = torch.randn(inputs, 2, 3).to(dtype)
    for strided in (x.permute(1, 2, 0), x.permute(2, 1, 0)[:, :1], x[:, 0, 0], x[:, 0, ::2].T):
        check(single(layer)(strided), layer, strided)


def test_a_row_does_not_depend_on_its_batch(dtype):
    layer = single(linear(70, 900, dtype))
    x = torch.randn(130, 900).to(dtype)
    whole = layer(x)
    for rows in (1, 5, 16, 40, 129):
        assert torch.equal(layer(x[-rows:]), whole[-rows:])


def test_what_is_not_a_number_stays_so(dtype):
    layer = single(linear(40, 64, dtype))
    x = torch.randn(20, 64).to(dtype)
    x[3, 5], x[7, 63], x[9, 1] = torch.nan, torch.inf, -torch.inf
    bad = ~layer(x).isfinite()
    assert bad[[3, 7, 9]].all()
    assert bad.sum() == 3 * 40


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 64, dtype=torch.float16),
        torch.zeros(2, 63),
        torch.zeros(2, 64, device="meta"),
    ],
)
def test_another_kind_of_input_is_refused(dtype, x):
    with pytest.raises(ValueError, match="expected"):
        single(linear(40, 64, dtype))(x if x.dtype == torch.float16 else x.to(dtype))


def test_siblings_are_computed_together_and_keep_nothing(dtype):
    layers = [linear(n, 64, dtype) for n in (40, 7, 96)]
    siblings = packed.Siblings(layers)
    parts = [packed.Packed(siblings, index) for index in range(3)]
    for x in (torch.randn(4, 64).to(dtype), torch.randn(9, 64).to(dtype)):
        for part, layer in zip(parts, layers, strict=True):
            check(part(x), layer, x)
    x = torch.randn(4, 64).to(dtype)
    ys = [weakref.ref(part(x)) for part in parts]
    held = [weakref.ref(x), *ys]
    del x
    assert [ref() for ref in held] == [None] * 4


def test_siblings_with_inputs_of_their_own_and_one_asked_twice(dtype):
    layers = [linear(n, 64, dtype) for n in (40, 7)]
    siblings = packed.Siblings(layers)
    first, second = (packed.Packed(siblings, index) for index in range(2))
    x = torch.randn(4, 64).to(dtype)
    other = x + 1
    check(first(x), layers[0], x)
    check(second(other), layers[1], other)
    check(first(x), layers[0], x)
    x.neg_()
    check(first(x), layers[0], x)
    check(second(x), layers[1], x)


def test_the_memory_of_a_large_output_is_used_again_when_it_is_free():
    memory = packed._Memory()
    large = (packed._FRESH // 4 + 1,)
    first = memory.empty(large, torch.float32)
    place, view = first.data_ptr(), first[5:].view(-1)
    del first
    second = memory.empty(large, torch.float32)
    assert second.data_ptr() != place
    place = second.data_ptr()
    del second
    assert memory.empty(large, torch.float32).data_ptr() == place
    assert view.shape == (large[0] - 5,)


def tiny(kind, dtype, *, tied):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**TINY, tie_word_embeddings=tied)
    return getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype).eval()


def logits(model):
    ids = torch.arange(30).view(2, 15) % TINY["vocab_size"]
    with torch.inference_mode():
        return model(ids).logits.double()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_a_model_gives_the_same_logits(dtype, kind, tied):
    model = tiny(kind, dtype, tied=tied)
    before = logits(model)
    packed.pack(model)
    kinds = [type(part) for part in model.modules()]
    assert torch.nn.Linear not in kinds
    assert kinds.count(packed.Packed) == 7 * 2 + 1
    tolerance = 1e-5 if dtype == torch.float32 else 0.02 * before.abs().max().item()
    torch.testing.assert_close(logits(model), before, atol=tolerance, rtol=0)


def test_the_output_embedding_gives_float32(dtype):
    model = tiny("Llama", dtype, tied=True)
    packed.pack(model)
    assert model(torch.tensor([[1, 2]])).logits.dtype == torch.float32


@pytest.fixture
def _no_kernels(monkeypatch):
    caches = (native.library, packed._library)
    monkeypatch.setenv("BRANCHWISE_NATIVE", "0")
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("_no_kernels")
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_without_kernels_in_c(kind):
    model = tiny("Qwen2", kind, tied=True)
    before = logits(model)
    packed.pack(model)
    assert not packed.supported(kind)
    assert packed.Packed not in [type(part) for part in model.modules()]
    torch.testing.assert_close(logits(model), before, atol=0.01, rtol=0)


def test_layers_of_other_kinds_stay():
    model = tiny("Llama", torch.float16, tied=False)
    packed.pack(model)
    assert [type(p) for p in model.modules()].count(torch.nn.Linear) == 7 * 2 + 1
