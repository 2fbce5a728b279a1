"""What a search asks its models never holds the target: the log of all its requests is searched."""

import json
import sys
from contextlib import asynccontextmanager
from typing import get_args

import anyio
import numpy as np
import pytest
from parrot import Parrot

from branchwise import Candidate, Config, Message, Reading, Request, Step, Verdict
from branchwise.runs import spec as specs
from branchwise.runs.runner import Run
from branchwise.runs.spec import parse
from branchwise.runs.store import Store
from branchwise.verifiers.head import About, Head

TARGET = "90210"
LOG = []


class Logged(Config):
    """Writes down every request before a parrot answers it."""

    model: str = "logged"

    @asynccontextmanager
    async def open(self):
        async with Parrot().open() as model:
            yield _Logged(model)


class _Logged:
    name = "parrot"

    def __init__(self, model):
        self._model = model

    async def complete(self, request):
        LOG.append(request)
        if request.candidates:
            words = [
                Candidate(i, word, -1.5, -1.5) for i, word in enumerate(["Yes", "No", "A", "B"])
            ]
            return [Step("Yes", candidates=(tuple(words),)) for _ in request.seeds]
        if "number alone" in request.asked:
            return [Step("4") for _ in request.seeds]
        return await self._model.complete(request)

    async def read(self, request, *, since=0, state=False, words=()):
        LOG.append(request)
        readings = await self._model.read(request, since=since, state=state, words=words)
        return [Reading(r.tokens, r.logprobs, r.values, (0.5, 1.0), r.words) for r in readings]


class Leaky(Config):
    """A verifier that asks about the target, where it sees one."""

    backend: object

    async def score(self, nodes):
        for node in nodes:
            asked = Message("user", f"Is it {node.task.target}?")
            await self.backend.complete(Request(messages=(asked,)))
        return [Verdict(0.0) for _ in nodes]


LENGTH = {"kind": "pattern", "pattern": "answer"}
VERIFIERS = {
    "likelihood": {},
    "arithmetic": {},
    "agreement": {},
    "noisy-channel": {},
    "pattern": {"pattern": "answer"},
    "schema": {"json_schema": {"type": "integer"}},
    "prm": {"format": "qwen2.5-math-prm"},
    "orm": {},
    "implicit-reward": {"reference": {"kind": "test_separation:Logged", "model": "other"}},
    "learned": {"path": "head"},
    "genrm": {},
    "genrm-cot": {"samples": 2},
    "critique-then-score": {"by": "written"},
    "self-evaluation": {},
    "judge": {},
    "cascade": {"stages": [{"verifier": LENGTH, "at_least": 0.5}, {"verifier": {"kind": "genrm"}}]},
    "ensemble": {"members": {"one": {"kind": "genrm"}, "two": {"kind": "orm"}}},
    "calibrated": {"of": {"kind": "genrm"}, "map": {"kind": "platt", "slope": 1.0, "bias": 0.0}},
}
ASK_NO_MODEL = {"exact", "math-equal", "unit-tests", "behaviour", "command"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "test_separation", sys.modules[__name__])
    row = {"question": "What is 1 + 2?", "answer": TARGET}
    (tmp_path / "problems.jsonl").write_text(json.dumps(row))
    about = About(model="parrot", sizes=(2, 1), separator="\n")
    layer = (np.ones((1, 2)), np.zeros(1))
    Head(about, np.zeros(2), np.ones(2), (layer,)).save(tmp_path / "head")
    LOG.clear()
    return tmp_path


def searched(folder, verifier, **more):
    table = {
        "model": {"kind": "test_separation:Logged"},
        "policy": {"stop": ["\n"]},
        "grader": {"kind": "exact"},
        "data": {"path": "problems.jsonl"},
        "verifier": verifier,
        "strategies": [
            {"name": "lines", "search": {"kind": "beam", "width": 2, "fanout": 2}},
            {"name": "whole", "search": {"kind": "best-of-n", "n": 2}, "policy": {"stop": []}},
        ],
        **more,
    }
    job = Run(parse(table, folder / "spec.toml"), Store(folder / "run", table))
    anyio.run(job.carry_out)
    return job


def test_every_verifier_of_specs_is_here():
    union = get_args(get_args(specs.AnyVerifier)[0])
    kinds = {one.model_fields["kind"].default for one in union}
    assert kinds == VERIFIERS.keys() | ASK_NO_MODEL


@pytest.mark.parametrize("kind", VERIFIERS)
def test_no_request_of_a_search_holds_the_target(folder, kind):
    job = searched(folder, {"kind": kind, **VERIFIERS[kind]})
    assert job.failed == []
    assert {result.target for result in job.store.results.values()} == {TARGET}
    assert LOG
    assert not [request for request in LOG if TARGET in repr(request)]
    for tree in (folder / "run" / "trees").rglob("*.json"):
        assert TARGET not in tree.read_text()
    assert TARGET not in (folder / "run" / "journal.jsonl").read_text()


@pytest.mark.parametrize("oracle", [False, True])
def test_only_an_oracle_sees_it(folder, oracle):
    searched(folder, {"kind": "test_separation:Leaky"}, oracle=oracle)
    assert any("Is it" in request.asked for request in LOG)
    assert any(TARGET in repr(request) for request in LOG) is oracle
