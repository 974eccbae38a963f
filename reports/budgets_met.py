"""Budgets kept: seven networks, three scopes, three budgets each, planned, run on fake tensors and measured.

    python reports/budgets_met.py > reports/budgets_met.txt      (about 5 minutes, one thread; needs the data files)
    python reports/budgets_met.py mcunet-5fps                    (only these)

Exits with 1 if a single row is not met to the byte.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial

import torch
from subjects import SUBJECTS, scope_range

from medyate_planner.api import request_of, verify
from medyate_planner.planfile import plan_from
from medyate_planner.planning.plan import ImportanceRef, Plan, Sampling
from medyate_planner.planning.request import SCOPES, PlanRequest
from medyate_planner.planning.strategies import optimal
from medyate_planner.reporting.verification import Verification
from medyate_planner.subject import Subject

BATCH = 4
SHARES = (0.02, 0.10, 0.40)
GAP = 1e-3
TIME_LIMIT_SECONDS = 60.0
ROW_OF_SCOPE = {"update": "update", "training": "training", "peak": "live peak"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One plan and its real step, in the bytes that its scope limits."""

    plan: Plan
    seen: Verification
    seconds: float

    @property
    def amounts(self) -> tuple[int, int, int]:
        """Predicted by the plan, in the dry run, measured."""
        found = next(row for row in self.seen.categories if row.name == ROW_OF_SCOPE[self.plan.scope])
        return found.predicted_bytes, found.dry_run_bytes, found.measured_bytes

    @property
    def bound_bytes(self) -> int | None:
        """What the planner holds against a budget of scope `peak`."""
        return self.plan.predicted.live_peak_bound_bytes if self.plan.scope == "peak" else None

    @property
    def met(self) -> bool:
        """All three figures agree and fit, so do all other categories, and no bound is between them and the budget."""
        predicted, dry, measured = self.amounts
        ceiling = self.plan.budget_bytes if self.bound_bytes is None else self.bound_bytes
        return self.seen.ok and predicted == dry == measured <= ceiling <= self.plan.budget_bytes


def main(names: list[str]) -> int:
    """Print one table per network; returns 1 unless every budget is met."""
    torch.set_num_threads(1)
    shares = ", ".join(f"{share:.0%}" for share in SHARES)
    print(
        f"Budgets at {shares} of the way from the smallest that can be met to what strategy `full` takes, batch "
        f"{BATCH}.\nChannels are valued by their mean squared weights, not by gradients. Gap {GAP:g}, at most "
        f"{TIME_LIMIT_SECONDS:g} s.\nPredicted: closed form (live peak: the dry run when it was planned). Dry run: "
        "fake tensors. Measured: a real step.\nBound: closed form of the live peak, which the planner fits into the "
        "budget. Used: measured / budget. s: to build\nand solve the program. Met: predicted = dry run = measured in "
        "all categories, and measured <= bound <= budget.\n"
    )
    rows = [row for name in names or SUBJECTS for row in _of_network(name)]
    met = sum(row.met for row in rows)
    print(f"{met} of {len(rows)} met as predicted, in the dry run and as measured")
    return 0 if met == len(rows) else 1


def _of_network(name: str) -> list[Row]:
    subject = SUBJECTS[name](BATCH)
    layers, channels = len(subject.graph.units), sum(layer.channels for layer in subject.graph.layers)
    print(f"{name}: {subject.graph.num_parameters:,} parameters, {layers} layers and norms, {channels:,} channels\n")
    print(f"{'scope':10}{'budget':>13}{'predicted':>13}{'dry run':>13}{'measured':>13}{'bound':>13}{'used':>8}"
          f"{'met':>5}{'layers':>8}{'channels':>10}{'biases':>8}  {'status':9}{'gap':>8}{'s':>7}")  # fmt: skip
    rows, ranges = [], []
    for scope in SCOPES:
        ask = partial(_request, subject, scope)
        smallest, largest = scope_range(ask)
        ranges.append(f"{scope} {smallest:,} to {largest:,}")
        for share in SHARES:
            row = _row(subject, ask(smallest + round(share * (largest - smallest))))
            rows.append(row)
            _show(row)
    print(f"smallest budget and `full`, bytes: {'; '.join(ranges)}\n", flush=True)
    return rows


def _request(subject: Subject, scope: str, budget_bytes: int) -> PlanRequest:
    further = {"scope": scope, "gap_ratio": GAP, "time_limit_seconds": TIME_LIMIT_SECONDS}
    return request_of(subject, None, budget_bytes, further)


def _row(subject: Subject, request: PlanRequest) -> Row:
    """What `medyate plan` and `medyate verify` do, with a clock around the solver."""
    start = time.perf_counter()
    decision = optimal(request)
    seconds = time.perf_counter() - start
    plan = plan_from(subject, request, decision, Sampling(), {}, ImportanceRef(source=request.importance.source))
    return Row(plan=plan, seen=verify(subject, plan), seconds=seconds)


def _show(row: Row) -> None:
    plan = row.plan
    quotas = plan.quotas()
    amounts = "".join(f"{amount:>13,}" for amount in (plan.budget_bytes, *row.amounts))
    bound = "" if row.bound_bytes is None else f"{row.bound_bytes:,}"
    print(
        f"{plan.scope:10}{amounts}{bound:>13}{row.amounts[-1] / plan.budget_bytes:>8.2%}{'yes' if row.met else 'NO':>5}"
        f"{len(quotas):>8}{sum(quotas.values()):>10,}{len(plan.biases):>8}  {plan.status:9}{plan.gap_ratio:>8.1e}"
        f"{row.seconds:>7.2f}",
        flush=True,
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main(sys.argv[1:]))
