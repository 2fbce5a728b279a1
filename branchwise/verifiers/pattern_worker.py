"""The process in which texts are matched: `python pattern_worker.py SECONDS`.

It reads lines `[pattern, whether it has to describe the whole, text]` in JSON and answers each with
`match` or `no match`. It imports nothing of the package, for it is started by its path. Time is
watched from outside; the alarm here ends a worker that nobody watches any more.
"""

import json
import re
import signal
import sys


def _alarm(seconds: float) -> None:
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _match(pattern: str, whole: bool, text: str) -> bool:
    expression = re.compile(pattern)
    return (expression.fullmatch(text) if whole else expression.search(text)) is not None


def main(seconds: float) -> None:
    """Answer lines until the input ends.

    Args:
        seconds: the most time for one line.
    """
    output = sys.stdout.buffer
    output.write(b"ready\n")
    output.flush()
    for line in sys.stdin.buffer:
        _alarm(seconds)
        found = _match(*json.loads(line))
        _alarm(0)
        output.write(b"match\n" if found else b"no match\n")
        output.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]))
