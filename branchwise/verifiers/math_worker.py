"""The process in which Math-Verify runs: `python math_worker.py SECONDS BYTES`.

It reads lines `[answer, target]` in JSON and answers each with a word. It imports nothing of the
package, for it is started by its path. Time is watched from outside; the alarm here ends a worker
that nobody watches any more.
"""

import json
import signal
import sys
from importlib import import_module


def _limit(memory: int) -> None:
    if sys.platform != "win32":
        import resource  # noqa: PLC0415  (there is none on Windows)

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _alarm(seconds: float) -> None:
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _compare(answer: str, target: str) -> str:
    math_verify = import_module("math_verify")
    # Its own time-outs are signals and print warnings; the process as a whole has one instead.
    gold, said = (
        math_verify.parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (target, answer)
    )
    if all(isinstance(part, str) for part in gold):
        return "unparsed target"
    if all(isinstance(part, str) for part in said):
        return "unparsed"
    return "equal" if math_verify.verify(gold, said, timeout_seconds=None) else "different"


def main(seconds: float, memory: int) -> None:
    """Answer lines until the input ends.

    Args:
        seconds: the most time for one line.
        memory: the most address space, in bytes.
    """
    _limit(memory)
    output = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no answer
    import_module("math_verify")
    output.write(b"ready\n")
    output.flush()
    for line in sys.stdin.buffer:
        _alarm(seconds)
        try:
            word = _compare(*json.loads(line))
        except (RecursionError, ValueError, TypeError, ArithmeticError, NotImplementedError):
            word = "unparsed"
        _alarm(0)
        output.write(word.encode() + b"\n")
        output.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
