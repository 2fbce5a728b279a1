"""Where a sample ends: stop strings that servers cut off, keep, or do not heed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from branchwise.core.types import Finish


@dataclass(frozen=True, slots=True)
class Sample:
    """What a server said of one sample.

    Args:
        text: the text.
        pieces: the bytes of each token, where the server gives them.
        tokens: the token ids, where it gives them.
        logprobs: one for each piece.
        finish: why it ended, as far as the server says.
    """

    text: str
    pieces: tuple[bytes, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish: Finish = "stop"

    def upto(self, size: int) -> Sample:
        """The sample to the end of the token that holds the text's `size`-th character."""
        for count, end in enumerate(accumulate(map(len, self.pieces)), 1):
            head = b"".join(self.pieces[:count]).decode(errors="replace")
            if end and len(head) >= size and self.text[:size] == head[:size]:
                return replace(
                    self,
                    text=head,
                    pieces=self.pieces[:count],
                    tokens=self.tokens[:count],
                    logprobs=self.logprobs[:count],
                )
        return replace(self, text=self.text[:size], tokens=(), pieces=(), logprobs=())


def ended(  # noqa: PLR0911  (one return for each way to end)
    sample: Sample,
    stop: Sequence[str],
    *,
    matched: str | bool | None,
    note: Callable[[str], None],
) -> Sample:
    """The sample with the stop string that ended it, and with the reason why it ended.

    A server that cuts the stop string off and does not say whether it was one, or the model's own
    end, is taken at the first where there is text and at the second where there is none.

    Args:
        sample: as the server gave it.
        stop: the stop strings that were asked for.
        matched: the stop string that the server says ended it; False where it says that none did;
            None where it says nothing.
        note: is told when the server does not heed stop strings.

    Example:
        >>> ended(Sample("4"), ["."], matched=None, note=print).text
        '4.'
    """
    if sample.finish in {"tools", "filter"}:
        return sample
    if (end := _first_end(sample.text, stop)) is not None:
        cut = sample.upto(end)
        if len(cut.text) < len(sample.text):
            note("the server does not heed stop strings: samples are cut here")
        return replace(cut, finish="stop")
    if sample.finish == "length":
        return sample
    if not stop or matched is False or (isinstance(matched, str) and matched not in stop):
        return replace(sample, finish="end")
    # The tokens may still spell what was cut off the text.
    spelled = b"".join(sample.pieces).decode(errors="replace")
    if spelled.startswith(sample.text) and (end := _first_end(spelled, stop)) is not None:
        return replace(replace(sample, text=spelled).upto(end), finish="stop")
    if matched is None and not sample.text:
        # Read as the model's end: a search that took it for one more step would never come to rest.
        return replace(sample, finish="end")
    word = matched if isinstance(matched, str) else stop[0] if len(stop) == 1 else ""
    # The token ids lack those of the stop string.
    return replace(sample, text=sample.text + word, tokens=() if word else sample.tokens)


def _first_end(text: str, stop: Sequence[str]) -> int | None:
    ends = [text.index(word) + len(word) for word in stop if word and word in text]
    return min(ends, default=None)
