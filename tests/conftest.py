"""Every `anyio` test runs on asyncio and on trio."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples each time, on slow machines too.
settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")

sys.path.insert(0, str(Path(__file__).parent))  # tests share `worlds`


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors, busy machines: threads that wait for each other would cost seconds."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    if torch:
        torch.set_num_threads(1)
    yield
    if torch:
        torch.set_num_threads(threads)
