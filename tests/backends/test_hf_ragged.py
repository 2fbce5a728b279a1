import importlib
import os

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402  (after the check that torch is there)
from hypothesis import strategies as st  # noqa: E402

from branchwise.backends.hf import ragged  # noqa: E402
from branchwise.backends.hf.ragged import Ranges  # noqa: E402

SLOTS = 300
CPU = torch.device("cpu")
TREE = [[(0, 70), (80 + 20 * (i // 3), 20), (200 + 8 * i, i)] for i in range(12)]
PROMPT = [[(5, 90), (100, 30 + i)] for i in range(20)]
MIXED = [[], [(7, 1)], [(0, 0), (3, 0)], [(250, 50)], *TREE[:5], [(0, 300)], *PROMPT[:9], []]

starts = st.integers(0, SLOTS - 1)
ranges_of_one = st.lists(
    starts.flatmap(lambda start: st.tuples(st.just(start), st.integers(0, SLOTS - start))),
    max_size=4,
)
ranges_of_all = st.lists(ranges_of_one, min_size=1, max_size=6)


def in_c(*inputs):
    assert ragged.attend_in_c(*inputs)


def in_triton(*inputs):
    """On a GPU, or where there is none by the interpreter."""
    ragged_triton = importlib.import_module("branchwise.backends.hf.ragged_triton")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    query, keys, values, ranges, out, lse = inputs[:6]
    moved = [x.to(device) for x in (query, keys, values)]
    there = Ranges(*(x.to(device) for x in (ranges.pointers, ranges.starts, ranges.lengths)))
    so_far = out.to(device), lse.to(device)
    ragged_triton.attend(*moved, there, *so_far, *inputs[6:])
    out.copy_(so_far[0])
    lse.copy_(so_far[1])


@pytest.fixture(params=["gathered", "c", "triton"])
def attend(request):
    """Each implementation; one thread, for busy machines make several wait for each other."""
    if request.param == "c" and not ragged.compiled():
        pytest.skip("no compiler")
    if request.param == "triton":
        pytest.importorskip("triton")
        if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("no GPU, and TRITON_INTERPRET=1 is not set")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {"gathered": ragged.attend_gathered, "c": in_c, "triton": in_triton}[request.param]
    torch.set_num_threads(threads)


def problem(queries, heads=6, key_heads=2, size=16, *, dtype=torch.float32, sharp=1.0):
    random = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=random).to(dtype)

    pool = (key_heads, SLOTS, size)
    return sharp * normal(queries, heads, size), normal(*pool), normal(*pool)


def nothing(query):
    """No attention so far; what `out` holds then is not to be read."""
    return torch.full(query.shape, torch.nan), torch.full(query.shape[:2], -torch.inf)


def reference(inputs, ranges, so_far, scale, softcap):
    """The merged result by a dense softmax in float64, query by query and head by head."""
    (query, keys, values), (out, lse) = inputs, so_far
    merged, total = torch.zeros(query.shape).double(), torch.zeros(lse.shape).double()
    group = query.shape[1] // keys.shape[0]
    for i, pairs in enumerate(ranges):
        slots = [slot for start, length in pairs for slot in range(start, start + length)]
        for head in range(query.shape[1]):
            key, value = keys[head // group, slots].double(), values[head // group, slots].double()
            scores = key @ query[i, head].double() * scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            if lse[i, head] > -torch.inf:
                scores = torch.cat([scores, lse[i, head, None].double()])
                value = torch.cat([value, out[i, head, None].double()])
            total[i, head] = scores.logsumexp(0)
            if len(scores):
                merged[i, head] = scores.softmax(0) @ value
    return merged.float(), total.float()


def check(attend, inputs, ranges, so_far, *, softcap=0.0, bound=1e-5):
    if attend is in_triton and inputs[1].dtype == torch.bfloat16:
        bound = 2e-2  # weights are rounded to 8 bits before they multiply values
    expected = reference(inputs, ranges, so_far, 0.3, softcap)
    attend(*inputs, Ranges.of(ranges, CPU), *so_far, 0.3, softcap)
    torch.testing.assert_close(so_far, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [16, 24, 64, 80, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 3, 7])
def test_every_shape_agrees_with_a_dense_softmax(attend, dtype, size, group):
    inputs = problem(len(MIXED), group * 2, 2, size, dtype=dtype)
    check(attend, inputs, MIXED, nothing(inputs[0]))


@pytest.mark.parametrize("ranges", [TREE, PROMPT, MIXED, [[(0, 300)]], [[]], [[], [(9, 0)]]])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_what_was_attended_elsewhere_is_merged(attend, ranges, softcap):
    inputs = problem(len(ranges))
    so_far = torch.randn(inputs[0].shape), torch.randn(inputs[0].shape[:2]) + 4
    so_far[1][::3] = -torch.inf
    so_far[0][::3] = torch.nan  # not to be read
    check(attend, inputs, ranges, so_far, softcap=softcap)


def test_random_ranges(attend):
    @settings(max_examples=25)
    @given(ranges=ranges_of_all, threads=st.sampled_from([1, 2]), sharp=st.sampled_from([1, 30]))
    def agrees(ranges, threads, sharp):
        torch.set_num_threads(threads)
        inputs = problem(len(ranges), heads=3, key_heads=1, sharp=sharp)
        check(attend, inputs, ranges, nothing(inputs[0]), bound=3e-5)

    agrees()


def test_two_calls_with_parts_of_the_ranges_equal_one(attend):
    inputs = problem(len(TREE))
    whole, parts = nothing(inputs[0]), nothing(inputs[0])
    attend(*inputs, Ranges.of(TREE, CPU), *whole, 0.25)
    for part in (slice(0, 1), slice(1, 1), slice(1, 3)):
        attend(*inputs, Ranges.of([pairs[part] for pairs in TREE], CPU), *parts, 0.25)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_a_query_without_keys_gets_zeros(attend):
    inputs = problem(3)
    out, lse = nothing(inputs[0])
    attend(*inputs, Ranges.of([[], [(4, 2)], [(9, 0)]], CPU), out, lse, 1.0)
    assert not out[[0, 2]].any()
    assert lse[[0, 2]].isneginf().all()
    assert out[1].isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_with_the_queries_that_read_it(attend, dtype, bad):
    ranges = [[(10, 30), (50, 9)], [(10, 31), (60, 9)], [(10, 35)], [], [(39, 1)], [(41, 18)]]
    query, keys, values = problem(len(ranges), dtype=dtype)
    keys[:, 0] = values[:, 0] = keys[:, 40] = values[:, 40] = keys[:, 69] = values[:, 59] = bad
    query[4] = torch.nan
    out, lse = nothing(query)
    attend(query, keys, values, Ranges.of(ranges, CPU), out, lse, 1.0)
    reached = [not out[i].isfinite().all() for i in range(len(ranges))]
    assert reached == [False, True, True, False, True, False]
    assert out[4].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pool_and_queries_may_be_views(attend, dtype):
    query, keys, values = problem(len(TREE), dtype=dtype)
    both = torch.full((SLOTS, 5, 2, 16), torch.nan, dtype=dtype)
    both[:, 1:3, 0], both[:, 1:3, 1] = keys.transpose(0, 1), values.transpose(0, 1)
    fused = torch.cat([query, query], dim=1).transpose(0, 1).contiguous()
    views = fused[6:].transpose(0, 1), *(both[:, 1:3, i].transpose(0, 1) for i in (0, 1))
    out = torch.full((6, len(TREE), 16), torch.nan).transpose(0, 1)
    lse = torch.full((6, len(TREE)), -torch.inf).T
    check(attend, views, TREE, (out, lse))


def test_few_queries_are_copied_at_a_time(attend, monkeypatch):
    monkeypatch.setattr(ragged, "_GATHERED", 2 * 2 * 16 * 300)
    inputs = problem(len(MIXED))
    check(attend, inputs, MIXED, nothing(inputs[0]))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_list_is_divided_among_threads(attend, threads):
    torch.set_num_threads(threads)
    random = torch.Generator().manual_seed(1)
    query, keys, values = (torch.randn(s, 5000, 16, generator=random) for s in (6, 2, 2))
    query, ranges = query[:, :2].transpose(0, 1), [[(3, 4000), (4100, 800)], [(3, 4000)]]
    check(attend, (query, keys, values), ranges, nothing(query))
