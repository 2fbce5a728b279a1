"""One way of writing each answer: votes, graders and environments compare answers as strings.

Everything here is plain text work in linear time; what needs algebra is a verifier's business.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

LONGEST = 1000
"""An answer of more characters is prose: it is compared as it stands."""


def canonical(answer: str) -> str:
    r"""The one spelling of an answer, so that equal answers are equal strings.

    Markup, LaTeX delimiters, currencies, units in words, thousands separators and the punctuation
    of a sentence fall away; fractions are reduced; a percent sign stays, for 50 % is not 50.
    Decimals and fractions keep their kind: `0.5` and `1/2` are two spellings.

    Example:
        >>> [canonical(x) for x in ("$1,000.00", "**18 pears**.", r"\(\frac{6}{8}\)", "50 percent")]
        ['1000', '18', '3/4', '50%']
    """
    text = " ".join(answer.split())
    if len(text) > LONGEST:
        return text
    return _canonical(text)


@lru_cache(maxsize=4096)
def _canonical(text: str) -> str:
    text = plain(text)
    while (shorter := _peel(text)) != text:
        text = shorter
    return text


def number(answer: str) -> Fraction | None:
    """The exact value of a canonical answer; None where it is no plain number or a percentage.

    Example:
        >>> number("0.75") == number("3/4")
        True
    """
    return Fraction(answer) if _PLAIN.fullmatch(answer) else None


_PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+|/[0-9]*[1-9][0-9]*)?")

_MINUS = "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"
_ASCII = dict.fromkeys(_MINUS, "-") | dict(
    zip("\u2044\u2215\uff0e\uff0c\uff05\u066a\uff04\u2019", "//.,%%$'", strict=True)
)


def plain(text: str) -> str:
    """The text with ASCII digits and signs in place of their typographic and foreign twins."""
    if text.isascii():
        return text
    return "".join(_ASCII.get(one) or str(unicodedata.decimal(one, one)) for one in text)


# What a pair of these encloses is the answer itself.
_WRAPPERS = (
    *(("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"\boxed{", "}"), ("{", "}")),
    *(('"', '"'), ("'", "'"), ("“", "”")),
)
_BARE = re.compile(r"\(([A-Za-z]|[^(),]*[^(),A-Za-z][^(),]*)\)")

# Spellings without a meaning of their own, replaced wherever they stand.
_SPELLINGS = tuple(
    (re.compile(pattern), spelling)
    for pattern, spelling in (
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\!", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\{,\}", ","),
        (r"(?<=[0-9])(?:\\[,;: ]|~)(?=[0-9])", ""),
        (r"\\[,;: ]|~|\\quad(?![A-Za-z])", " "),
        (r"\\([%$#&])", r"\1"),
        (r"(?:\^\{?\\circ\}?|\\degree|°)(?: ?[CF]\b)?", ""),
        (r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\{([^{}]*)\}", r" \1"),
        (r"(?<!\w)\*\*([^*]+)\*\*(?!\w)", r"\1"),
        (r"([_^])\{(\w)\}", r"\1\2"),
        (r"  +", " "),
    )
)

_LEAD = re.compile(
    r"(?:[ =:≈]|\\approx(?![A-Za-z])|[A-Za-z] ?=(?!.*=)|[-0-9 .+*/\u00d7\u00f7()$^]*[0-9)] ?=)+"
)

INTEGER = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+"
_SIZE = (
    r"(?:(?P<whole>[0-9]+) ?)?\\frac ?(?:\{(?P<top>-?[0-9]+)\} ?\{(?P<bottom>[0-9]+)\}"
    r"|(?P<t>[0-9])(?P<b>[0-9]))"
    r"|(?:(?P<ones>[0-9]+) )?(?P<over>[0-9]+) ?/ ?(?P<under>[0-9]+)"
    rf"|(?P<decimal>(?:{INTEGER})(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{{1,2}})?|\.[0-9]+)"
)
# Words that change what the number before them means: they are no units.
_NO_UNIT = (
    "or|and|to|plus|minus|times|over|mod|modulo|choose|by|pi|sqrt|squared|cubed|factorial|dozen"
    "|hundred|thousand|million|billion|trillion|am|pm|is|are|base"
)
_AMOUNT = re.compile(
    r"(?P<sign>[-+]?) ?(?:US)?[$€£¥₹]? ?(?P<minus>-?)"
    rf"(?:{_SIZE}) ?(?P<percent>%|(?:percent|per cent)(?![A-Za-z]))?"
    rf"(?: ?[$€£¥₹]|[ -](?!(?:{_NO_UNIT})(?![A-Za-z]))[A-Za-z]{{2,}}(?:[ '/.-]{{1,2}}[A-Za-z]+)*)?",
    re.IGNORECASE,
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_LOOSE = re.compile(r"(?<!\w) | (?!\w)")


def _peel(text: str) -> str:
    """One layer nearer to the canonical form; the same text where none is left."""
    text = text.strip(" *_`").rstrip(" .,;:?")
    for opening, closing in _WRAPPERS:
        if text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            if len(text) > len(opening) + len(closing) and _encloses(inner, closing):
                return inner
    if bare := _BARE.fullmatch(text):
        return bare[1]
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    if (lead := _LEAD.match(text)) and lead.end() < len(text):
        return text[lead.end() :]
    if amount := _AMOUNT.fullmatch(text):
        return _spelled(amount, text)
    return text if _WORD.search(text) else _LOOSE.sub("", text)


def _encloses(inner: str, closing: str) -> bool:
    if closing != "}":
        return closing not in inner
    depth = 0
    for character in inner:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def _spelled(amount: re.Match[str], text: str) -> str:
    part = amount.groupdict(default="")
    if part["decimal"]:
        size = format(Decimal(part["decimal"].replace(",", "")), "f")
        size = size.rstrip("0").rstrip(".") if "." in size else size
    else:
        under = int(part["bottom"] or part["b"] or part["under"])
        if under == 0:
            return text
        over = int(part["top"] or part["t"] or part["over"])
        size = str(int(part["whole"] or part["ones"] or 0) + Fraction(over, under))
    negative = (part["sign"] == "-") ^ (part["minus"] == "-") ^ size.startswith("-")
    size = size.removeprefix("-")
    sign = "-" if negative and size != "0" else ""
    return sign + size + ("%" if part["percent"] else "")
