"""The planner's figures: how far above greedy and evolutionary search the optimum lies, and what proving it costs.

`python reports/planner.py > reports/planner.txt` (needs the data files; about half an hour). Times are those of one
core, without torch.export; the solver is HiGHS, one thread.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import numpy as np
import torch
from subjects import scope_range, zoo_importance, zoo_subject

from medyate_planner.importance import curves
from medyate_planner.importance.energy import Importance
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.request import PlanRequest
from medyate_planner.planning.strategies import STRATEGIES
from medyate_planner.subject import Subject, subject_of

NETWORKS = ("mcunet-5fps", "mbv2-w0.35", "proxyless-w0.3")
SCOPES = ("update", "training", "peak")
GAPS = (1e-3, 0.0)
OBJECTIVE, METRIC = "norm", "raw"  # the objective whose curves are curved
BATCH = 8
BUDGETS = 10
TIME_LIMIT = 60.0
BLOCKS = 333  # of three layers each, and a stem and a head


def main() -> None:
    torch.set_num_threads(1)
    cases = {}
    for name in NETWORKS:
        subject = zoo_subject(name, BATCH)
        cases[name] = (subject, zoo_importance(name, subject))
    print("1. Optimum against greedy by density and evolutionary search (48 plans, 60 generations)")
    print(f"   scope training, batch {BATCH}; value: the interpolated objective, which all three maximise; times in s")
    print()
    for name, (subject, importance) in cases.items():
        compare(name, subject, importance)
    print(f"2. Time to plan, {BUDGETS} budgets from the smallest possible to everything, geometric; times in s")
    print()
    for name, (subject, importance) in cases.items():
        for scope in SCOPES:
            time_plans(
                name,
                PlanRequest(
                    memory=subject.memory,
                    importance=importance,
                    objective=OBJECTIVE,
                    metric=METRIC,
                    budget_bytes=1,
                    scope=scope,
                ),
            )
    print()
    print("3. Value lost through interpolation: V of the plan against the optimum with a breakpoint at every integer")
    print("   scope training; both solved at gap 0, at most 60 s each")
    print()
    for name, (subject, importance) in cases.items():
        interpolation(
            name,
            PlanRequest(
                memory=subject.memory,
                importance=importance,
                objective=OBJECTIVE,
                metric=METRIC,
                budget_bytes=1,
                gap_ratio=0.0,
            ),
        )
    print()
    print(f"4. A chain of {BLOCKS} inverted residual blocks, {3 * BLOCKS + 1} layers, random importance, gap 1e-3")
    print()
    large()


def budgets_of(request: PlanRequest, count: int = BUDGETS) -> list[int]:
    """From 2 % above the smallest possible budget to the one in which everything fits."""
    low, high = scope_range(lambda budget: replace(request, budget_bytes=budget))
    return [round(low * 1.02 * (high / (low * 1.02)) ** (i / (count - 1))) for i in range(count)]


def solve(request: PlanRequest, strategy: str = "optimal") -> tuple[Decision, float]:
    began = time.perf_counter()
    return STRATEGIES[strategy](request), time.perf_counter() - began


def compare(name: str, subject: Subject, importance: Importance) -> None:
    print(f"{name}")
    print(
        f"{'budget B':>12} {'optimum':>10} {'greedy':>8} {'evolution':>9} | {'1e-3':>6} {'gap 0':>6} {'greedy':>7} "
        f"{'evolution':>9}  status at gap 0"
    )
    base = PlanRequest(
        memory=subject.memory,
        importance=importance,
        objective=OBJECTIVE,
        metric=METRIC,
        budget_bytes=1,
        time_limit_seconds=TIME_LIMIT,
    )
    margins: dict[str, list[float]] = {"greedy": [], "evolutionary": []}
    for budget in budgets_of(base):
        request = replace(base, budget_bytes=budget)
        quick, quick_s = solve(request)
        exact, exact_s = solve(replace(request, gap_ratio=0.0))
        best = max(request.interpolated_value(d.updates) for d in (quick, exact))
        cells = []
        for other, found in margins.items():
            decision, seconds = solve(request, other)
            margin = best / request.interpolated_value(decision.updates) - 1
            found.append(round(margin, 12) + 0.0)  # no -0.00%
            cells.append((found[-1], seconds))
        (greedy, greedy_s), (evolved, evolved_s) = cells
        print(
            f"{budget:12,} {best:10.4f} {greedy:+8.2%} {evolved:+9.2%} | {quick_s:6.2f} {exact_s:6.2f} {greedy_s:7.2f} "
            f"{evolved_s:9.2f}  {exact.status}, gap {exact.gap_ratio:.1e}",
            flush=True,
        )
    for other, found in margins.items():
        below = sum(m < -1e-9 for m in found)
        print(
            f"   above {other}: {min(found):+.2%} to {max(found):+.2%}, median {statistics.median(found):+.2%}", end=""
        )
        print(f"; below it in {below} of {len(found)}")
    print()


def time_plans(name: str, request: PlanRequest) -> None:
    budgets = budgets_of(request)
    for gap in GAPS:
        times, open_gaps = [], []
        for budget in budgets:
            asked = replace(request, budget_bytes=budget, gap_ratio=gap, time_limit_seconds=TIME_LIMIT)
            decision, seconds = solve(asked)
            times.append(seconds)
            if decision.status != "optimal":
                open_gaps.append(decision.gap_ratio)
        left = f"; {len(open_gaps)} stopped at {TIME_LIMIT:.0f} s, gap up to {max(open_gaps):.1e}" if open_gaps else ""
        print(
            f"{name:15} {request.scope:9} gap {gap:5g}: median {statistics.median(times):6.2f}, largest "
            f"{max(times):6.2f}{left}",
            flush=True,
        )


def interpolation(name: str, base: PlanRequest) -> None:
    for budget in budgets_of(base, 5)[1:4]:
        request = replace(base, budget_bytes=budget, time_limit_seconds=TIME_LIMIT)
        decision, seconds = solve(request)
        value = request.value(decision.updates)
        usual, curves.MAX_BREAKPOINTS = curves.MAX_BREAKPOINTS, 10**9
        try:
            everywhere = replace(request)
            exact, exact_s = solve(everywhere)
            best, bound = everywhere.value(exact.updates), exact.bound or 0.0
        finally:
            curves.MAX_BREAKPOINTS = usual
        print(
            f"{name:15} {budget:10,} B: V {value:9.4f} in {seconds:5.2f} s; with every breakpoint {best:9.4f} in "
            f"{exact_s:6.2f} s ({exact.status}); lost {max(0.0, best / value - 1):.4%}, "
            f"at most {bound / value - 1:.4%}",
            flush=True,
        )


class Block(torch.nn.Module):
    """Expand four times, depthwise, project."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = torch.nn.Conv2d(channels, 4 * channels, 1)
        self.depthwise = torch.nn.Conv2d(4 * channels, 4 * channels, 3, padding=1, groups=4 * channels)
        self.project = torch.nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        relu6 = torch.nn.functional.relu6
        return x + self.project(relu6(self.depthwise(relu6(self.expand(x)))))


