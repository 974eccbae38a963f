"""The allocator's own peak: what torch really asked for, workspace of kernels and rounding included."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch


def allocator_peak_growth(run: Callable[[], object], device: str) -> int:
    """Bytes by which the allocator's total rose at its highest during `run`, above what it held before.

    On CUDA by its statistics; elsewhere by the memory events of torch's profiler, which see what goes through torch's
    allocator (a kernel library may have one of its own beside it).
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's library announces its stages on stderr
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return int(peak)
