"""The commands: run a spec, solve one question, list the models."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from branchwise.core.errors import BackendError, BranchwiseError, SearchFailed, SpecError
from branchwise.core.tree import to_json
from branchwise.core.types import Json
from branchwise.verifiers.aggregate import How

if TYPE_CHECKING:
    from branchwise.learning.labels import Labels
    from branchwise.runs.runner import Run

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
    from branchwise.runs.lock import locked  # noqa: PLC0415  (so `--help` is instant)
    from branchwise.runs.runner import Run  # noqa: PLC0415
    from branchwise.runs.spec import parse, read  # noqa: PLC0415
    from branchwise.runs.store import Store  # noqa: PLC0415

    table = read(spec, set_)
    what = parse(table, spec)
    what.data.tasks()  # a fault in the data shows before a directory is made
    folder = out or Path("runs") / spec.stem
    with locked(folder):
        return _carried_out(Run(what, Store(folder, table, spec)))


def _carried_out(job: Run) -> int:
    """A run with its progress and its table; the exit status."""
    from branchwise.runs.progress import Progress, show  # noqa: PLC0415  (as in `run`)
    from branchwise.runs.report import markdown  # noqa: PLC0415  (likewise)

    console = Console(stderr=False)
    what, folder = job.spec, job.store.folder
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
def label(
    run: Path,
    *,
    out: Path,
    how: Literal["rollouts", "match", "outcome"] = "rollouts",
    rollouts: Annotated[int, Parameter(validator=Number(gte=1))] = 8,
    answers: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    separator: str = "\\n\\n",
    strategy: str | None = None,
    limit: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    seed: int = 0,
) -> int:
    """Label the steps of a run's answers, to train a verifier on them.

    The same command again goes on where the last one stopped.

    Args:
        run: the directory of a run over problems with known answers.
        out: the directory of the labels.
        how: rollouts (Monte-Carlo continuations from each step), match (steps that come to the
            intermediate results of right answers) or outcome (only the answer is labelled).
        rollouts: continuations from each step.
        answers: of each problem at most, right and wrong in turn; for rollouts 4 where none is
            given, else all.
        separator: what ends a step; backslash n is a line's end.
        strategy: whose answers; the first strategy's where none is given.
        limit: problems at most.
        seed: of the continuations.
    """
    from branchwise.runs.label import Labelling, Recipe, told  # noqa: PLC0415  (as in `run`)
    from branchwise.runs.lock import locked  # noqa: PLC0415  (likewise)
    from branchwise.runs.progress import Bar  # noqa: PLC0415  (likewise)

    console = Console()
    most = 4 if answers is None and how == "rollouts" else answers
    recipe = Recipe(how, rollouts, most, separator.replace("\\n", "\n"), seed)
    job = Labelling(run, out, recipe, strategy, limit)
    try:
        with locked(out), Bar("problems labelled", console) as job.watch:
            rows = anyio.run(job.carry_out)
    except KeyboardInterrupt:
        _say(f"\nstopped; {len(job.rows)} answers are labelled in {out}")
        _say(f"go on with: branchwise {' '.join(sys.argv[1:])}")
        return INTERRUPTED
    for line in told(rows, job.ungraded):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"labels: {out}", highlight=False, soft_wrap=True)
    return 0


@app.command
def train_verifier(
    labels: tuple[Path, ...],
    *,
    out: Path,
    tune: Literal["head", "lora"] = "head",
    search: bool = False,
    set_: Annotated[tuple[str, ...], Parameter(name="--set")] = (),
) -> int:
    """Train a verifier on labels: how probable it is, after a step, that the answer comes right.

    The same command again goes on where the last one stopped.

    Args:
        labels: directories that `branchwise label` has written.
        out: the directory of the head, or of the tuned model.
        tune: what learns: a value head alone, on states that are computed once and kept beside the
            labels; or with it the model, by LoRA.
        search: for a head, look for the best l2 and hidden by cross-validation over the training
            problems.
        set_: a change of how it is trained, such as hidden=64, label=soft or model.dtype=float32;
            may be given several times.
    """
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415  (as in `run`)

    from branchwise.learning.grid import searched  # noqa: PLC0415  (likewise)
    from branchwise.learning.job import data_of, learn, summary  # noqa: PLC0415  (likewise)
    from branchwise.learning.labels import read, together  # noqa: PLC0415  (likewise)
    from branchwise.learning.train import Training  # noqa: PLC0415  (likewise)
    from branchwise.runs.progress import Bar  # noqa: PLC0415  (likewise)
    from branchwise.runs.saved import apart  # noqa: PLC0415  (likewise)
    from branchwise.runs.spec import (  # noqa: PLC0415  (likewise)
        HF,
        AnyModel,
        OpenAI,
        change,
        explain,
    )

    apart(out)
    several = [read(folder) for folder in labels]
    whole = together(several)
    table: dict[str, Json] = {"model": whole.model}
    change(table, set_)
    try:
        model = TypeAdapter[Any](AnyModel).validate_python(table.pop("model"))
    except ValidationError as error:
        raise SpecError(explain(error, HF, OpenAI, below="model")) from error
    if tune == "lora":
        if search:
            raise SpecError("--search looks for a head's fields", hint="leave it out")
        return _tuned(whole, model, table, out)
    try:
        how = Training.model_validate(table)
    except ValidationError as error:
        raise SpecError(explain(error, Training)) from error
    console = Console()
    try:
        with Bar("answers read", console) as bar:
            data, about = anyio.run(data_of, several, model, how, bar)
        if search:
            with Bar("trainings of the search", console) as bar:
                how = searched(data, how, bar)
        with Bar("epochs", console) as bar:
            learnt = learn(data, about, how, out, lambda epoch: bar(epoch.number, how.epochs))
    except KeyboardInterrupt:
        _say("\nstopped; the states that were read are kept")
        _say(f"go on with: branchwise {' '.join(sys.argv[1:])}")
        return INTERRUPTED
    for line in summary(learnt):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"head and report: {out}", highlight=False, soft_wrap=True)
    return 0


@app.command
def rescore(
    run: Path,
    *,
    of: str | None = None,
    aggregate: How | None = None,
    pick: str | None = None,
    set_: Annotated[tuple[str, ...], Parameter(name="--set")] = (),
    strategy: tuple[str, ...] = (),
    at: str = "",
) -> int:
    """Choose again among the answers of a run, from the verdicts it keeps: no model is asked.

    Nothing of the run changes; the table is also written into its directory.

    Args:
        run: the directory of a run.
        of: the verifier whose verdicts become the scores; the only one where none is named.
        aggregate: how the scores of the steps become one; its own word on each answer without it.
        pick: what chooses: best, vote, weighted-vote, mbr, cluster or dual-agreement; the search's
            own pick without it.
        set_: a field of the pick, such as weight=exp; may be given several times.
        strategy: only this one; may be given several times.
        at: also for these numbers of samples, such as 1,2,4,8.
    """
    from branchwise.runs.rescore import choice, rescore_run  # noqa: PLC0415  (as in `run`)
    from branchwise.runs.saved import Saved, filed  # noqa: PLC0415  (likewise)
    from branchwise.runs.spec import change  # noqa: PLC0415  (likewise)

    fields: dict[str, Json] = {}
    change(fields, set_)
    chosen = choice(of, aggregate, pick, fields)
    done = anyio.run(rescore_run, Saved.read(run), chosen, strategy, _numbers(at))
    console = Console()
    for sheet in done.sheets:
        sheet.show(console)
    page = run / f"rescored-{filed(done.what)}.md"
    _write(page, "\n".join(sheet.markdown for sheet in done.sheets))
    console.print(f"kept in {page}", highlight=False, soft_wrap=True)
    return 0


@app.command(name="eval-verifier")
def eval_verifier(
    run: Path,
    *,
    of: str | None = None,
    aggregate: How | None = None,
    strategy: tuple[str, ...] = (),
    labels: Path | None = None,
    seed: int = 0,
) -> int:
    """Measure how good a verifier is on the answers of a run: no model is asked.

    The numbers are also written into the run's directory, as Markdown and as JSON, with a plot of
    the calibration where scores are probabilities.

    Args:
        run: the directory of a run over problems with known answers.
        of: the verifier; the only one where none is named.
        aggregate: only this way of making one score of the steps' scores; all without it.
        strategy: only this one; may be given several times.
        labels: a directory with labels of steps, as `branchwise label` writes them.
        seed: of the intervals, and of the half of the problems that a threshold is chosen on.
    """
    from functools import partial  # noqa: PLC0415  (as in `run`)

    from branchwise.runs.evaluate import evaluate  # noqa: PLC0415  (likewise)
    from branchwise.runs.saved import Saved  # noqa: PLC0415  (likewise)

    asked = partial(evaluate, names=strategy, how=aggregate, labels=labels, seed=seed)
    found = anyio.run(asked, Saved.read(run), of)
    console = Console()
    for sheet in found.sheets:
        sheet.show(console)
    files = ", ".join(map(str, found.write(run)))
    console.print(f"kept in {files}", highlight=False, soft_wrap=True)
    return 0


def _tuned(labels: Labels, model: object, table: dict[str, Json], out: Path) -> int:
    """Tune a model on labels."""
    from pydantic import ValidationError  # noqa: PLC0415  (as in `run`)

    from branchwise.backends.hf import HF  # noqa: PLC0415  (likewise)
    from branchwise.learning.job import summary  # noqa: PLC0415  (likewise)
    from branchwise.learning.lora import LoRA, Progress, tune  # noqa: PLC0415  (likewise)
    from branchwise.runs.progress import Bar  # noqa: PLC0415  (likewise)
    from branchwise.runs.spec import explain  # noqa: PLC0415  (likewise)

    if not isinstance(model, HF):
        raise SpecError("only a model on this machine can be tuned", hint="model.kind=hf")
    try:
        how = LoRA.model_validate(table)
    except ValidationError as error:
        raise SpecError(explain(error, LoRA)) from error
    console = Console()
    bar = Bar("updates", console)

    def watch(progress: Progress) -> None:
        held_out = "".join(f", {loss:.3f}" for loss in progress.held_out)
        bar.what = f"updates, loss {progress.loss:.3f}" + (held_out and f"; held out{held_out[1:]}")
        bar(progress.update, progress.updates)

    try:
        with bar:
            tuned = tune(labels, model, how, out, watch)
    except KeyboardInterrupt:
        _say(f"\nstopped; what was learned is kept in {out}")
        _say(f"go on with: branchwise {' '.join(sys.argv[1:])}")
        return INTERRUPTED
    if tuned.left_out:
        _say(f"{tuned.left_out} answers of more than {how.longest} tokens were left out")
    for line in summary(tuned):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"model, format and report: {out}", highlight=False, soft_wrap=True)
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


def _numbers(text: str) -> list[int]:
    """Numbers of samples, separated by commas."""
    words = [word.strip() for word in text.split(",")] if text else []
    for word in words:
        if not word.isdecimal() or not int(word):
            raise SpecError(f"--at {text}: {word!r} is no number of samples; as in --at 1,2,4")
    return [int(word) for word in words]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"cannot write {path}: {error.strerror}") from error


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
