"""Verifiers that generate: the verdict is how probable the model finds the word "Yes"."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from pydantic import Field

from branchwise.core.config import Sampling
from branchwise.core.errors import VerifierError
from branchwise.core.grow import seeds_of
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import Request, Step, Verdict
from branchwise.verifiers import prompts
from branchwise.verifiers.asked import about, averaged, each
from branchwise.verifiers.chance import Decides


class GenRM(Decides):
    r"""How probable the model finds it that an answer is right, as the next token.

        v(x, y) = p("Yes" | x, y, "Is the answer correct (Yes/No)?")

    The probability is that of temperature 1, summed over the spellings of the word. `normalised`
    divides it by p("Yes") + p("No"); a model that was trained for the question puts next to nothing
    elsewhere, and the two agree. Not normalised is the default: it is the paper's number, and where
    the model says something else altogether the ratio of two accidents is no verdict.

    Source: Zhang et al. 2024 (generative verifiers), §3.1.

    Args:
        backend: the model.
        system: the system's message; none where it is empty.
        chat: whether the model is asked in a chat, or reads plain text that goes on.
        yes: the spellings of the word for a right answer, each a token; they are summed.
        no: those of the word for a wrong one.
        normalised: whether the score is p(yes) / (p(yes) + p(no)) instead of p(yes).
        least: the least probability of all these words together; where they have less, the model
            does not answer the question, and the node has no verdict.
        candidates: how many of the most probable tokens a model is asked for that does not read.
        template: what the model is asked; `{prompt}` and `{answer}` are filled in.

    Example:
        >>> from branchwise import Candidate, Node, Scripted, State, Step, Task, run_sync
        >>> top = (Candidate(1, "Yes", -0.25, None), Candidate(2, "No", -2.0, None))
        >>> model = Scripted(lambda request, seed: Step("Yes", candidates=(top,)))
        >>> root = Node(Task("2 + 2?"), State())
        >>> node = Node(root.task, State(), root, 0, Step("4"))
        >>> run_sync(GenRM(backend=model).score, [node])[0].detail
        'p(Yes) = 0.778801, p(No) = 0.135335'
    """

    kind: Literal["genrm"] = "genrm"
    template: str = Field(default_factory=partial(prompts.template, "genrm"))

    def request(self, node: Node) -> Request:
        """What the model is asked: a pure function of the node."""
        return self._asked(filled(self.template, about(node)))

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where the model says neither word.

        Raises:
            BackendError: no later call can succeed either.
        """
        return await each(lambda node: self._decision(self.request(node)), nodes)


class GenRMCoT(Decides):
    r"""The mean, over several rationales, of how probable the model then finds the answer right.

        v(x, y) = 1/K Σ_k p("Yes" | x, y, z_k),    z_k ~ p(z | x, y, "verify step by step")

    Its variance falls as 1/K. A rationale that is cut, empty or followed by neither word is left
    out; the mean is then that over the others, and `detail` says of how many. What is cut is what
    is long, so the mean of what is left is no longer the paper's: raise `max_tokens` where it
    happens often. Where none is left the node has no verdict. `feedback` is the rationale with the
    lowest probability: what was found wrong is what a refinement can use.

    The seeds of the rationales follow from the node's path.

    Source: Zhang et al. 2024 (generative verifiers), §3.3.

    Args:
        backend: the model.
        system: the system's message; none where it is empty.
        chat: whether the model is asked in a chat, or reads plain text that goes on.
        yes: the spellings of the word for a right answer, each a token; they are summed.
        no: those of the word for a wrong one.
        normalised: whether the score is p(yes) / (p(yes) + p(no)) instead of p(yes).
        least: the least probability of all these words together; where they have less, the model
            does not answer the question, and the rationale is left out.
        candidates: how many of the most probable tokens a model is asked for that does not read.
        samples: K, how many rationales.
        template: asks for a rationale; `{prompt}` and `{answer}` are filled in.
        verdict: asks for the word, after the rationale; the same are filled in.
        sampling: how rationales are drawn; at temperature 0 they are all the same.
        max_tokens: the most tokens of a rationale.
        stop: strings that end a rationale.

    Example:
        >>> from branchwise import Candidate, Node, Scripted, State, Step, Task, run_sync
        >>> def judge(request, seed):
        ...     if request.candidates:
        ...         return Step("Yes", candidates=((Candidate(1, "Yes", -0.5, None),),))
        ...     return "2 + 2 is 4, as it says."
        >>> root = Node(Task("2 + 2?"), State())
        >>> node = Node(root.task, State(), root, 0, Step("4"))
        >>> [verdict] = run_sync(GenRMCoT(backend=Scripted(judge), samples=2).score, [node])
        >>> verdict.detail, verdict.feedback
        ('mean of 2: 0.6065, 0.6065', '2 + 2 is 4, as it says.')
    """

    kind: Literal["genrm-cot"] = "genrm-cot"
    samples: int = Field(default=8, ge=1)
    template: str = Field(default_factory=partial(prompts.template, "genrm-cot"))
    verdict: str = Field(default_factory=partial(prompts.template, "genrm-verdict"))
    sampling: Sampling = Sampling()
    max_tokens: int = Field(default=1024, ge=1)
    stop: tuple[str, ...] = ()

    def request(self, node: Node) -> Request:
        """What asks for the rationales: a pure function of the node."""
        return replace(
            self._asked(filled(self.template, about(node))),
            seeds=tuple(seeds_of(0, node.path, range(self.samples))),
            sampling=self.sampling,
            max_tokens=self.max_tokens,
            stop=self.stop,
            logprobs=False,
        )

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where no rationale led to one.

        Raises:
            BackendError: no later call can succeed either.
        """
        return await each(self._judge, nodes)

    async def _judge(self, node: Node) -> Verdict:
        values = about(node)
        question, last = filled(self.template, values), filled(self.verdict, values)

        async def decided(rationale: Step) -> Verdict:
            return await self._decision(self._asked(question, rationale.text, last))

        return await averaged(self.backend, self.request(node), decided)
