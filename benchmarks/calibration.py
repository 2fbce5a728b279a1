"""What the machine gives right now: memory bandwidth and matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from roofline import DTYPES, Machine

AGREE = 0.1
_READ = 512 << 20  # bytes; beyond what caches hold
_SIDE = {"cpu": 2048, "cuda": 8192}  # of square matrices that are large enough to be fast


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The machine before and after a measurement."""

    before: Machine
    after: Machine

    @property
    def machine(self) -> Machine:
        """The better of the two in each respect: a limit is what can be reached."""
        flops = {key: max(self.before.flops[key], self.after.flops[key]) for key in DTYPES}
        return Machine(max(self.before.bandwidth, self.after.bandwidth), flops)

    @property
    def notes(self) -> str:
        """What must be said of the measurement between the two."""
        moved = drift(self.before, self.after)
        return f"UNSTEADY: the machine changed by {moved:.0%}" if moved > AGREE else ""


def drift(before: Machine, after: Machine) -> float:
    """The largest relative change of what two calibrations found."""

    def change(a: float, b: float) -> float:
        return max(a, b) / min(a, b) - 1

    flops = [change(before.flops[key], after.flops[key]) for key in before.flops]
    return max(change(before.bandwidth, after.bandwidth), *flops)


def calibrate(device: str) -> Machine:
    """Measure memory bandwidth and matrix products with the threads that torch has now."""
    block = torch.ones(_READ // 4, device=device)
    bandwidth = _READ / _best(block.sum, device)
    side = _SIDE[device]
    flops: dict[str, float] = {}
    for dtype in DTYPES:
        matrix = torch.randn(side, side, device=device).to(getattr(torch, dtype))
        flops[dtype] = 2 * side**3 / _best(lambda matrix=matrix: matrix @ matrix, device)
    return Machine(bandwidth, flops)


def _best(call: Callable[[], object], device: str) -> float:
    return min(once(call, device) for _ in range(6))


def once(call: Callable[[], object], device: str = "cpu") -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
