"""A fork at any token: 1,000 of them in a prefix of 1,024 tokens, in time and in bytes.

    python benchmarks/fork.py [--model NAME] [--quick]

Ours is a place in the tree that is held; then the same with the place found by the tokens before it
and with a token, which takes a slot, hung on it. Theirs copies the keys and values before the place
into a `DynamicCache`, which is freed again.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import AsyncIterator, Sequence

import torch
from dashboard import Line, Setting, compare, main, repeated
from roofline import Shape
from transformers import AutoConfig, DynamicCache

from branchwise.backends.hf.pool import Space
from branchwise.backends.hf.prefix import Place, Segment, Tree
from branchwise.backends.models import folder

PREFIX = tuple(range(1024))
FORKS = 1000


def fork_there(tree: Tree, segment: Segment, places: Sequence[int]) -> None:
    """Hold each of the places, and let go of it."""
    for at in places:
        place = Place(segment, at)
        tree.hold(place)
        tree.release(place)


def fork_ours(places: Sequence[int]) -> Tree:
    """A tree with a child at each of the places."""
    tree = Tree(Space(len(PREFIX) + len(places)))
    tree.adopt(tree.top, PREFIX, tree.room(len(PREFIX)) or ())
    for number, at in enumerate(places):
        # Every child begins with a token that the tree has nowhere else.
        place = tree.find(PREFIX[:at])
        child = tree.add(place, (len(PREFIX) + number,), tree.room(1) or ())
        tree.hold(Place(child, 1))
    return tree


def fork_theirs(cache: DynamicCache, places: Sequence[int]) -> None:
    """A copy of the cache up to each of the places."""
    for at in places:
        copy = DynamicCache()
        for index, layer in enumerate(cache.layers):
            copy.update(layer.keys[:, :, :at].clone(), layer.values[:, :, :at].clone(), index)


async def lines(setting: Setting) -> AsyncIterator[Line]:
    """Both ways to fork."""
    count = 100 if setting.quick else FORKS
    draw = random.Random(0)
    places = [draw.randrange(1, len(PREFIX)) for _ in range(count)]
    config = AutoConfig.from_pretrained(folder(setting.model, "bfloat16"))
    shape = Shape.of(config, setting.dtype)
    cache = DynamicCache()
    for index in range(shape.layers):
        size = (1, shape.key_heads, len(PREFIX), shape.size)
        block = torch.zeros(size, dtype=getattr(torch, setting.dtype))
        cache.update(block, block.clone(), index)
    tracemalloc.start()
    tree = fork_ours(places)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    copied = sum(places) / count * shape.token
    trunk = tree.find(PREFIX[:1]).segment
    yield await compare(
        setting,
        f"each of {count} forks at a known place of a prefix of {len(PREFIX)}",
        "copies of a DynamicCache",
        repeated(lambda: fork_there(tree, trunk, places), 3, count),
        repeated(lambda: fork_theirs(cache, places), 1, count),
        notes=f"keys and values copied: none and {copied / 1e6:.1f} MB",
    )
    yield await compare(
        setting,
        "the same, found by its tokens, with a token hung on it",
        "copies of a DynamicCache",
        repeated(lambda: fork_ours(places), 3, count),
        repeated(lambda: fork_theirs(cache, places), 1, count),
        notes=f"bookkeeping: {held / tree.segments:.0f} bytes",
    )


if __name__ == "__main__":
    main(__doc__ or "", lines)
