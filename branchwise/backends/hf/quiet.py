"""transformers without its bars and reports: the terminal is not theirs alone."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from transformers.utils import logging as chatter


@contextmanager
def without_reports() -> Generator[None]:
    """No words of transformers inside but its errors; afterwards it is as talkative as it was."""
    level = chatter.get_verbosity()
    chatter.set_verbosity_error()
    try:
        yield
    finally:
        chatter.set_verbosity(level)


@contextmanager
def without_bars() -> Generator[None]:
    """No bars of transformers inside; afterwards they are as they were."""
    bars = chatter.is_progress_bar_enabled()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            chatter.enable_progress_bar()
