"""Carry out a run: every problem with every strategy, many at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeGuard, TypeVar, cast, runtime_checkable

import anyio
from anyio import to_thread

from branchwise.backends.journal import Journal
from branchwise.core.aio import gather
from branchwise.core.config import Config
from branchwise.core.errors import (
    BackendError,
    SearchFailed,
    SpecError,
    VerifierError,
    WorldError,
)
from branchwise.core.node import Node
from branchwise.core.types import Backend, Environment, Scoring, Task, Verifier
from branchwise.runs.report import Row, table
from branchwise.runs.spec import MODELS, UNOPENED, Parts, Question, Spec, Strategy
from branchwise.runs.store import Grade, Result, Store
from branchwise.sandbox.command import Check
from branchwise.solve import Answer, solve
from branchwise.verifiers.member import Holding

OUTAGE = 5
"""So many searches in a row that fail from the start are an outage of the whole run."""

P = TypeVar("P")


class Observer(Protocol):
    """Told what a run does, as it does it."""

    def began(self, strategies: Sequence[str], problems: int, kept: Sequence[Result]) -> None:
        """The run begins; `kept` is what an earlier one has done."""
        ...

    def grew(self, strategy: str, nodes: Sequence[Node]) -> None:
        """A search has grown nodes."""
        ...

    def finished(self, result: Result) -> None:
        """A search has ended."""
        ...


class Unobserved:
    """An observer that looks away."""

    def began(self, strategies: Sequence[str], problems: int, kept: Sequence[Result]) -> None:
        """Nothing."""

    def grew(self, strategy: str, nodes: Sequence[Node]) -> None:
        """Nothing."""

    def finished(self, result: Result) -> None:
        """Nothing."""


@runtime_checkable
class Openable(Protocol):
    """A part with resources: `async with part.open() as live`."""

    def open(self) -> AsyncExitStack:
        """The context of the live part."""
        ...


async def _live(part: object, stack: AsyncExitStack) -> object:
    """The part itself, or what it opens."""
    return await stack.enter_async_context(part.open()) if isinstance(part, Openable) else part


class _Supplies:
    """What the parts of a run share: its models, and a sandbox, opened where one is asked for.

    Args:
        model: the run's: its spec, live, and behind the journal.
        sandbox: the sandbox's spec.
        journal: the file of the run's journal; a verifier's own model has one beside it.
        stack: closes what was opened.
    """

    def __init__(
        self,
        model: tuple[object, object, Backend],
        sandbox: object,
        journal: Path | None,
        stack: AsyncExitStack,
    ) -> None:
        self._models: list[tuple[object, object, Backend]] = [(UNOPENED, *model[1:]), model]
        self._sandbox, self._journal, self._stack = sandbox, journal, stack
        self._is_open = False

    async def live(self, part: object) -> object:
        """The part at work, with what it needs in hand.

        Raises:
            SpecError: something that it needs cannot be had.
        """
        if isinstance(part, Holding):
            part = part.around([cast("Verifier", await self.live(one)) for one in part.inner])
        if _asks_for(part, "sandbox"):
            if not self._is_open:
                self._sandbox, self._is_open = await _live(self._sandbox, self._stack), True
            part = part.model_copy(update={"sandbox": self._sandbox})
            if isinstance(part, Check):
                await _there(part)
        if _asks_for(part, "backend"):
            model, backend = await self._model(cast("object", getattr(part, "backend", UNOPENED)))
            reads = bool(getattr(part, "reads", False))
            if reads and not isinstance(model, Scoring):
                raise SpecError(
                    f"verifier: {part.kind} needs a model that reads, "  # pyright: ignore[reportAttributeAccessIssue]  (parts have kinds)
                    f"and {backend.name!r} only writes",
                    hint="the local engine reads: model.kind = hf",
                )
            # What is read is not in the journal, and needs not be: it comes out the same again.
            asked = model if reads else backend
            part = part.model_copy(update={"backend": asked})
        for name in MODELS:
            spec = getattr(part, name, None)
            if isinstance(part, Config) and isinstance(spec, Openable):
                part = part.model_copy(update={name: (await self._model(spec))[0]})
        return await _live(part, self._stack)

    async def _model(self, spec: object) -> tuple[object, Backend]:
        """The live model of a spec, and what records it; each is opened once."""
        for known, model, backend in self._models:
            if known is spec or known == spec:
                return model, backend
        model = await _live(spec, self._stack)
        backend = await _recorded(model, self._journal, f"-{len(self._models) - 1}")
        self._models.append((spec, model, backend))
        return model, backend


async def _recorded(model: object, journal: Path | None, more: str = "") -> Backend:
    backend = cast("Backend", model)
    if journal is None:
        return backend
    file = journal.with_stem(journal.stem + more)
    return await to_thread.run_sync(Journal, file, backend)


async def _there(part: Check) -> None:
    """Look up the program of a command where it will run.

    Raises:
        SpecError: it is not there.
    """
    program = part.command[0]
    if program == "python" or "{file}" in program:
        return  # the sandbox's own interpreter, or what the model writes
    look = "import shutil, sys; sys.exit(shutil.which(sys.argv[1]) is None)"
    ran = await part.sandbox.run({}, ["python", "-c", look, program], part.limits)
    if ran.status == "exited" and ran.code == 1:
        raise SpecError(
            f"command: there is no {program!r} in the sandbox",
            hint="install it where the sandbox sees it, such as under /usr",
        )


def _asks_for(part: object, supply: str) -> TypeGuard[Config]:
    return isinstance(part, Config) and supply in type(part).model_fields


@dataclass(frozen=True)
class Ready:
    """The parts of a run, opened."""

    backend: Backend
    environment: Environment
    verifiers: Sequence[tuple[object, Verifier]]
    grader: Verifier | None = None

    def live(self, specs: Mapping[str, object]) -> dict[str, Verifier]:
        """The live verifiers of these specs, under the same names."""
        return {
            name: live
            for name, spec in specs.items()
            for known, live in self.verifiers
            if known == spec
        }


@asynccontextmanager
async def opened(
    parts: Parts,
    strategies: Sequence[Strategy],
    journal: Path | None = None,
    grader: object = None,
) -> AsyncGenerator[Ready]:
    """Open the model, the world, the verifiers and the grader; close them with the block."""
    async with AsyncExitStack() as stack:
        model = await _live(parts.model, stack)
        backend = await _recorded(model, journal)
        supplies = _Supplies((parts.model, model, backend), parts.sandbox, journal, stack)
        verifiers: list[tuple[object, Verifier]] = []
        for specs in (parts.verifier, *(strategy.verifier or {} for strategy in strategies)):
            for spec in specs.values():
                if all(spec != known for known, _ in verifiers):
                    verifiers.append((spec, cast("Verifier", await supplies.live(spec))))
        world = cast("Environment", await supplies.live(parts.environment))
        judge = cast("Verifier | None", await supplies.live(grader))
        yield Ready(backend, world, verifiers, judge)


@asynccontextmanager
async def grading(spec: Spec) -> AsyncGenerator[Verifier]:
    """Open a run's grader alone: no model is asked."""
    async with AsyncExitStack() as stack:
        supplies = _Supplies((UNOPENED, UNOPENED, UNOPENED), spec.sandbox, None, stack)
        yield cast("Verifier", await supplies.live(spec.grader))


