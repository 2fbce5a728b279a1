"""The arithmetic behind the dashboard; what is timed is not tested here."""

import sys
from pathlib import Path

import anyio
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import dashboard
from calibration import Calibrated, drift
from plan import Grown, chain, needed, plan, sampled, shares
from roofline import Machine, Shape

SLOW = Machine(20e9, {"float32": 200e9, "bfloat16": 800e9})
FAST = Machine(21e9, {"float32": 230e9, "bfloat16": 800e9})


class SmolLM2:
    hidden_size, num_attention_heads, num_key_value_heads = 576, 9, 3
    intermediate_size, num_hidden_layers, vocab_size = 1536, 30, 49_152


SHAPE = Shape.of(SmolLM2, "float32")


def test_a_spread_is_the_middle_and_the_ends():
    assert str(dashboard.Spread.of([3.0, 1.0, 250.0])) == "3.00 (1.00..250)"


@pytest.mark.parametrize(
    ("value", "said"), [(2.5, "2.50 s"), (0.0123, "12.3 ms"), (9.99e-4, "999 us"), (1, "1.00 s")]
)
def test_a_time_has_a_unit_that_fits(value, said):
    assert dashboard.seconds(value) == said


def test_pairs_are_interleaved_and_each_round_has_a_number_of_its_own():
    order, numbers = [], []

    def side(name):
        async def run(number):
            order.append(name)
            numbers.append(number)
            return len(order)

        return run

    taken = anyio.run(dashboard.pairs, side("A"), side("B"), 3)
    assert "".join(order) == "ABBAAB"
    assert taken == [(1, 2), (4, 3), (5, 6)]
    assert [len({*numbers[i : i + 2]}) for i in (0, 2, 4)] == [1, 1, 1]
    assert len(set(numbers)) == 3


def test_drift_is_the_largest_change_in_either_direction():
    assert drift(SLOW, FAST) == drift(FAST, SLOW) == pytest.approx(0.15)


def test_a_machine_that_changed_by_more_than_a_tenth_is_noted():
    assert "15%" in Calibrated(SLOW, FAST).notes
    assert not Calibrated(SLOW, SLOW).notes


def test_the_limit_is_the_best_that_was_seen():
    assert Calibrated(FAST, SLOW).machine == FAST


def test_the_bytes_of_a_known_model():
    assert SHAPE.body + SHAPE.head == 134_479_872
    assert (SHAPE.weights, SHAPE.token) == (537_919_488, 46_080)


def test_a_single_row_is_limited_by_memory_and_many_by_arithmetic():
    assert SHAPE.step(SLOW, 1, 0) == SHAPE.weights / SLOW.bandwidth
    assert SHAPE.step(SLOW, 128, 0) == 2 * 128 * 134_479_872 / 200e9


def test_a_context_that_is_shared_is_read_once():
    wide = Machine(20e9, {"float32": float("inf")})
    shared, alone = SHAPE.step(wide, 8, 1000), SHAPE.step(wide, 8, 0, 1000)
    assert (alone - shared) * 20e9 == pytest.approx(7 * 1000 * SHAPE.token)


def test_decoding_takes_a_step_for_each_token_and_each_is_longer():
    two = SHAPE.step(SLOW, 4, 10, 1) + SHAPE.step(SLOW, 4, 10, 2)
    assert SHAPE.decode(SLOW, 4, 10, 2) == two
    assert SHAPE.decode(SLOW, 4, 10, 0) == 0


def test_shares_follow_the_scores_and_leave_no_row_over():
    widths = shares([0.9, 0.1, 0.5, 0.5], 16)
    assert sum(widths) == 16
    assert widths[0] > widths[2] >= widths[3] > widths[1]
    assert shares([0.3] * 4, 16) == [4] * 4


def test_a_recorded_search_is_the_same_each_time_and_full_at_each_step():
    steps = plan(1, 16, 8, 32)
    assert steps == plan(1, 16, 8, 32) != plan(2, 16, 8, 32)
    assert [sum(one.width for one in step) for step in steps] == [16] * 8
    assert {8 <= one.new <= 32 for step in steps for one in step} == {True}


def test_needed_are_the_tokens_of_the_trie_that_something_follows():
    # A prompt of 5, two children of 3; the first goes on with two of 4, the second with none.
    steps = [[Grown(0, 2, 3)], [Grown(0, 2, 4)]]
    assert needed(steps, 5) == 5 + 2 * 2 + 1 + 2 * 3
    assert sampled(steps) == 2 * 3 + 2 * 4
    assert chain(steps) == 7
