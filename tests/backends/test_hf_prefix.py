import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st

from branchwise.backends.hf.pool import Run, Space, split
from branchwise.backends.hf.prefix import Place, Tree

texts = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)


def slots(runs):
    return [slot for start, length in runs for slot in range(start, start + length)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=60))
def test_slots_are_handed_out_once_and_come_back_whole(orders):
    space, taken = Space(20), []
    for take, number in orders:
        if take:
            runs = space.take(number)
            assert (runs is None) == (number > 20 - sum(len(slots(r)) for r in taken))
            if runs is not None:
                assert len(slots(runs)) == number
                taken.append(runs)
        elif taken:
            space.give(taken.pop(number % len(taken)))
        held = [slot for runs in taken for slot in slots(runs)]
        assert len(set(held)) == len(held) == 20 - space.free
    for runs in taken:
        space.give(runs)
    assert space.take(20) == [Run(0, 20)]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 5)), max_size=5), st.integers(0, 30))
def test_a_split_keeps_slots_and_their_order(runs, at):
    head, tail = split([Run(*run) for run in runs], at)
    assert slots(head) + slots(tail) == slots(runs)
    assert len(slots(head)) == min(at, len(slots(runs)))


@given(st.lists(st.tuples(texts, st.booleans()), min_size=1, max_size=30))
def test_the_tree_knows_what_it_was_told_and_forgets_the_longest_unused_first(told):
    """Each slot remembers the whole text up to its token: what a place leads to is checked by it."""
    space = Space(24)
    tree, meaning, held = Tree(space), {}, []
    for text, hold in told:
        place = tree.find(text)
        assert [meaning[slot] for slot in slots(place.runs())] == [
            text[: i + 1] for i in range(place.position)
        ]
        tree.hold(place)
        unread = text[place.position :]
        runs = tree.room(len(unread))
        tree.release(place)
        if runs is None:  # too much is held
            continue
        for i, slot in enumerate(slots(runs)):
            meaning[slot] = text[: place.position + i + 1]
        end = tree.adopt(place, unread, runs)
        assert end == tree.find(text)
        assert end.position == len(text)
        if hold:
            tree.hold(end)
            held.append((text, end))
        for other, kept in held:
            assert [meaning[slot] for slot in slots(kept.runs())] == [
                other[: i + 1] for i in range(len(other))
            ]
    for _, end in held:
        tree.release(end)
    assert tree.room(24) is not None
    assert tree.segments == 0
    assert tree.find((0, 1, 2)) == tree.top


def test_what_was_used_last_is_forgotten_last():
    tree = Tree(Space(9))
    for text in ((1, 1, 1), (2, 2, 2), (3, 3, 3)):
        tree.adopt(tree.top, text, tree.room(3))
    again = tree.find((1, 1, 1))
    tree.hold(again)
    tree.release(again)
    tree.room(6)
    assert [tree.find((n,) * 3).position for n in (1, 2, 3)] == [3, 0, 0]


def test_a_fork_is_a_place_and_takes_no_slots():
    space = Space(100)
    tree = Tree(space)
    end = tree.adopt(tree.top, tuple(range(50)), tree.room(50))
    free = space.free
    forks = [Place(end.segment, upto) for upto in range(1, 51)]
    assert [fork.position for fork in forks] == list(range(1, 51))
    assert [len(slots(fork.runs())) for fork in forks] == list(range(1, 51))
    tails = [tree.adopt(fork, (99, upto), tree.room(2)) for upto, fork in enumerate(forks[:5])]
    assert space.free == free - 10
    assert all(slots(t.runs())[:-2] == slots(f.runs()) for t, f in zip(tails, forks, strict=False))


def test_twins_are_kept_once():
    space = Space(100)
    tree = Tree(space)
    start = tree.adopt(tree.top, (1, 2), tree.room(2))
    first = tree.adopt(start, (3, 4, 5), tree.room(3))
    second = tree.adopt(start, (3, 4, 6, 7), tree.room(4))
    assert space.free == 100 - 2 - 3 - 2
    assert slots(first.runs())[:4] == slots(second.runs())[:4]
    assert tree.adopt(start, (3, 4), tree.room(2)).position == 4
    assert space.free == 100 - 7


def test_what_is_spoilt_is_not_found_but_stays_while_it_is_held():
    space = Space(10)
    tree = Tree(space)
    bad = tree.adopt(tree.top, (1, 2, 3), tree.room(3))
    tree.hold(bad)
    tree.forget(bad.segment)
    assert tree.find((1, 2, 3)) == tree.top
    assert tree.room(8) is None
    tree.release(bad)
    assert tree.room(10) is not None


def test_what_nobody_needs_of_a_segment_is_given_back_when_room_is_short():
    space = Space(10)
    tree = Tree(space)
    segment = tree.add(tree.top, (1, 2, 3, 4, 5, 6, 7, 8), tree.room(8))
    assert [Place(segment, upto).ready for upto in (0, 1)] == [True, False]
    segment.filled = 7
    assert [Place(segment, upto).ready for upto in (7, 8)] == [True, False]
    tree.hold(Place(segment, 3))
    tree.hold(Place(segment, 5))
    assert slots(tree.room(5)) == [5, 6, 7, 8, 9]
    assert tree.find((1, 2, 3, 4, 5, 6)).position == 5
    assert (segment.filled, tree.room(1)) == (5, None)
    tree.release(Place(segment, 5))
    assert tree.cut(segment)
    assert (tree.find((1, 2, 3, 4)).position, space.free) == (3, 2)
    tree.release(Place(segment, 3))
    assert tree.cut(segment)
    assert (tree.find((1,)), space.free) == (tree.top, 5)


def test_nothing_is_hung_on_what_is_not_read_yet():
    space = Space(20)
    tree = Tree(space)
    segment = tree.add(tree.top, (1, 2, 3, 4), tree.room(4))
    tree.hold(Place(segment, 4))
    assert tree.adopt(tree.top, (1, 2, 9), tree.room(3)) == tree.top
    assert space.free == 16
    segment.filled = 2
    assert tree.adopt(tree.top, (1, 2, 9), tree.room(3)).position == 3
    assert space.free == 15
