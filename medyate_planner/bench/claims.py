"""Whether what others found holds here: two contenders at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medyate_planner.bench.analysis import Comparison, compared, holm
from medyate_planner.bench.matrix import Claim, Matrix
from medyate_planner.bench.records import Record

Verdict = Literal["holds", "does not hold", "not shown", "no data"]
_LEVEL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One pair of a claim; `p` of the paired t-test is corrected (Holm) over all pairs of all claims."""

    claim: Claim
    first: str
    second: str
    comparison: Comparison | None
    p: float | None
    verdict: Verdict


def findings(matrix: Matrix, runs: Sequence[Record]) -> list[Finding]:
    """Every pair of every claim.

    `better` holds where the mean difference is above 0 and its corrected p below 0.05, and does not where it is below 0
    and significant. `same` holds where the 90 % interval of the mean difference lies within the margin (two one-sided
    tests at 5 %), and does not where the interval lies outside of it. All else is not shown.

    Raises:
        InputError: scipy is not installed.
    """
    pairs = [(claim, first, second) for claim in matrix.claims for first, second in claim.pairs]
    made = [compared(matrix, runs, first, second) for _, first, second in pairs]
    corrected = holm([None if found is None else found.t_p for found in made])
    return [
        Finding(claim=claim, first=first, second=second, comparison=found, p=p, verdict=_verdict(claim, found, p))
        for (claim, first, second), found, p in zip(pairs, made, corrected, strict=True)
    ]


def _verdict(claim: Claim, found: Comparison | None, corrected: float | None) -> Verdict:
    if found is None or found.pairs < 2:
        return "no data"
    if claim.expect == "better":
        if corrected is None or corrected >= _LEVEL:
            return "not shown"
        return "holds" if found.mean_difference > 0 else "does not hold"
    low, high = found.interval
    if -claim.margin < low and high < claim.margin:
        return "holds"
    return "does not hold" if low > claim.margin or high < -claim.margin else "not shown"
