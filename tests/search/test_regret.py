"""The value of what a vote does not know yet."""

import random
from fractions import Fraction

import pytest

from branchwise import BestOfN, Node, Regret, State, Step, Task, Until, Vote, solve
from branchwise.testing import Word

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("votes", [1, 2, 3, 7])
def test_with_one_answer_it_is_the_integral_over_a_beta(votes):
    """p ~ Beta(a, 1), a = votes + 1: E max(p, 1 - p) = ∫ a p^a + ∫ a p^(a-1) (1 - p), split at ½."""
    a = votes + 1
    half = Fraction(1, 2)
    upper = Fraction(a, a + 1) * (1 - half ** (a + 1))
    lower = half**a - Fraction(a, a + 1) * half ** (a + 1)
    assert Regret().regret([votes]) == pytest.approx(
        float(upper + lower - Fraction(a, a + 1)), abs=1e-6
    )


@pytest.mark.parametrize("counts", [[1], [2, 2], [5, 3, 1], [1] * 12, [20, 1, 1, 1], [31]])
def test_it_is_the_mean_over_draws_of_the_posterior(counts):
    draws = random.Random(1)
    alpha = [count + 1 for count in counts] + [1]
    best, squares, n = 0.0, 0.0, 20_000
    for _ in range(n):
        gammas = [draws.gammavariate(a, 1) for a in alpha]
        top = max(gammas) / sum(gammas)
        best += top / n
        squares += top * top / n
    error = ((squares - best**2) / n) ** 0.5
    expected = best - max(alpha) / sum(alpha)
    assert abs(Regret().regret(counts) - expected) < 4 * error + 1e-6


class Says:
    def __init__(self, said):
        self.said = said

    async def propose(self, node, seeds):
        return [Step(letter) for letter in self.said[node.promised - len(seeds) : node.promised]]


@pytest.mark.parametrize(
    ("said", "tolerance", "drawn"),
    [
        ("aaaaaaaaaaaa", 0.05, 3),  # sure
        ("abababababab", 0.05, 12),  # two of a kind: worth every sample
        ("abcdefghijklmnopqrstuvwxyz", 0.1, 16),  # little hope
    ],
)
async def test_it_stops_where_more_votes_would_win_little(said, tolerance, drawn):
    rule = Regret(tolerance=tolerance)
    search = Until(search=BestOfN(n=len(said), batch=1, pick=Vote()), stop=rule)
    answer = await solve("?", policy=Says(said), controller=search, environment=Word(1))
    assert len(answer.root.children) == drawn


def test_samples_without_an_answer_count_as_samples_only():
    root = Node(Task("?"), State())
    ends = [State(done=True, answer=a) for a in ("a", None, None)]
    root.adopt([Node(root.task, end, root, i, Step("")) for i, end in enumerate(ends)])
    assert Regret(tolerance=0.1)(root)  # one vote: the regret is 1/12
    assert not Regret(tolerance=0.1, least=4)(root)
    assert not Regret()(Node(Task("?"), State()))
