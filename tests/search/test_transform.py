import random

import anyio
import pytest
from worlds import Jittered, Judge, Random, worth

from branchwise.agents.chooser import Chooser
from branchwise.agents.tournament import Tournament
from branchwise.backends.scripted import Scripted
from branchwise.core.around import Budget
from branchwise.core.errors import BackendError
from branchwise.core.grow import seed_of
from branchwise.core.node import Node
from branchwise.core.tree import from_json, to_json
from branchwise.core.types import State, Step, Task, Usage, Verdict
from branchwise.search.best import Best
from branchwise.search.best_of_n import BestOfN
from branchwise.search.transform import Transform
from branchwise.search.vote import Vote
from branchwise.solve import Searched, solve
from branchwise.testing import Word
from branchwise.verifiers.pairwise import Comparison

pytestmark = pytest.mark.anyio


class Whole:
    """Says these texts in turn, one for each child."""

    def __init__(self, texts="abcdef"):
        self.texts = texts

    async def propose(self, node, seeds):
        first = node.promised - len(seeds)
        return [Step(text) for text in self.texts[first : node.promised]]


class Told:
    """The policy h: a function of the texts of all that has finished."""

    def __init__(self, function):
        self.function, self.seen = function, []

    async def propose(self, node, seeds):
        texts = [leaf.text for leaf in node.walk() if leaf.finished]
        self.seen.append((len(seeds), texts))
        return [Step(self.function(texts), usage=Usage(completion=1))]


async def search(h, controller=None, *, policy=None, length=4, **more):
    return await solve(
        "a word?",
        policy={"policy": policy or Random(), "h": h},
        controller=controller or Transform(n=5, by="h"),
        environment=Word(length),
        **more,
    )


async def test_the_answer_is_a_function_of_all_samples():
    h = Told(lambda texts: "".join(max(column) for column in zip(*texts, strict=True)))
    answer = await search(h)
    words = []
    for i in range(5):
        paths = [(i, *[0] * depth) for depth in range(4)]
        steps = [(await Random().propose(None, [seed_of(0, path)]))[0] for path in paths]
        words.append("".join(step.text for step in steps))
    assert h.seen == [(1, words)]
    assert answer.value == "".join(max(column) for column in zip(*words, strict=True))
    assert answer.node.path == (5,)
    assert answer.stopped == "finished"


@pytest.mark.parametrize("function", [min, max])
async def test_scores_do_not_overrule_the_policy(function):
    for judge in (worth, lambda word: -worth(word)):
        answer = await search(Told(function), verifier=Judge(judge))
        assert answer.value == function(leaf.text for leaf in answer.root.leaves())


async def test_universal_self_consistency_takes_what_the_model_names():
    texts = ["It is 5.", "I get 4.", "Four."]
    model = Scripted(lambda request, seed: "Two conclude 4, clearest is response 2")
    controller = Transform(n=3, by="h")
    answer = await search(Chooser(backend=model), controller, policy=Whole(texts), length=1)
    assert answer.text == "I get 4."
    (request,) = model.requests
    assert all(f"Response {i}:\n{text}" in request.asked for i, text in enumerate(texts, 1))
    assert answer.usage.completion == 7  # the words of the reply; the samples' are free here


@pytest.mark.parametrize("format_", ["knockout", "copeland", "bradley-terry"])
async def test_a_tournament_finds_the_word_that_a_scorer_would(format_):
    judge = Comparison(lambda a, b: worth(a.text) > worth(b.text))
    policy = Tournament(prefer=judge, format=format_)
    for seed in range(5):
        answer = await search(policy, seed=seed)
        assert answer.value == max((leaf.text for leaf in answer.root.leaves()), key=worth)


async def test_the_tree_does_not_depend_on_timing():
    class Noisy:
        async def prefer(self, pairs, seeds):
            await anyio.lowlevel.checkpoint()
            return [Verdict(random.Random(seed).random()) for seed in seeds]

    trees = set()
    for at_once, turns in ((64, 0), (1, 1), (3, 2)):
        noisy = Jittered(Tournament(prefer=Noisy(), votes=3), at_once, turns)
        answer = await search(noisy, policy=Jittered(Random(), at_once, turns), seed=3)
        trees.add(to_json(answer.root))
    assert len(trees) == 1