async def search(
    task: Task, parts: Parts, strategy: Strategy, ready: Ready, watch: Observer, *, oracle: bool
) -> Answer:
    """One problem with one strategy."""
    return await solve(
        task,
        policy=parts.policies_of(strategy, ready.backend),
        controller=strategy.search,
        environment=ready.environment,
        verifier=ready.live(parts.verifier if strategy.verifier is None else strategy.verifier),
        rank=strategy.rank,
        budget=strategy.budget or parts.budget,
        seed=parts.seed,
        horizon=strategy.horizon,
        oracle=oracle,
        unique=strategy.unique,
        watch=lambda nodes: watch.grew(strategy.name, nodes),
    )


async def ask(question: str, parts: Question, watch: Observer) -> Answer:
    """Search for the answer to one question."""
    async with opened(parts, [parts.strategy]) as ready:
        return await search(Task(question), parts, parts.strategy, ready, watch, oracle=False)


@dataclass
class Run:
    """A run in a directory; what the directory holds already is not done again.

    Args:
        spec: what to do.
        store: where to.
        watch: who looks on.

    Attributes:
        failed: what could not be searched at all, with the reason; a further run tries it again.
    """

    spec: Spec
    store: Store
    watch: Observer = field(default_factory=Unobserved)
    failed: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    writer: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))

    async def carry_out(self) -> list[Row]:
        """Do what is left to do, and report on everything.

        Raises:
            SearchFailed: the model is out of reach: what has been done is kept.
            SpecError: a part cannot be opened, or the directory cannot be written.
        """
        spec = self.spec
        tasks = spec.data.tasks()
        jobs = [
            (task, strategy)
            for task in tasks
            for strategy in spec.strategies
            if (strategy.name, str(task.meta["id"])) not in self.store.results
        ]
        names = [strategy.name for strategy in spec.strategies]
        self.watch.began(names, len(tasks), list(self.store.results.values()))
        if jobs:
            journal = self.store.journal
            async with opened(spec, spec.strategies, journal, spec.grader) as ready:
                await self._begin(tasks, ready.environment)
                await self._work(jobs, ready)
        wanted = {str(task.meta["id"]) for task in tasks}
        return table(names, [r for r in self.store.results.values() if r.problem in wanted])

    async def _begin(self, tasks: Sequence[Task], world: Environment) -> None:
        """Find out before anything is spent whether each problem can begin.

        Only in worlds that are functions and nothing else; in others a beginning costs a session.

        Raises:
            SpecError: one cannot.
        """
        for task in tasks if isinstance(world, Config) else ():
            try:
                await world.reset(task if self.spec.oracle else task.hidden())
            except SpecError as error:
                name = f"problem {task.meta['id']}"
                raise SpecError(f"{name}: {error.message}", hint=error.hint) from error

    async def _work(self, jobs: list[tuple[Task, Strategy]], ready: Ready) -> None:
        left = iter(jobs)
        outage: list[SearchFailed | WorldError] = []
        workers = range(min(self.spec.concurrency, len(jobs)))
        await gather(lambda _: self._worker(left, ready, outage), workers)
        if self._is_outage(outage):
            raise SearchFailed(f"the run stopped: {outage[-1].message}", hint=outage[-1].hint)

    async def _worker(
        self,
        left: Iterator[tuple[Task, Strategy]],
        ready: Ready,
        outage: list[SearchFailed | WorldError],
    ) -> None:
        for task, strategy in left:
            if self._is_outage(outage):
                return
            problem = str(task.meta["id"])
            try:
                answer = await search(
                    task, self.spec, strategy, ready, self.watch, oracle=self.spec.oracle
                )
                if answer.error is not None:  # half a tree is no result; the journal keeps it
                    raise answer.error
            except (SearchFailed, WorldError) as error:
                outage.append(error)
                self.failed.append((strategy.name, problem, str(error)))
                continue
            outage.clear()
            grade, why = await graded(task, answer.node, ready.grader)
            result = Result(
                strategy.name,
                problem,
                answer.value,
                task.target,
                grade,
                why,
                answer.stopped,
                answer.usage,
                f"trees/{_file(strategy.name)}/{_file(problem)}.json",
            )
            # In a thread, one at a time, and to its end: a result that is there gets written.
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(self.store.save, result, answer.root, limiter=self.writer)
            self.watch.finished(result)

    def _is_outage(self, outage: Sequence[SearchFailed | WorldError]) -> bool:
        return len(outage) >= OUTAGE or any(
            isinstance(error.__cause__, BackendError) and error.__cause__.fatal for error in outage
        )


async def graded(task: Task, node: Node, grader: Verifier | None) -> tuple[Grade, str]:
    """What the grader says of an answer; only it gets to see the target."""
    if grader is None:
        return "ungraded", "no grader"
    if node.state.answer is None:
        return "wrong", "no answer"
    try:
        (verdict,) = await grader.score([node.asked(task)])
    except VerifierError as error:
        verdict = error
    if isinstance(verdict, VerifierError):  # some graders know without a target
        return "ungraded", "no target" if task.target is None else verdict.message
    return ("right" if verdict.score > 0.5 else "wrong"), verdict.detail  # noqa: PLR2004


def _file(name: str) -> str:
    """A name as a file's name, without a way out of the directory."""
    return "".join(c if c.isalnum() or c in "-_.+" else "_" for c in name).strip(".") or "_"
