from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise.core.answers import extract
from branchwise.core.spelling import canonical

EVERY = ("boxed", "hashes", "says", "last_number")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{18}.", "18"),
        ("\\boxed{1}, no: \\boxed{\\frac{3}{4}}", "3/4"),
        ("\\boxed{a_{n_{1}} + {b}}", "a_{n_1}+{b}"),
        ("\\boxed{\\boxed{3}}", "3"),
        ("\\boxed {\\{1, 2\\}}", "\\{1,2\\}"),
        ("\\fbox \\fbox{5}", "5"),
        ("{ \\boxed{7} and \\boxed{8", "7"),
        ("boxed", None),
    ],
)
def test_the_last_box(text, answer):
    assert extract(text, ["boxed"]) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 * 6 = 18\n#### 18", "18"),
        ("#### $1,800.00\n\nQuestion: and now?", "1800"),
        ("#### Solution\n3 * 6 = 18\n", None),
        ("so\n  #### x + 1\n", "x+1"),
        ("a #### 5", None),
    ],
)
def test_the_line_after_hashes(text, answer):
    assert extract(text, ["hashes"]) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 18.", "18"),
        ("So the answer is: **18**.", "18"),
        ("The answer is **18.**", "18"),
        ("Answer: $18", "18"),
        ("**Answer**: 18", "18"),
        ("**Final Answer:** \\(18\\)", "18"),
        ("Answer:\n18 dollars", "18"),
        ("The final answer is:\n\n\\[ \\frac{3}{4} \\]", "3/4"),
        ("The correct answer to the question is 18 dollars because they pay 3", "18"),
        ("the answer is 5, but no: the answer is 6. I hope the answer is helpful to you all.", "6"),
        ("The answer is that he has 18 apples.", "18"),
        ("The answer is 12 - 5 = 7", "7"),
        ("The answer is 1,000 dollars, which is a lot", "1000"),
        ("The answer is 18!", "18"),
        ("The answer is 3.5.", "3.5"),
        ("The answer is (B).", "B"),
        ("The answer is Evelyn.", "Evelyn"),
        ("the answer is (1, 2)", "(1,2)"),
        ("He answered 5 questions: 3 of them well.", None),
    ],
)
def test_what_the_text_says_is_the_answer(text, answer):
    assert extract(text, ["says"]) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("first 3, then 4 apples.", "4"),
        ("She pays $1,234.50 in all.", "1234.5"),
        ("12-5", "5"),
        ("It is -5 degrees", "-5"),
        ("It is \u22125 degrees", "-5"),
        ("that leaves 3/4 of it", "3/4"),
        ("that is \\frac{3}{4} of it", "3/4"),
        ("a rise of 25%", "25%"),
        ("at 7:30", "7:30"),
        ("none", None),
    ],
)
def test_the_last_number(text, answer):
    assert extract(text, ["last_number"]) == answer


def test_the_first_way_that_finds_something_wins():
    text = "\\boxed{1}\nThe answer is 2.\n#### 3\nOr 4?"
    assert [extract(text, [*EVERY[i:], *EVERY[:i]]) for i in range(4)] == ["1", "3", "2", "4"]
    assert extract(text, []) is None


@given(
    st.integers(-(10**9), 10**9), st.sampled_from(["The answer is {}.", "so \\boxed{{{}}}", "= {}"])
)
def test_an_integer_is_found_wherever_it_stands(n, form):
    assert extract("First 1, then 2.\n" + form.format(f"{n:,}"), EVERY) == str(n)


@given(st.text(max_size=80))
def test_an_extracted_answer_is_canonical(text):
    answer = extract(text + " the answer is " + text, EVERY)
    assert answer is None or canonical(answer) == answer


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "a",
            "1",
            "1,",
            " ",
            "\n",
            "*",
            "\\",
            "{",
            "\\boxed{",
            "\\boxed{1}",
            "\\boxed ",
            "answer:",
        ),
        *("the answer is ", "the answer is a b c d e\n", "#### a b c\n", "#### 1\n", "#### ", "**"),
    ],
)
@pytest.mark.parametrize("end", ["x", "the answer is 5"])
def test_a_megabyte_is_read_in_linear_time(piece, end):
    text = piece * (1_000_000 // len(piece)) + end
    began = perf_counter()
    for way in EVERY:
        extract(text, [way])
    assert perf_counter() - began < 3
