"""One process at a time in a directory."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from branchwise.core.errors import SpecError

FILE = "lock"


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keep others out of a directory for as long as the block lasts.

    The system holds the lock, so it ends with its process, however that ends. Where there are no
    such locks (Windows, some network file systems) nobody is kept out.

    Args:
        folder: the directory; made where it is missing.

    Raises:
        SpecError: another process is in there, or the directory cannot be written.
    """
    try:
        import fcntl  # noqa: PLC0415  (not on every system)
    except ImportError:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SpecError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(file, 32, 0).decode().strip()
            raise SpecError(
                f"another process{f' ({owner})' if owner else ''} is writing to {folder}",
                hint="wait for it, or give another directory with --out",
            ) from error
        except OSError:
            pass  # a file system without locks
        os.truncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(file)
