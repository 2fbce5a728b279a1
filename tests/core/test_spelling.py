from fractions import Fraction
from time import perf_counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from branchwise.core.spelling import canonical, number

EIGHTEEN = [
    *("18", "18.00", "18.", "$18", "18 dollars", "18€", "US$18", "+18", "018", "**18**", "*18*"),
    *(
        "`18`",
        "**18.**",
        "\\(18\\)",
        "\\[ 18 \\]",
        "$18$",
        "$$18$$",
        "\\$18",
        "\\boxed{18}",
        "{18}",
    ),
    *("(18)", "x = 18", "3*6 = 18", "2 * (3 + 6) = 18", "= 18", "18\\text{ dollars}", "36/2"),
    *("18\\,\\text{cm}", "18 dollars per hour", "18 km/h", "18-inch", "18^\\circ", "18 degrees"),
    *(
        "\\frac{36}{2}",
        "\uff11\uff18",
        "١٨",
        "1.8e1",
        "\\approx 18",
        '"18"',
        "\u201c18\u201d",
        "18 \n",
    ),
]


@pytest.mark.parametrize("spelling", EIGHTEEN)
def test_eighteen_has_one_spelling(spelling):
    assert canonical(spelling) == "18"


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("1,000", "1000"),
        ("1,234,567.50", "1234567.5"),
        ("1{,}000", "1000"),
        ("10,\\!000", "10000"),
        ("1\\,000", "1000"),
        ("3/4", "3/4"),
        ("6 / 8", "3/4"),
        ("\\dfrac{3}{4}", "3/4"),
        ("-\\frac{3}{4}", "-3/4"),
        ("\\frac12", "1/2"),
        ("2 1/2", "5/2"),
        ("2\\frac{1}{2}", "5/2"),
        ("\u22125", "-5"),
        ("-$5.50", "-5.5"),
        ("$-5", "-5"),
        ("-0.0", "0"),
        (".5", "0.5"),
        ("1e3", "1000"),
        ("50%", "50%"),
        ("50 \\%", "50%"),
        ("50 percent", "50%"),
        ("(B)", "B"),
        ("\\text{(B)}.", "B"),
        ("\\text{Evelyn}", "Evelyn"),
        ("y = 2x + 1", "2x+1"),
        ("\\left( 1, 2 \\right)", "(1,2)"),
        ("7_{8}", "7_8"),
    ],
)
def test_other_spellings(spelling, expected):
    assert canonical(spelling) == expected


@pytest.mark.parametrize(
    "text",
    [
        "5!",
        "1/0",
        "3:4",
        "5 million",
        "5 pm",
        "1,2",
        "x=1,y=2",
        "5-3",
        "2**3",
        "$5$ and $6$",
        "5 x",
    ],
)
def test_what_means_something_else_stays(text):
    assert canonical(text) == text


PIECES = st.sampled_from(
    [
        *"10,./-$%ex= *(){}\\:",
        "\\frac",
        "\\text{",
        "\\boxed{",
        "\\(",
        "\\)",
        "dollars",
        "percent",
        "^\\circ",
        "000",
        "\\,",
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=40))
@example("1e99")
@example("0e9")
@example("x" * 2000)
def test_a_canonical_answer_is_its_own_spelling(text):
    assert canonical(canonical(text)) == canonical(text)


@given(st.integers(-(10**12), 10**12))
def test_separators_and_currencies_keep_an_integer(n):
    assert canonical(f"**${n:,}.00**") == str(n)


@given(st.fractions())
def test_a_fraction_keeps_its_value(x):
    written = rf"\frac{{{x.numerator}}}{{{x.denominator}}}"
    assert number(canonical(written)) == number(canonical(f"{x}")) == x


def test_only_plain_numbers_have_a_value():
    assert [number(text) for text in ("-0.25", "3/4", "50%", "1/0", "x", "")] == [
        *(Fraction(-1, 4), Fraction(3, 4)),
        *(None, None, None, None),
    ]


@pytest.mark.parametrize("piece", ["(", "{", "$", "1 ", "-1=", "1/", "\\frac", "1 a.", "\\text{a}"])
def test_a_long_answer_is_read_in_no_time(piece):
    began = perf_counter()
    canonical((piece * 1000)[:1000])
    assert perf_counter() - began < 3
