"""A pocket calculator that is exact and cannot be made to run anything."""

from branchwise.core.arithmetic import evaluate, spelled


def calculator(expression: str) -> str:
    """Work out an arithmetic expression exactly, such as 12*7, (3+4)/5, 15% of 80 or sqrt(49).

    Args:
        expression: numbers, brackets, + - * / ^ and %, and the functions abs, min, max, round,
            floor, ceil, gcd, lcm, factorial and sqrt.

    Raises:
        ValueError: it cannot be worked out; the message says why.

    Example:
        >>> calculator("12*7"), calculator("8/3")
        ('84', '8/3, about 2.66667')
    """
    value = evaluate(expression)
    text = spelled(value)
    if "/" not in text:
        return text
    try:
        return f"{text}, about {float(value):.6g}"
    except OverflowError:
        return text
