from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise import Arithmetic, Node, State, Step, Task, run_sync

numbers = st.integers(0, 9999)


def judged(*lines):
    node = Node(Task("?"), State())
    for line in lines:
        node = Node(node.task, State(), node, 0, Step(line))
    (verdict,) = run_sync(Arithmetic().score, [node])
    return verdict


@given(numbers, numbers, st.sampled_from("+-*"), st.integers(-3, 3))
def test_it_works_out_what_is_written(a, b, operator, off):
    value = {"+": a + b, "-": a - b, "*": a * b}[operator]
    verdict = judged(f"So that is {a} {operator} {b} = {value + off} in all.")
    assert verdict.score == -(off != 0)
    assert verdict.detail == "1 checked"


@given(numbers, st.integers(1, 99))
def test_a_quotient_may_be_rounded_to_what_it_shows(a, b):
    shown = f"{a / b:.2f}"
    assert judged(f"{a} / {b} = {shown}").score == 0.0
    wrong = Fraction(shown) + Fraction(2, 100)
    assert judged(f"{a} / {b} = {float(wrong):.2f}").score == -1.0


RIGHT = [
    "84 / 6 = 14 metres",
    "12 × 3 = 36",
    "3 x 4 = 12",
    "36 novels + 28 comics + 17 atlases = 81 books",
    "150 * 20 / 100 = 30",
    "$12.50 * 4 = $50",
    "(3 + 4) * 2 = 14",
    "20% * 50 = 10",
    "1,200 - 1,000 = 200",
    "4 - 11 = -7",
    r"\[ 14 \times 6 = 84 \text{ pencils} \]",
    r"\( \frac{84}{6} = 14 \)",
    r"\[ 84 \, \text{dollars} + 25 \, \text{dollars} = 109 \, \text{dollars} \]",
    r"\(\boxed{14 \times 6} = 84\)",
]


@pytest.mark.parametrize("line", RIGHT)
def test_calculations_are_read_as_people_write_them(line):
    verdict = judged(line)
    assert (verdict.score, verdict.detail) == (0.0, "1 checked")


@pytest.mark.parametrize("line", ["There are 12 apples.", "x = 4", "12 = 12", "5 / 0 = 0", ""])
def test_what_it_cannot_read_it_does_not_judge(line):
    verdict = judged(line)
    assert (verdict.score, verdict.detail) == (0.0, "0 checked")


def test_it_judges_the_whole_path_and_says_what_is_wrong():
    verdict = judged("84 / 6 = 12 metres.\n", "12 + 1 = 13\n", "2 * 2 = 5\n")
    assert verdict.score == -2.0
    assert verdict.feedback == "84 / 6 is 14, not 12.\n2 * 2 is 4, not 5."


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text", ["1 + " * 50_000, "9" * 100_000, "(" * 50_000 + "1", "1 * 1 " * 20_000]
)
def test_long_texts_do_not_keep_it(text):
    assert judged(text).score == 0.0
