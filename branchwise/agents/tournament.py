"""The best answer by comparisons: a knockout, or all against all."""

from collections.abc import Sequence
from itertools import combinations, islice
from typing import Literal

from pydantic import Field, SkipValidation

from branchwise.agents.chooser import finished, repeated
from branchwise.core.aio import gather
from branchwise.core.config import Config
from branchwise.core.errors import BackendError, BranchError, VerifierError
from branchwise.core.grow import seeds_of
from branchwise.core.node import Node
from branchwise.core.types import FREE, Preference, Step, Usage, Verdict

_ROUNDS = 1000  # of the MM algorithm, at most
_EXACT = 1e-12  # where it has converged
_DIGITS = 9  # beyond, equal strengths differ by rounding


class Tournament(Config):
    r"""Compares the finished answers below a node and proposes the winner again.

        match(a, b):    K votes; the one with more of them wins, of equals the earlier one
        knockout:       while |alive| > 1:  neighbours in `alive` meet; the winners stay
        copeland:       all pairs meet; argmax_a |{b: a beats b}| + ½ |{b: a and b tie}|
        bradley-terry:  all pairs meet; argmax_a p_a, where P(a beats b) = p_a / (p_a + p_b)

    The knockout of Chen et al. 2024 fails with a probability of at most
    (1 - p_gen)^N + ⌈log₂ N⌉ exp(-2 K (p_comp - ½)²), p_gen being that of a right answer and
    p_comp > ½ that of a vote for the right one of two. The odd one out of a round goes on without
    a match and plays first in the next.

    Bradley-Terry strengths are of largest likelihood, with half a vote added to both sides of each
    pair, since without it an answer that never loses has none. Where no vote failed they rank as
    the mean share of votes does, which is the league of Chen et al. 2024. All matches of a round
    are asked at once.

    A vote that fails is left out: of a pair without votes the earlier answer goes on, and in a
    league it is a tie. Where no vote arrives at all the new branch fails.

    Source: Chen et al. 2024 (knockout); LLM-Blender, Jiang et al. 2023, §3 (all pairs, most wins);
    Bradley and Terry 1952 and Hunter 2004 (strengths and the MM algorithm).

    Args:
        prefer: what compares two answers.
        format: how they meet, and what makes the winner.
        votes: K, how often each pair that meets is judged.

    Example:
        >>> from branchwise import Node, State, Step, Task, Verdict, run_sync
        >>> class Longer:
        ...     async def prefer(self, pairs, seeds):
        ...         return [Verdict(float(len(a.text) > len(b.text))) for a, b in pairs]
        >>> root = Node(Task("?"), State())
        >>> for i, said in enumerate(["a", "abc", "ab"]):
        ...     root.adopt([Node(root.task, State(done=True), root, i, Step(said))])
        >>> run_sync(Tournament(prefer=Longer()).propose, root, [0])[0].text
        'abc'
    """

    prefer: SkipValidation[Preference] = Field(exclude=True, repr=False)
    kind: Literal["tournament"] = "tournament"
    format: Literal["knockout", "copeland", "bradley-terry"] = "knockout"
    votes: int = Field(default=1, ge=1)

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:
        """For each seed the winner of a tournament; nothing where no answer has finished.

        Raises:
            BackendError: no vote arrived.
        """
        answers = finished(node)
        if not answers:
            return []

        async def winner(seed: int) -> Step:
            league = _League(self, answers, seed)
            best = await (league.knockout() if self.format == "knockout" else league.everyone())
            return repeated(node, answers[best], league.usage)

        return await gather(winner, seeds)