@pytest.mark.parametrize("reply", ["I cannot tell.", "7"])
async def test_a_choice_that_cannot_be_read_leaves_the_first_answer_and_a_note(reply):
    model = Scripted(lambda request, seed: reply)
    answer = await search(Chooser(backend=model), Transform(n=3, by="h"), policy=Whole(), length=1)
    assert answer.value == "a"
    assert repr(reply) in answer.root.children[-1].failure
    judged = await search(
        Chooser(backend=model),
        Transform(n=3, by="h"),
        policy=Whole(),
        length=1,
        verifier=Judge(ord),
    )
    assert judged.value == "c"


async def test_nothing_finished_nothing_transformed():
    h = Told(max)
    answer = await search(h, horizon=2)
    assert h.seen == []
    assert answer.node.state.cut
    assert len(answer.root.children) == 5


async def test_answers_that_failed_are_not_seen():
    class Flaky(Random):
        async def propose(self, node, seeds):
            if len(node.text) == 2 and seeds[0] % 2:
                raise BackendError("the line broke")
            return await super().propose(node, seeds)

    h = Told(max)
    answer = await search(h, Transform(n=8, by="h"), policy=Flaky())
    ((_, texts),) = h.seen
    assert 0 < len(texts) < 8
    assert answer.value == max(texts)


async def test_where_the_policy_falls_silent_or_fails_the_pick_answers():
    class Silent:
        async def propose(self, node, seeds):
            return []

    class Down:
        async def propose(self, node, seeds):
            raise BackendError("down")

    for h in (Silent(), Down(), Told(lambda texts: "a")):  # the last one's answer is not finished
        answer = await search(h, verifier=Judge())
        ends = [leaf.text for leaf in answer.root.walk() if leaf.finished]
        assert len(ends) == 5
        assert answer.value == max(ends, key=worth)
        voted = await search(h, Transform(n=5, by="h", pick=Vote()), policy=Random("a"))
        assert voted.value == "aaaa"


@pytest.mark.parametrize("limit", range(23))
async def test_a_budget_may_end_anywhere(limit):
    h = Told(max)
    for budget in (Budget(nodes=limit), Budget(calls=limit)):
        answer = await search(h, budget=budget, verifier=Judge())
        assert answer.node is Best()(answer.root) or answer.node.path == (5,)
        # One call for five samples at the root, three rounds of five, and that of the policy.
        assert (answer.node.path == (5,)) == (limit > (20 if budget.nodes == limit else 16))


async def test_a_search_cut_before_the_policy_speaks_answers_by_the_pick():
    class Slow:
        async def propose(self, node, seeds):
            self.root = node
            scope.cancel()
            await anyio.lowlevel.checkpoint()

    slow = Slow()
    with anyio.CancelScope() as scope:
        await search(slow, verifier=Judge())
    assert slow.root.promised == 6
    ends = [leaf.text for leaf in slow.root.leaves()]
    assert len(ends) == 5
    assert Transform(n=5, by="h").answer(slow.root).text == max(ends, key=worth)


async def test_a_saved_tree_gives_the_same_answer_and_a_foreign_one_the_pick():
    answer = await search(Told(min), verifier=Judge())
    saved = from_json(to_json(answer.root))
    assert Transform(n=5).answer(saved).path == answer.node.path == (5,)
    foreign = await search(None, BestOfN(n=9), verifier=Judge())
    assert Transform(n=5).answer(foreign.root) is foreign.node
    bare = Node(Task("?"), State())
    assert Transform().answer(bare) is bare


async def test_it_nests():
    h = Told(max)
    inner = Searched(Transform(n=4, by="h"), {"policy": Random(), "h": h}, Word(3))
    answer = await solve("a word?", policy=inner, controller=BestOfN(n=2), environment=Word(3))
    transformed = [max(texts) for _, texts in h.seen]
    assert sorted(leaf.text for leaf in answer.root.leaves()) == sorted(transformed)
    assert len(transformed) == 2


async def test_hidden_copies_are_chosen_all_the_same():
    answer = await search(Told(lambda texts: texts[0]), unique="siblings", length=1)
    assert answer.node.path == (5,)
