"""Who is compared, continued: engines that are servers, each in a process of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

import anyio
import httpx2 as httpx
from material import SAMPLING
from side import Absent, Asked, Tokens, warm

from branchwise.backends.models import gguf
from branchwise.core.aio import gather

ROWS = 64
CONTEXT = 49_152  # tokens that all rows hold together

LLAMA = f"""
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.port, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
p.n_parallel, p.n_ctx, p.kv_unified = {ROWS}, {CONTEXT}, True
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
p.endpoint_metrics = True
server = xllamacpp.Server(p)
print("ready", flush=True)
sys.stdin.read()
"""


# Ends a server and all its children when whoever started it closes the pipe, or is no more.
KEEPER = """
import os, signal, subprocess, sys, threading, time
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)

def end():
    sys.stdin.read()
    os.killpg(child.pid, signal.SIGTERM)
    time.sleep(10)
    os.killpg(child.pid, signal.SIGKILL)

threading.Thread(target=end, daemon=True).start()
code = child.wait()
try:
    os.killpg(child.pid, signal.SIGKILL)
except ProcessLookupError:
    pass
sys.exit(code)
"""


class Server(ABC):
    """What a server says over HTTP.

    Args:
        client: that knows its address.
    """

    together = False
    busy = 0.0

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def extend(self, asked: Sequence[Asked]) -> list[list[Tokens]]:
        """One call for each context, all at once."""
        return await gather(self._samples, asked)

    async def forwarded(self) -> int:
        """Prompt tokens that no cache held, and each token of a sample but its last."""
        text = (await self._client.get("/metrics")).text
        return self._counted({key: float(number) for key, number in _METRIC.findall(text)})

    @abstractmethod
    async def _samples(self, asked: Asked) -> list[Tokens]: ...

    @abstractmethod
    def _counted(self, metrics: Mapping[str, float]) -> int: ...

    async def _post(self, path: str, body: Mapping[str, object]) -> object:
        answer = await self._client.post(path, json=body)
        if answer.is_error:
            raise Absent(f"fails: {answer.text[:200]}")
        return answer.json()


# A counter's name, its labels, its number.
_METRIC = re.compile(r"^([a-z_:]+)(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)


class Llama(Server):
    """llama.cpp with quantised weights: prompts cached in slots, samples copied from the first."""

    _samples_asked = 0

    async def _samples(self, asked: Asked) -> list[Tokens]:
        self._samples_asked += asked.n
        body = {
            "prompt": list(asked.context),
            "n": asked.n,
            "n_predict": asked.new,
            "temperature": SAMPLING.temperature,
            "top_p": SAMPLING.top_p,
            "samplers": ["temperature", "top_p"],
            "ignore_eos": True,
            "cache_prompt": True,
            "return_tokens": True,
        }
        said = await self._post("/completion", body)
        samples = said if isinstance(said, list) else [said]
        return [tuple(sample["tokens"]) for sample in samples]

    def _counted(self, metrics: Mapping[str, float]) -> int:
        read, wrote = (
            metrics["llamacpp:prompt_tokens_total"],
            metrics["llamacpp:tokens_predicted_total"],
        )
        return int(read + wrote) - self._samples_asked


class Vllm(Server):
    """vLLM on the CPU with prefix caching."""

    busy = 2.0  # its processes look for work without a pause for about a second

    async def _samples(self, asked: Asked) -> list[Tokens]:
        body = {
            "model": "it",
            "prompt": list(asked.context),
            "n": asked.n,
            "max_tokens": asked.new,
            "temperature": SAMPLING.temperature,
            "top_p": SAMPLING.top_p,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        said = await self._post("/v1/completions", body)
        choices = sorted(said["choices"], key=lambda choice: choice["index"])
        return [tuple(choice["token_ids"]) for choice in choices]

    def _counted(self, metrics: Mapping[str, float]) -> int:
        read = metrics["vllm:prefix_cache_queries_total"] - metrics["vllm:prefix_cache_hits_total"]
        wrote = metrics["vllm:generation_tokens_total"]
        return int(read + wrote - metrics["vllm:request_prompt_tokens_count"])


@asynccontextmanager
async def llama(place: Path, dtype: str, threads: int) -> AsyncIterator[Llama]:  # noqa: ARG001  (its weights are four bits wide)
    """Start llama.cpp's server with the file that the weights come from."""
    if not find_spec("xllamacpp"):
        raise Absent("not installed: pip install xllamacpp")
    port = _port()
    command = [sys.executable, "-c", LLAMA, str(gguf(place.name)), str(port), str(threads)]
    async with _served(command, {}, port) as client:
        peer = Llama(client)
        await warm(peer)
        yield peer


@asynccontextmanager
async def vllm(place: Path, dtype: str, threads: int) -> AsyncIterator[Vllm]:
    """Start vLLM's server, in the environment of the Python that BRANCHWISE_BENCH_VLLM names."""
    python = os.environ.get("BRANCHWISE_BENCH_VLLM")
    if not python:
        raise Absent("not installed: BRANCHWISE_BENCH_VLLM names the Python of its environment")
    port = _port()
    options = (
        f"--model {place} --served-model-name it --host 127.0.0.1 --port {port} --dtype {dtype} "
        "--enforce-eager --enable-prefix-caching --block-size 32 --max-num-seqs 64 "
        "--max-model-len 2048 --max-num-batched-tokens 8192"
    )
    command = [python, "-m", "vllm.entrypoints.openai.api_server", *options.split()]
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "3",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    async with _served(command, environment, port) as client:
        peer = Vllm(client)
        await warm(peer)
        yield peer


@asynccontextmanager
async def _served(
    command: Sequence[str], environment: Mapping[str, str], port: int
) -> AsyncIterator[httpx.AsyncClient]:
    """A server while it is needed; it and all its children end with it."""
    address = f"http://127.0.0.1:{port}"
    with TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: ASYNC220, S603  (started once; a command of our own)
            [sys.executable, "-c", KEEPER, *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            start_new_session=True,  # a signal to the benchmark and its group is not for the keeper
        )
        try:
            async with httpx.AsyncClient(base_url=address, timeout=600) as client:
                while not await _answers(client):
                    if process.poll() is not None:
                        log.seek(0)
                        said = log.read().decode(errors="replace").strip().splitlines()
                        raise Absent(f"does not start: {said[-1] if said else process.returncode}")
                    await anyio.sleep(0.5)
                yield client
        finally:
            process.stdin.close()
            process.wait()


async def _answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).is_success
    except httpx.TransportError:
        return False


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
