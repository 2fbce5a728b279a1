"""The process in which Reasoning Gym scores: `python reasoning_gym_worker.py SECONDS BYTES`.

It reads lines `[problem, target, answer]` in JSON and answers each with `[score, detail]`; a score
of null is none. It imports nothing of the package, for it is started by its path. Time is watched
from outside; the alarm here ends a worker that nobody watches any more.
"""

import json
import signal
import sys
from importlib import import_module
from types import CodeType
from typing import Any, TypedDict

_MATHEMATICS = frozenset(
    [
        *("Symbol", "Integer", "Float", "Rational", "Function", "Pow", "Mul", "Add", "pi", "oo"),
        *("factorial", "factorial2", "sqrt", "cbrt", "exp", "log", "ln", "abs", "Abs", "sign"),
        *("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc"),
        *("sinh", "cosh", "tanh", "coth", "sech", "csch"),
        *("asinh", "acosh", "atanh", "acoth", "asech", "acsch"),
        *("Integral", "erf", "erfi", "erfc", "Si", "Ci", "Ei", "li"),
        "sympy",  # its parser carries out `from sympy import *` itself
    ]
)


class _Problem(TypedDict):
    name: str
    size: int
    seed: int
    options: dict[str, object]
    index: int


class _Scorers:
    """The families' scorers, which trust answers more than one should.

    Several hand an answer to `eval`, or to SymPy, which does. While they are at work, code made of
    a string may name nothing but mathematics.
    """

    def __init__(self) -> None:
        self._create = import_module("reasoning_gym").create_dataset
        self._last: tuple[str, Any] = ("", None)
        self._guarded = False
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._guarded and event == "exec":
            code = arguments[0]
            if isinstance(code, CodeType) and code.co_filename == "<string>":
                nested = any(isinstance(const, CodeType) for const in code.co_consts)
                if nested or any(len(n) > 1 and n not in _MATHEMATICS for n in code.co_names):
                    raise ValueError("more than mathematics")

    def _family(self, problem: _Problem) -> Any:
        """The family of a problem, which may take long to read; usually that of the one before."""
        key = json.dumps({**problem, "index": 0})
        if key != self._last[0]:
            name, size, seed = problem["name"], problem["size"], problem["seed"]
            self._last = (key, self._create(name, size=size, seed=seed, **problem["options"]))
        return self._last[1]

    def score(self, problem: _Problem, target: str, answer: str) -> list[object]:
        """The score and, in a word, how it came about."""
        family = self._family(problem)
        entry = family[problem["index"]]
        if (entry["answer"] or "") != target:
            return [None, "the installed reasoning-gym makes another problem of the same name"]
        self._guarded = True
        try:
            score = float(family.score_answer(answer, entry))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  (scorers raise what they like at a wrong answer)
            return [0.0, f"the scorer raised {type(error).__name__}"]
        finally:
            self._guarded = False
        if not 0 <= score <= 1:
            return [None, f"the scorer gave {score}"]
        return [score, "right" if score == 1 else "partly right" if score else "wrong"]


def _limit(memory: int) -> None:
    if sys.platform != "win32":
        import resource  # noqa: PLC0415  (there is none on Windows)

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _alarm(seconds: float) -> None:
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main(seconds: float, memory: int) -> None:
    """Answer lines until the input ends.

    Args:
        seconds: the most time for one line.
        memory: the most address space, in bytes.
    """
    _limit(memory)
    output = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no answer
    scorers = _Scorers()
    output.write(b"ready\n")
    output.flush()
    for line in sys.stdin.buffer:
        _alarm(seconds)
        try:
            said = scorers.score(*json.loads(line))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  (of the family, its options or its index)
            said = [None, f"there is no such problem: {type(error).__name__}: {error}"[:300]]
        _alarm(0)
        output.write(json.dumps(said).encode() + b"\n")
        output.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