def large() -> None:
    torch.manual_seed(0)
    stem = torch.nn.Conv2d(3, 16, 3, stride=2, padding=1)
    tail = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 10))
    model = torch.nn.Sequential(stem, *[Block(16) for _ in range(BLOCKS)], *tail)
    example = torch.zeros(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    subject = subject_of(model, example)
    importance = random_importance(subject)
    for scope in SCOPES:
        base = PlanRequest(
            memory=subject.memory,
            importance=importance,
            objective=OBJECTIVE,
            metric=METRIC,
            budget_bytes=1,
            scope=scope,
        )
        low, high = scope_range(lambda budget, base=base: replace(base, budget_bytes=budget))  # type: ignore[misc]
        for share in (0.02, 0.1, 0.5):
            request = replace(base, budget_bytes=round(low + share * (high - low)), time_limit_seconds=TIME_LIMIT)
            decision, seconds = solve(request)
            print(
                f"{scope:9} {request.budget_bytes:12,} B: {seconds:6.2f} s, {decision.status}, gap "
                f"{decision.gap_ratio:.1e}, {len(decision.updates.quotas)} layers",
                flush=True,
            )


def random_importance(subject: Subject) -> Importance:
    """Gamma-distributed energies, layers over three orders of magnitude."""
    random = np.random.default_rng(0)
    energy = {x.name: random.gamma(0.5, size=x.channels) * 10 ** random.normal(0, 0.5) for x in subject.graph.layers}
    return Importance(
        energy=energy,
        norms={name: np.sqrt(values) for name, values in energy.items()},
        bias_energy={x.name: float(random.gamma(0.5)) for x in subject.graph.layers if x.bias},
        fingerprint=subject.graph.fingerprint,
        source="random",
    )


if __name__ == "__main__":
    main()
