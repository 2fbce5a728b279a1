"""The commands: run a spec, solve one question, list the models."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.table import Table

from branchwise.core.errors import BackendError, BranchwiseError, SearchFailed, SpecError
from branchwise.core.tree import to_json
from branchwise.core.types import Json

WRONG_INPUT = 2
FAILED = 1
INTERRUPTED = 130
BRIEF = 40
"""So many characters of an answer stand where answers are listed."""

app = App(name="branchwise", help="Inference-time search over language models.")


@app.command
def run(
    spec: Path,
    *,
    set_: Annotated[tuple[str, ...], Parameter(name="--set")] = (),
    out: Path | None = None,
) -> int:
    """Search for the answers to a set of problems with one or more strategies, and compare.

    What is done is kept in a directory as soon as it is done. The same command again goes on where
    the last one stopped.

    Args:
        spec: a TOML file.
        set_: a change of the spec, such as data.limit=20; may be given several times.
        out: the directory of the run; `runs/` and the spec's name where none is given.
    """
    from branchwise.runs.progress import Progress, show  # noqa: PLC0415  (so `--help` is instant)
    from branchwise.runs.report import markdown  # noqa: PLC0415
    from branchwise.runs.runner import Run  # noqa: PLC0415
    from branchwise.runs.spec import parse, read  # noqa: PLC0415
    from branchwise.runs.store import Store  # noqa: PLC0415

    console = Console(stderr=False)
    table = read(spec, set_)
    what = parse(table, spec)
    what.data.tasks()  # a fault in the data shows before a directory is made
    folder = out or Path("runs") / spec.stem
    job = Run(what, Store(folder, table))
    try:
        with Progress(console) as job.watch:
            rows = anyio.run(job.carry_out)
    except KeyboardInterrupt:
        _say(f"\nstopped; {len(job.store.results)} results are kept in {folder}")
        _say(f"go on with: branchwise {' '.join(sys.argv[1:])}")
        return INTERRUPTED
    except SearchFailed as error:
        _say(f"error: {error}")
        _say(f"{len(job.store.results)} results are kept in {folder}; the same command goes on")
        return FAILED
    model = getattr(what.model, "model", type(what.model).__name__)  # a user's own may have none
    title = f"{what.name}: {model}" + (" (oracle)" if what.oracle else "")
    show(rows, title, console)
    (folder / "report.md").write_text(f"# {title}\n\n{markdown(rows)}", encoding="utf-8")
    console.print(f"trees and results: {folder}", highlight=False, soft_wrap=True)
    if job.failed:
        strategy, problem, why = job.failed[0]
        _say(f"{len(job.failed)} searches failed, such as {strategy} on problem {problem}: {why}")
        _say("the same command tries them again")
        return FAILED
    return 0


@app.command
def solve(
    question: str,
    *,
    model: str = "qwen2.5-coder-0.5b-instruct",
    search: str = "best-of-n",
    set_: Annotated[tuple[str, ...], Parameter(name="--set")] = (),
    tree: Path | None = None,
) -> int:
    """Search for the answer to one question.

    Args:
        question: what is asked.
        model: a model's name, a hub's owner/model or a path; `branchwise models` lists names.
        search: the `kind` of the controller, such as best-of-n, beam or mcts.
        set_: a change of the spec, such as strategy.search.n=16 or model.kind=openai.
        tree: a file for the whole tree.
    """
    from branchwise.runs.progress import Progress  # noqa: PLC0415  (so `--help` is instant)
    from branchwise.runs.runner import ask  # noqa: PLC0415
    from branchwise.runs.spec import change  # noqa: PLC0415
    from branchwise.runs.spec import question as asked  # noqa: PLC0415

    table = _defaults(model, search)
    change(table, set_)
    parts = asked(table)
    try:
        answer = anyio.run(ask, question, parts, Progress(Console(quiet=True)))
    except KeyboardInterrupt:
        return INTERRUPTED
    if tree is not None:
        try:
            tree.write_text(to_json(answer.root), encoding="utf-8")
        except OSError as error:
            raise SpecError(f"--tree {tree}: {error.strerror}") from error
    console = Console()
    console.print(answer.text.strip(), highlight=False, markup=False, soft_wrap=True)
    said = answer.value or ""
    shown = f"answer:\n{said}" if "\n" in said else f"answer: {answer.value}"
    console.print(f"\n{shown}", style="bold", highlight=False, markup=False, soft_wrap=True)
    if told := answer.node.state.observation:  # such as what became of the tests of a program
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    votes: dict[str | None, int] = {}
    for leaf in answer.root.leaves():
        if leaf.finished:
            votes[leaf.state.answer] = votes.get(leaf.state.answer, 0) + 1
    ranked = sorted(votes.items(), key=lambda vote: -vote[1])
    said = ", ".join(f"{_brief(value)} ({n})" for value, n in ranked)
    console.print(
        f"finished branches: {said or 'none'}; {answer.usage.completion:,} tokens in "
        f"{answer.usage.calls} calls, {answer.seconds:.1f} s, {answer.stopped}",
        style="dim",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return 0


@app.command
def models() -> int:
    """List the models that are known by name."""
    from branchwise.backends.models import catalogue  # noqa: PLC0415  (so `--help` is instant)

    table = Table()
    for heading in ("name", "what", "download", "licence", "here"):
        table.add_column(heading, overflow="fold")
    for model in catalogue():
        size = f"{model.size / 1e6:,.0f} MB"
        table.add_row(model.name, model.what, size, model.licence, "yes" if model.cached else "no")
    Console().print(table)
    return 0


def _defaults(model: str, search: str) -> dict[str, Json]:
    """The question's spec: what suits a small model and this search."""
    from branchwise.runs.spec import controllers  # noqa: PLC0415  (so `--help` is instant)

    known = controllers().get(search)  # an unknown one is refused when the spec is read
    structure = "parallel" if known is None else known.card.structure
    controller: dict[str, Json] = {"kind": search}
    if known is not None and "pick" in known.model_fields:
        controller["pick"] = {"kind": "vote"}
    if search == "mcts":
        controller["rollout"] = 12  # without one, few branches come to an end
    policy: dict[str, Json] = {
        "template": "{prompt}\n\nThink step by step. Keep each step short. "
        "End with: The answer is N.",
        "max_tokens": 400,
        "sampling": {"temperature": 0.7 if search != "rollout" else 0.0},
        "stop": ["\n"] if structure == "step" or search == "speculative-rejection" else [],
    }
    strategy: dict[str, Json] = {"name": search, "search": controller}
    verifier: dict[str, Json] = {"kind": "likelihood"}
    world: dict[str, Json] = {"kind": "math"}
    if structure == "token":
        policy |= {"kind": "next-token", "sampling": {}}
        strategy["horizon"] = 400
        verifier["alpha"] = 0.0
        world["continue_at_length"] = True
    if search == "ab-mcts":
        policy["kind"] = "reviser"  # which answers where there is nothing to revise
    elif structure == "refinement":
        strategy["policies"] = {"revise": {"kind": "reviser"}}
    if search == "transform":
        strategy["policies"] = {"transform": {"kind": "chooser"}}
    return {
        "model": {"kind": "hf", "model": model},
        "environment": world,
        "verifier": verifier,
        "policy": policy,
        "strategy": strategy,
    }


def _brief(answer: str | None) -> str:
    """An answer in a line: of a program or a long text the beginning."""
    if answer is None:
        return "no answer"
    line, _, rest = answer.strip().partition("\n")
    return line if len(line) <= BRIEF and not rest else f"{line[:BRIEF].rstrip()} ..."


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201  (what goes beside the results)


def main(arguments: Sequence[str] | None = None) -> None:
    """The `branchwise` command: faults of the input are one line and exit status 2."""
    try:
        status = app(arguments, exit_on_error=False, print_error=False)
    except (SpecError, BackendError, CycloptsError) as error:  # no model: a fault of the spec
        _say(f"error: {' '.join(str(error).split())}")
        status = WRONG_INPUT
    except BranchwiseError as error:
        _say(f"error: {error}")
        status = FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = FAILED
    sys.exit(status)


if __name__ == "__main__":
    main()
