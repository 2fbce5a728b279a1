import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.gemma.modeling_gemma import GemmaRMSNorm  # noqa: E402  (after the check that it is there)
from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402  (as above)

from branchwise.backends.hf.native import library  # noqa: E402  (as above)
from branchwise.backends.hf.norm import Norm, fuse  # noqa: E402  (as above)

pytestmark = pytest.mark.skipif(library("norm") is None, reason="no compiler")
KINDS = [torch.float32, torch.bfloat16]


def model(kind, size, dtype=torch.float32):
    torch.manual_seed(0)
    norm = kind(size, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    return torch.nn.Sequential(norm).to(dtype).requires_grad_(requires_grad=False)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("size", [1, 15, 64, 577])
def test_gives_what_transformers_gives(dtype, size):
    plain, fused = model(LlamaRMSNorm, size, dtype), model(LlamaRMSNorm, size, dtype)
    fuse(fused)
    assert type(fused[0]) is Norm
    for shape in [(0, size), (size,), (3, size), (2, 70, size)]:
        x = (torch.randn(shape) * 5).to(dtype)
        tolerance = 1e-6 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(fused(x), plain(x), rtol=tolerance, atol=1e-6)


def test_many_rows_in_two_threads_and_any_strides():
    plain, fused = model(LlamaRMSNorm, 64), model(LlamaRMSNorm, 64)
    fuse(fused)
    torch.set_num_threads(2)
    x = torch.randn(64, 30, 40).permute(1, 2, 0)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_what_is_not_a_number_stays_so(dtype):
    fused = model(LlamaRMSNorm, 64, dtype)
    fuse(fused)
    x = torch.ones(3, 64, dtype=dtype)
    x[1, 7] = torch.nan
    assert fused(x).isnan().any(dim=1).tolist() == [False, True, False]
    assert fused(x)[1].isnan().all()


def test_another_dtype_goes_to_the_original():
    plain, fused = model(LlamaRMSNorm, 64), model(LlamaRMSNorm, 64)
    fuse(fused)
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    assert torch.equal(fused(x), plain(x))


def test_a_norm_of_that_name_which_computes_something_else_stays():
    other = model(GemmaRMSNorm, 64)
    fuse(other)
    assert type(other[0]) is GemmaRMSNorm
