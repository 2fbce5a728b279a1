"""What a model thinks of its own answers and steps: P(True), and confidence in words."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from pydantic import Field

from branchwise.core.config import Sampling
from branchwise.core.errors import VerifierError
from branchwise.core.judging import cost
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import Request, Verdict
from branchwise.verifiers import prompts
from branchwise.verifiers.aggregate import How, aggregated
from branchwise.verifiers.asked import about, each, number, replies
from branchwise.verifiers.chance import Decides, Words
from branchwise.verifiers.steps import parts

_PERCENT = 100


class _Place(NamedTuple):
    """A node, and what others said in its place."""

    node: Node
    others: tuple[str, ...]


class SelfEvaluation(Decides):
    r"""Asks a model whether an answer, or each step of one, is right.

        p-true:      p("A" | x, y, "Is the proposed answer: (A) True (B) False"), as the next token
        verbalised:  c / 100, where the model writes how sure it is, in percent

    With `per = "step"` the question is about one step, given those before it, as in guided beam
    search: p("A" | x, s_1 ... s_t, "(A) Correct (B) Incorrect"). A node's own text may hold several
    steps; `Verdict.steps` are their scores, and `score` is made of them. A node that says nothing,
    as where a text ends, is judged by the last step before it.

    With `others` the model first sees what siblings said, which helps it to know what it does not
    know (§4.2 of the first paper): those that are judged in the same call, which in a search are
    those that were grown together, in order and each text once.

    How probable the model found its own words is what `Likelihood` says, without a call.

    Source: Kadavath et al. 2022, §4 (P(True)); Xie et al. 2023 (self-evaluation guided beam
    search); Lin et al. 2022 and Tian et al. 2023 (verbalised).

    Args:
        backend: the model.
        system: the system's message; none where it is empty.
        chat: whether the model is asked in a chat, or reads plain text that goes on.
        yes: the spellings of the letter for what is right, each a token; they are summed.
        no: those of the letter for what is wrong.
        normalised: whether the score is p(yes) / (p(yes) + p(no)) instead of p(yes).
        least: the least probability of all these words together; where they have less, the model
            does not answer the question, and the node has no verdict.
        candidates: how many of the most probable tokens a model is asked for that does not read.
        by: `p-true` or `verbalised`.
        per: what is judged, the whole `answer` or each `step`.
        separator: what ends a step inside one node's text; where it is empty, each node is a step.
        how: with `per = "step"`, how the scores of a node's own steps become one.
        others: the most siblings whose words are shown.
        template: what the model is asked; `{prompt}`, `{others}` and `{answer}`, or for steps
            `{before}` and `{step}`, are filled in; by default the packaged one for what is asked.
        shown: what stands for `{others}` where there are some; `{ideas}` are their words.

    Example:
        >>> from branchwise import Node, Scripted, State, Step, Task, run_sync
        >>> root = Node(Task("2 + 2?"), State())
        >>> node = Node(root.task, State(), root, 0, Step("4"))
        >>> sure = SelfEvaluation(backend=Scripted(lambda request, seed: "95%"), by="verbalised")
        >>> run_sync(sure.score, [node])[0].score
        0.95
    """

    kind: Literal["self-evaluation"] = "self-evaluation"
    yes: Words = Field(default=("A", " A", "(A", " (A"), min_length=1)
    no: Words = Field(default=("B", " B", "(B", " (B"), min_length=1)
    by: Literal["p-true", "verbalised"] = "p-true"
    per: Literal["answer", "step"] = "answer"
    separator: str = ""
    how: How = "prod"
    others: int = Field(default=0, ge=0)
    template: str | None = None
    shown: str = Field(default_factory=lambda: prompts.template("p-true-others"))

    def requests(self, node: Node, others: Sequence[str] = ()) -> list[Request]:
        """What the model is asked, in one request for each thing that is judged.

        Args:
            node: the answer, or the node that holds the steps.
            others: what siblings said.
        """
        ideas = "\n\n".join(others)
        block = f"{filled(self.shown, {'ideas': ideas})}\n\n" if others else ""
        known = {**about(node), "others": block}
        if self.per == "answer":
            return [self._question(known)]
        before, own = parts(node, self.separator)
        said = (*before, *own)
        told = [place for place, step in enumerate(said) if step.strip()]
        places = [place for place in told if place >= len(before)] or told[-1:]
        return [
            self._question(
                {**known, "before": "".join(said[:place]).strip(), "step": said[place].strip()}
            )
            for place in places
        ]

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where the model's word cannot be read.

        Raises:
            BackendError: no later call can succeed either.
        """
        return await each(self._judge, [_Place(node, self._around(node, nodes)) for node in nodes])

    async def _judge(self, place: _Place) -> Verdict:
        requests = self.requests(place.node, place.others)
        if not requests:
            raise VerifierError("there is no step to judge: nothing was said")
        outcomes = await each(self._decision if self.by == "p-true" else self._confidence, requests)
        errors = [outcome for outcome in outcomes if isinstance(outcome, VerifierError)]
        verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
        usage = cost(outcomes)
        if errors:
            raise VerifierError(errors[0].message, hint=errors[0].hint, spent=usage)
        if self.per == "answer":
            return verdicts[0]
        scores = tuple(verdict.score for verdict in verdicts)
        return Verdict(
            aggregated(scores, self.how),
            detail="; ".join(verdict.detail for verdict in verdicts),
            usage=usage,
            steps=scores if place.node.steps[-1].text.strip() else (),
        )

    async def _confidence(self, request: Request) -> Verdict:
        # The most probable number: a drawn one would only add noise.
        how = Sampling(temperature=0)
        short = replace(request, sampling=how, max_tokens=16, stop=("\n",), logprobs=False)
        (reply,) = await replies(self.backend, short)
        if isinstance(reply, VerifierError):
            raise reply
        said = reply.text.strip()
        return Verdict(number(reply, 0, _PERCENT) / _PERCENT, detail=said, usage=reply.usage)

    def _question(self, values: dict[str, str]) -> Request:
        name = "p-true" if self.by == "p-true" else "confidence"
        name += "-step" if self.per == "step" else ""
        text = prompts.template(name) if self.template is None else self.template
        return self._asked(filled(text, values))

    def _around(self, node: Node, nodes: Sequence[Node]) -> tuple[str, ...]:
        """What the node's siblings among those that are judged say, but for copies of its own."""
        if not self.others:
            return ()
        siblings = [one for one in nodes if one.parent is node.parent and one is not node]
        texts = [self._words(one) for one in siblings]
        distinct = dict.fromkeys(text for text in texts if text not in {"", self._words(node)})
        return tuple(distinct)[: self.others]

    def _words(self, node: Node) -> str:
        step = "" if node.step is None else node.step.text
        return (step if self.per == "step" else node.text).strip()
