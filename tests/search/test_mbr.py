"""Minimum Bayes risk against enumeration, sacrebleu and voting."""

import math
from itertools import product

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from branchwise import Node, SpecError, State, Step, Task, Verdict
from branchwise.search import utility
from branchwise.search.mbr import MBR
from branchwise.search.utility import (
    BLEU,
    Agreement,
    ChrF,
    Custom,
    Edit,
    Match,
    levenshtein,
    said,
)
from branchwise.search.vote import Vote

TEXTS = ["the cat sat on the mat", "a cat sat on a mat", "the dog ran", "", "Cat on mat, sat."]
answers = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=10)


def tree(texts, scores=None, outcomes=None, answer=str):
    root = Node(Task("?"), State())
    for i, text in enumerate(texts):
        end = State(done=True, answer=None if text is None else answer(text))
        leaf = Node(root.task, end, root, i, Step(text or ""))
        leaf.score = scores[i] if scores else 0.0
        if outcomes:
            leaf.judged(("tests",), (Verdict(0.0, detail=outcomes[i]),))
        root.adopt([leaf])
    return root


def table_of_edits(a, b):
    """The Levenshtein distance once more, as the whole table of Wagner and Fischer."""
    d = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i, j in product(range(1, len(a) + 1), range(1, len(b) + 1)):
        change = d[i - 1, j - 1] + (a[i - 1] != b[j - 1])
        d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, change)
    return d[len(a), len(b)]


@given(st.text("abc", max_size=9), st.text("abc", max_size=9))
def test_edits_are_those_of_the_whole_table(a, b):
    assert levenshtein(a, b) == table_of_edits(a, b)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_it_takes_the_bayes_action_of_a_model_that_can_be_enumerated(seed, own):
    words = ["".join(word) for n in (1, 2, 3) for word in product("ab", repeat=n)]
    mass = {
        w: 1 / (1 + levenshtein(w, words[3 * seed % 13]) + i * seed / 9)
        for i, w in enumerate(words)
    }
    total = sum(mass.values())
    worth = {
        y: sum(
            mass[e] / total * (1 - table_of_edits(y, e) / max(len(y), len(e)))
            for e in words
            if own or e != y
        )
        for y in words
    }
    root = tree(words, [math.log(mass[w]) for w in words])
    assert MBR(utility=Edit(), weight="exp", own=own)(root).text == max(worth, key=worth.get)


def test_it_differs_from_the_mode_by_hand():
    # abc and aed are two edits apart, abd is one edit from each, xyz shares no letter with any.
    texts = ["xyz", "xyz", "abc", "abd", "aed"]
    assert Vote()(tree(texts)).text == "xyz"
    assert MBR(utility=Edit())(tree(texts)).text == "abd"
    expected = MBR(utility=Edit()).expected(tree(texts).children)
    assert expected == pytest.approx(
        [2, 2, 1 + 2 / 3 + 1 / 3, 1 + 2 / 3 + 2 / 3, 1 + 1 / 3 + 2 / 3]
    )


@given(answers)
def test_with_exact_match_it_is_majority_voting(said):
    root = tree(said)
    assert MBR()(root).state.answer == Vote()(root).state.answer
    assert MBR(own=False)(root).state.answer == Vote()(root).state.answer


@given(answers, st.data())
def test_with_weights_it_is_weighted_voting(said, data):
    eighths = st.integers(1, 16).map(lambda i: i / 8)
    scores = data.draw(st.lists(eighths, min_size=len(said), max_size=len(said)))
    root = tree(said, scores)
    assert MBR(weight="score")(root).state.answer == Vote(weight="score")(root).state.answer


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (BLEU(), lambda h, e: sacrebleu.sentence_bleu(h, [e]).score),
        (
            BLEU(tokenize="char"),
            lambda h, e: sacrebleu.sentence_bleu(h, [e], tokenize="char").score,
        ),
        (ChrF(), lambda h, e: sacrebleu.sentence_chrf(h, [e]).score),
        (ChrF(word_order=2), lambda h, e: sacrebleu.sentence_chrf(h, [e], word_order=2).score),
    ],
    ids=["bleu", "bleu-char", "chrf", "chrf++"],
)
def test_the_metrics_are_sacrebleus(ours, theirs):
    rows = ours.table(tree(TEXTS).children)
    assert rows == [[theirs(h, e) for e in TEXTS] for h in TEXTS]
    worth = [sum(row) for row in rows]
    assert MBR(utility=ours)(tree(TEXTS)).text == TEXTS[worth.index(max(worth))]