class _League:
    """The answers by number, and what has been played so far.

    Attributes:
        won: how many votes each has got against each.
        usage: what the votes have cost.
    """

    __slots__ = ("answers", "heard", "lost", "rules", "seed", "usage", "won")

    def __init__(self, rules: Tournament, answers: Sequence[Node], seed: int) -> None:
        self.rules, self.answers, self.seed = rules, answers, seed
        self.won = [[0.0] * len(answers) for _ in answers]
        self.heard = 0
        self.lost: VerifierError | None = None
        self.usage: Usage = FREE

    async def knockout(self) -> int:
        alive = list(range(len(self.answers)))
        while len(alive) > 1:
            matches = [(min(m), max(m)) for m in zip(alive[::2], alive[1::2], strict=False)]
            await self._meet(matches)
            odd_one = alive[-1:] if len(alive) % 2 else []
            alive = odd_one + [j if self.won[j][i] > self.won[i][j] else i for i, j in matches]
        self._heard_any()
        return alive[0]

    async def everyone(self) -> int:
        numbers = range(len(self.answers))
        await self._meet(list(combinations(numbers, 2)))
        self._heard_any()
        if self.rules.format == "copeland":
            values = [
                sum((mine > theirs[a]) + (mine == theirs[a]) / 2 for mine, theirs in self._duels(a))
                for a in numbers
            ]
        else:
            padded = [[w + (a != b) / 2 for b, w in enumerate(self.won[a])] for a in numbers]
            values = [round(p, _DIGITS) for p in strengths(padded)]
        return max(numbers, key=values.__getitem__)

    def _duels(self, a: int) -> list[tuple[float, list[float]]]:
        return list(zip(self.won[a], self.won, strict=True))

    async def _meet(self, matches: Sequence[tuple[int, int]]) -> None:
        """Judge each pair as often as the rules say; the earlier answer stands first."""
        votes = self.rules.votes
        pairs = [(self.answers[i], self.answers[j]) for i, j in matches for _ in range(votes)]
        seeds = [seed for match in matches for seed in seeds_of(self.seed, match, range(votes))]
        verdicts = iter(await self._verdicts(pairs, seeds))
        for i, j in matches:
            for verdict in islice(verdicts, votes):
                if isinstance(verdict, VerifierError):
                    self.lost = self.lost or verdict
                    self.usage += verdict.spent or FREE
                elif 0 <= verdict.score <= 1:
                    self.heard += 1
                    self.won[i][j] += verdict.score
                    self.won[j][i] += 1 - verdict.score
                    self.usage += verdict.usage
                else:
                    self.lost = VerifierError(f"{verdict.score} is no probability")

    async def _verdicts(
        self, pairs: Sequence[tuple[Node, Node]], seeds: Sequence[int]
    ) -> Sequence[Verdict | VerifierError]:
        if not pairs:
            return []
        try:
            return await self.rules.prefer.prefer(pairs, seeds)
        except BranchError as error:
            if isinstance(error, BackendError) and error.fatal:
                # Without what has arrived: these are replies, not steps of a search.
                raise BackendError(error.message, hint=error.hint, fatal=True) from error
            return [VerifierError(error.message, hint=error.hint)] * len(pairs)

    def _heard_any(self) -> None:
        if self.lost is not None and not self.heard:
            raise BackendError(
                f"no vote arrived: {self.lost.message}", hint=self.lost.hint, spent=self.usage
            )


def strengths(wins: Sequence[Sequence[float]]) -> list[float]:
    """The Bradley-Terry strengths of largest likelihood; their sum is 1.

        p_a ← W_a / Σ_b n_ab / (p_a + p_b),   n_ab = w_ab + w_ba

    The likelihood has a largest value where the answers cannot be split in two groups of which
    one never lost against the other (Ford 1957).

    Source: the MM algorithm of Hunter 2004.

    Args:
        wins: w_ab, how often a has beaten b; it need not be a whole number.

    Example:
        >>> [round(p, 6) for p in strengths([[0, 3], [1, 0]])]
        [0.75, 0.25]
    """
    if len(wins) == 1:
        return [1.0]
    numbers = range(len(wins))
    p = [1 / len(wins)] * len(wins)
    for _ in range(_ROUNDS):
        weights = [
            sum(wins[a]) / sum((wins[a][b] + wins[b][a]) / (p[a] + p[b]) for b in numbers if b != a)
            for a in numbers
        ]
        after = [weight / sum(weights) for weight in weights]
        converged = max(abs(x - y) for x, y in zip(p, after, strict=True)) < _EXACT
        p = after
        if converged:
            break
    return p
