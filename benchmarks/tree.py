"""A tree search with recorded scores: tokens forwarded over those needed, and the time it takes.

    python benchmarks/tree.py [--model NAME] [--dtype bfloat16] [--quick]

4 problems of 128 tokens, each a REBASE search of 16 rows and 8 steps of 8 to 32 tokens. Scores and
lengths are drawn beforehand, so that everyone grows the same tree of widths; the tokens are each
side's own. The problems are searched concurrently; a step of one begins when the one before it is
there. `generate` is asked once for the step of all problems.

Forwarded are the tokens of prompts that no cache held, and those of samples but the last of each.
Needed are the tokens of the trie of all texts. The limit reads the weights once for each token of
the longest path, or computes what is needed, its attention left out.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import anyio
from dashboard import Line, Setting, Spread, Timed, compare, main
from gate import gate
from libraries import repeated
from material import Prompts, endless
from peers import PEERS, ours
from plan import Grown, chain, needed, plan, sampled
from roofline import Machine, Shape
from side import Absent, Asked, Peer, Tokens
from transformers import AutoConfig

from branchwise.core.aio import gather

PROMPT = 128
LONGEST = 32


class Search:
    """All problems of a round, grown by one side.

    Args:
        peer: who grows them.
        plans: the steps of each problem.
    """

    def __init__(self, peer: Peer, plans: Sequence[Sequence[Sequence[Grown]]]) -> None:
        self._peer = peer
        self._plans = plans

    async def run(self, prompts: Sequence[Tokens]) -> float:
        """Seconds for all of them."""
        started = time.perf_counter()
        problems = list(zip(prompts, self._plans, strict=True))
        if self._peer.together:
            await self._grow(problems)
        else:
            await gather(lambda one: self._grow([one]), problems)
        return time.perf_counter() - started

    async def _grow(self, problems: Sequence[tuple[Tokens, Sequence[Sequence[Grown]]]]) -> None:
        """Grow problems in step with each other."""
        texts: list[list[Tokens]] = [[()] for _ in problems]
        for depth in range(len(problems[0][1])):
            asked = [
                [Asked(prompt, texts[i][one.parent], one.width, one.new) for one in steps[depth]]
                for i, (prompt, steps) in enumerate(problems)
            ]
            said = iter(await self._peer.extend([one for ones in asked for one in ones]))
            texts = [[one.said + sample for one in ones for sample in next(said)] for ones in asked]


async def lines(setting: Setting) -> AsyncIterator[Line]:
    """Time and tokens with each peer."""
    sizes = (2, 4, 3) if setting.quick else (4, 16, 8)
    problems, rows, steps = sizes
    plans = [plan(problem, rows, steps, LONGEST) for problem in range(problems)]
    what = f"{problems} searches of {rows} rows x {steps} steps"
    with endless(setting.model, setting.dtype) as place:
        async with ours(place, setting.dtype, setting.threads) as engine:
            for name, opened in PEERS[setting.dtype].items():
                # With several contexts in a batch a repeated cache has nothing to repeat.
                if opened is repeated or not setting.includes(name):
                    continue
                try:
                    async with opened(place, setting.dtype, setting.threads) as peer:
                        yield await _line(what, setting, place, plans, (name, engine, peer))
                except Absent as absent:
                    yield Line(what, name, notes=str(absent))


async def _line(
    what: str,
    setting: Setting,
    place: Path,
    plans: Sequence[Sequence[Sequence[Grown]]],
    sides: tuple[str, Peer, Peer],
) -> Line:
    name, engine, peer = sides
    prompts = Prompts(place, PROMPT)
    shape = Shape.of(AutoConfig.from_pretrained(place), setting.dtype)
    must = sum(needed(steps, PROMPT) for steps in plans)
    drawn = sum(sampled(steps) for steps in plans)
    spent: dict[Peer, list[float]] = {engine: [], peer: []}

    def run(side: Peer) -> Timed:
        async def search(number: int) -> float:
            before = await side.forwarded()
            taken = await Search(side, plans).run(
                [prompts(number * len(plans) + i) for i in range(len(plans))]
            )
            after = await side.forwarded()
            if before is not None and after is not None:
                spent[side].append((after - before) / must)
            await anyio.sleep(side.busy)
            return taken

        return search

    def least(machine: Machine) -> float:
        return shape.tree(machine, must, drawn, max(chain(steps) for steps in plans))

    line = await compare(setting, what, name, run(engine), run(peer), least=least)
    tokens = [str(Spread.of(spent[side])) if spent[side] else "?" for side in (engine, peer)]
    notes = ("forwarded / needed: " + " and ".join(tokens), line.notes)
    return replace(line, notes="; ".join(filter(None, notes)))


if __name__ == "__main__":
    main(__doc__ or "", lines, gate=gate)