def test_bleu_by_hand():
    # Of 4, 3, 2, 1 n-grams 3, 2, 1, 0 match, and none is smoothed to half a one: 1/8 in all.
    precisions = 3 / 4 * 2 / 3 * 1 / 2 * (1 / 2) / 1
    assert BLEU().between("a b c d", "a b c e") == pytest.approx(100 * precisions**0.25)


def test_the_evidence_is_the_second_argument():
    begins = Custom(function=lambda y, e: float(e.text.startswith(y.text)))
    assert MBR(utility=begins)(tree(["abc", "ab", "abd"])).text == "ab"


def test_a_utility_may_be_named():
    named = MBR.model_validate({"utility": {"kind": "custom", "function": "test_mbr:shorter"}})
    assert named(tree(["aaa", "a", "aa"])).text == "a"
    with pytest.raises(ValidationError, match="no_such_module"):
        Custom(function="no_such_module:f")


def shorter(y, e):
    return float(len(y.text) <= len(e.text))


def test_a_utility_that_is_no_number_is_named():
    with pytest.raises(SpecError, match="finite"):
        MBR(utility=Custom(function=lambda y, e: math.nan))(tree(["a", "b"]))


def test_programs_agree_wholly_or_in_part():
    outcomes = ["1100", "1100", "1011", "1010", "1110", ""]
    root = tree([str(i) for i in range(6)], outcomes=outcomes)
    assert MBR(utility=Match(of="tests"))(root).text == "0"  # two programs do just the same
    shares = [
        sum(sum(a == b for a, b in zip(x, y, strict=True)) / 4 for y in outcomes[:5])
        for x in outcomes[:5]
    ]
    soft = MBR(utility=Agreement(of="tests"))
    assert soft.expected(root.children[:5]) == shares
    assert soft(root).text == str(shares.index(max(shares))) == "4"


def test_what_one_has_and_the_other_has_not_is_a_difference():
    assert Agreement(of="tests").between("110", "11") == 2 / 3
    assert Agreement(of="tests").between("1", "1101") == 1 / 4


@given(st.lists(st.sampled_from(["ab", "b", "ba", "aab"]), min_size=2, max_size=8))
def test_its_own_support_changes_nothing_where_all_have_the_same(said):
    root = tree(said)
    with_own, without = MBR(utility=Edit()), MBR(utility=Edit(), own=False)
    gaps = [
        a - b
        for a, b in zip(
            with_own.expected(root.children), without.expected(root.children), strict=True
        )
    ]
    assert gaps == pytest.approx([1.0] * len(said))


def test_without_its_own_support_an_answer_needs_others():
    root = tree(["a", "b", "b"], [5.0, 1.0, 1.0])
    assert MBR(weight="score")(root).text == "a"
    assert MBR(weight="score", own=False)(root).text == "b"


def test_it_works_on_any_tree():
    root = Node(Task("?"), State())
    for each in (Match(), Edit(), Agreement(of="tests"), BLEU(), ChrF(), Match(of="tests")):
        assert MBR(utility=each)(root) is root
    silent = tree([None, None], [0.0, 1.0])
    assert MBR()(silent).path == (1,)  # nobody has an answer: the best
    open_ = Node(Task("?"), State(), root, 0, Step("a"))
    open_.score = -math.inf
    root.adopt([open_])
    for weight in ("equal", "score", "exp"):
        assert MBR(utility=Edit(), weight=weight)(root) is open_


def test_a_verifier_that_is_not_there_is_named():
    root = tree(["a"], outcomes=["1"])
    with pytest.raises(SpecError, match="did you mean 'tests'"):
        MBR(utility=Match(of="test"))(root)
    assert said(root, "tests") is None  # nobody has judged the root


@pytest.mark.parametrize("kind", ["bleu", "chrf"])
def test_what_is_not_installed_is_said_before_the_search(kind, monkeypatch):
    monkeypatch.setattr(utility, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"branchwise\[mbr\]"):
        MBR.model_validate({"utility": {"kind": kind}})


@pytest.mark.parametrize("utility", [Edit(), Agreement(of="text"), Match(of="text")])
def test_two_that_say_nothing_agree(utility):
    assert utility.between("", "") == 1
    root = Node(Task("?"), State())
    assert MBR(utility=utility)(root) is root
