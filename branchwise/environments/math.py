"""The world of mathematics in words: a text that ends in a final answer."""

from typing import Literal

from pydantic import Field

from branchwise.core.answers import Way, extract
from branchwise.environments.writing import Text


class Math(Text):
    r"""The text so far, whose answer is the final answer in canonical form.

    Equal answers are equal strings, so that a vote can count them: `$18.00`, `18 dollars` and `18`
    are `18`, and `\frac{3}{4}` is `3/4` (`core.spelling.canonical` says what else falls away). A
    percent sign stays.

    Args:
        extract: where to look for the answer, the first that finds one wins; leave out what must
            not count.
        stop_at_answer: end the text as soon as a finished line holds a boxed answer, `####` or
            "the answer is", even if the model would go on.
        delimiter: what ends a step; with it in a policy's `stop`, each line is a step.
        continue_at_length: whether a step cut short by `max_tokens` may be continued by the next.

    Example:
        >>> from branchwise import Step, Task, run_sync
        >>> async def answer() -> str | None:
        ...     world = Math()
        ...     state = await world.reset(Task("How much are 6 tickets at $3?"))
        ...     return (await world.step(state, Step("6 * 3 = 18. The answer is $18.00."))).answer
        >>> run_sync(answer)
        '18'
    """

    kind: Literal["math"] = "math"
    extract: tuple[Way, ...] = Field(
        default=("boxed", "hashes", "says", "last_number"), min_length=1
    )
    stop_at_answer: bool = False

    def read(self, text: str) -> str | None:
        """The final answer in canonical form; None where no way finds one."""
        return extract(text, self.extract)

    def over(self, text: str) -> bool:
        """Whether a finished line holds an announced answer; any number is none."""
        if not self.stop_at_answer:
            return False
        announced: list[Way] = [way for way in self.extract if way != "last_number"]
        finished = text[: text.rfind("\n") + 1]
        return extract(finished, announced) is not None
