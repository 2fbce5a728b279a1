"""The world of the text so far: what is written stays written, and nothing answers back."""

from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.config import Config
from branchwise.core.errors import WorldError
from branchwise.core.types import State, Step, Task

NO_TOOLS = "There are no tools here. Answer in words."


class Text(Config):
    """The rules that every world of text shares; `read` and `over` are what differs.

    A step that the model ended (`end`), or one that says nothing, ends the text, and so does one
    that a stop string other than the delimiter ended. A step cut short by `max_tokens` or by the
    server is cut: half an answer is never a final one.

    Args:
        delimiter: what ends a step; with it in a policy's `stop`, each line is a step.
        continue_at_length: whether a step cut short by `max_tokens` may be continued by the next.
    """

    instant: ClassVar[bool] = True
    delimiter: str = Field(default="\n", min_length=1)
    continue_at_length: bool = False

    async def reset(self, task: Task) -> State:  # noqa: ARG002  (every text begins empty)
        """The empty text."""
        return State(snapshot="")

    async def step(self, state: State, action: Step) -> State:
        """The text with the step added.

        Raises:
            WorldError: the state is not one of this world.
        """
        if not isinstance(state.snapshot, str):
            raise WorldError(f"a text was expected as the state's snapshot: {state.snapshot!r:.80}")
        text = state.snapshot + action.text
        match action.finish:
            case "tools":
                return State(snapshot=text, observation=NO_TOOLS)
            case "filter":
                return State(snapshot=text, cut=True)
            case "length" if not self.continue_at_length:
                return State(snapshot=text, cut=True)
            case "length":
                ends = False
            case "stop":
                ends = self.delimiter not in action.text
            case "end":
                ends = True
        if ends or not (action.text or action.tokens) or self.over(text):
            return State(snapshot=text, done=True, answer=self.read(text))
        return State(snapshot=text)

    def read(self, text: str) -> str | None:
        """The final answer of a finished text; None where it holds none."""
        return text.strip() or None

    def over(self, text: str) -> bool:  # noqa: ARG002  (here only the model ends its text)
        """Whether the text is finished although the model would go on."""
        return False


class Writing(Text):
    r"""The text so far is the world; a finished text is its own answer.

    Args:
        delimiter: what ends a step; with it in a policy's `stop`, each line is a step.
        continue_at_length: whether a step cut short by `max_tokens` may be continued by the next.

    Example:
        >>> from branchwise import Step, Task, run_sync
        >>> async def write() -> str | None:
        ...     world = Writing()
        ...     state = await world.reset(Task("Count to two."))
        ...     for step in (Step("One.\n", finish="stop"), Step("Two.", finish="end")):
        ...         state = await world.step(state, step)
        ...     return state.answer
        >>> run_sync(write)
        'One.\nTwo.'
    """

    kind: Literal["writing"] = "writing"
