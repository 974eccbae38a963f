"""The largest batch that fits: a search over a peak that grows with the batch."""

from __future__ import annotations

from collections.abc import Callable

MOST_SAMPLES = 1 << 20


def largest_batch(peak_at: Callable[[int], int], budget_bytes: int, *, least: int = 1) -> tuple[int, int]:
    """The largest batch size whose peak is within the budget, and that peak; `(0, peak of the least batch)` if none is.

    A peak is nearly affine in the batch, so a straight line through two of them lands close; from there the bracket
    is doubled and halved until it is one sample wide. Both neighbours have then been evaluated: the result is exact
    if the peak never falls as the batch grows.

    Args:
        peak_at: Bytes at a batch size of `least` or more.
        budget_bytes: What has to suffice.
        least: The smallest batch that can be run.
    """
    known: dict[int, int] = {}

    def fits(batch: int) -> bool:
        if batch not in known:
            known[batch] = peak_at(batch)
        return known[batch] <= budget_bytes

    if not fits(least):
        return 0, known[least]
    if not fits(least + 1):
        return least, known[least]
    slope = max(1, known[least + 1] - known[least])
    guess = min(MOST_SAMPLES, max(least + 1, least + (budget_bytes - known[least]) // slope))
    low, high, stride = least + 1, None, 1
    while high is None:
        if not fits(guess):
            high = guess
        elif guess == MOST_SAMPLES:
            return guess, known[guess]
        else:
            low, guess, stride = guess, min(MOST_SAMPLES, guess + stride), 2 * stride
    stride = 1
    while high - low > 1:
        middle = max(low + 1, high - stride) if stride < (high - low) // 2 else (low + high) // 2
        stride *= 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low, known[low]
