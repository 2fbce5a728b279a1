"""A run made by hand: what is answered, what a verifier says of each step, and what comes of it."""

import json
import re
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from branchwise import Config, Scripted, Verdict, VerifierError
from branchwise.cli import main
from branchwise.runs.runner import Run
from branchwise.runs.spec import parse, read
from branchwise.runs.store import Store

# Of each problem four answers, each with the scores of its two steps; 1 is right.
SAID = [
    [("1", 0.9, 0.8), ("2", 0.95, 0.3), ("2", 0.6, 0.6), ("3", 0.5, 0.1)],
    [("2", 0.9, 0.2), ("1", 0.7, 0.6), ("1", 0.4, 0.5), ("2", 0.3, 0.3)],
    [("1", 0.9, 0.9), ("2", 0.6, 0.1), ("2", 0.6, 0.1), ("2", 0.7, 0.1)],
    [("2", 0.9, 0.9), ("2", 0.8, 0.8), (None, 0.2, 0.2), ("3", 0.1, 0.1)],
]


def steps(place, number):
    """The texts of an answer's steps."""
    answer, first, second = SAID[place][number]
    end = "I give up." if answer is None else f"The answer is {answer}."
    return [f"[{first}] First, try {number}.\n\n", f"[{second}] {end}"]


class Replies(Config):
    """Gives the answers above, one after another."""

    model: str = "replies"

    @asynccontextmanager
    async def open(self):
        given = Counter()

        def reply(request, seed):
            place = int(re.search(r"\d+", request.asked)[0])
            given[place] += 1
            return "".join(steps(place, given[place] - 1))

        yield Scripted(reply, name="replies")


class Stepwise(Config):
    """Reads what it thinks of each step out of the text; its own word is the highest."""

    minus: float = 0.0

    async def score(self, nodes):
        found = [[float(x) - self.minus for x in re.findall(r"\[(.*?)\]", v.text)] for v in nodes]
        return [Verdict(max(own), steps=tuple(own)) for own in found]


class Unsure(Config):
    """A grader without an opinion of the answer 2."""

    async def score(self, nodes):
        return [
            VerifierError("who knows")
            if node.state.answer == "2"
            else Verdict(float(node.state.answer == node.task.target))
            for node in nodes
        ]


class Asker(Config):
    """A grader that would need a model."""

    backend: object

    async def score(self, nodes):
        return [Verdict(1.0) for _ in nodes]


SPEC = """
[model]
kind = "stepwise:Replies"

[data]
path = "problems.jsonl"

[grader]
kind = "exact"

[[strategies]]
name = "best of 4"
search = { kind = "best-of-n", n = 4 }
verifier = { prm = { kind = "stepwise:Stepwise" } }
"""
UNJUDGED = """
[[strategies]]
name = "one"
search = { kind = "rollout" }
"""
TWO = """
[[strategies]]
name = "two judges"
search = { kind = "best-of-n", n = 3 }
verifier = { prm = { kind = "stepwise:Stepwise" }, low = { kind = "stepwise:Stepwise", minus = 2 } }
"""


def made(folder, spec=SPEC):
    """The run of a spec, in `run` of the folder."""
    rows = [{"question": f"Problem {place}?", "answer": "1"} for place in range(len(SAID))]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "spec.toml").write_text(spec)
    table = read(folder / "spec.toml")
    job = Run(parse(table, folder / "spec.toml"), Store(folder / "run", table))
    anyio.run(job.carry_out)
    assert job.failed == []
    return folder / "run"


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(one) for one in arguments])
    out, err = capsys.readouterr()
    return exit_.value.code, out, err


def rows(page, title=""):
    """The tables of a page as lists of cells, those below a title that begins so."""
    text = Path(page).read_text()
    part = text[text.index(f"## {title}") :].split("\n## ")[0]
    return [
        [cell.strip() for cell in line[2:-2].split(" | ")]
        for line in part.splitlines()
        if line.startswith("| ") and "---" not in line
    ][1:]
