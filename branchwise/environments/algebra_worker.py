"""Works out one SymPy expression, inside a sandbox: to read one is to run it."""

import sys


def main() -> None:
    """Read an expression and write what it comes to."""
    from sympy.parsing.sympy_parser import (  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs]  (an extra)
        convert_xor,
        implicit_multiplication,
        parse_expr,
        standard_transformations,
    )

    ways = (*standard_transformations, convert_xor, implicit_multiplication)
    try:
        value: object = parse_expr(sys.stdin.read(), transformations=ways)
        value = value.doit() if hasattr(value, "doit") else value  # type: ignore[attr-defined]
    except Exception as error:  # noqa: BLE001  (what is wrong with an expression is for the model)
        value = f"Error: {type(error).__name__}: {error}"
    sys.stdout.write(str(value))


if __name__ == "__main__":
    main()
