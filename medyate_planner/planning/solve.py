"""Hand a formulation to HiGHS (or CBC where highspy is missing) through PuLP. The only place that runs a solver."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from medyate_planner.errors import SolverError
from medyate_planner.files import write_atomic
from medyate_planner.memory.model import Updates
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.formulation import Formulation
from medyate_planner.planning.recompute import fits, scope_bytes
from medyate_planner.planning.request import PlanRequest

_TIGHTENINGS = 8
# Presolve probes every binary, and each implies all that lies downstream: on 1,000 layers (4,300 integers, scope
# training) it took 14 s, where the rest takes 1 s. On the zoo networks (250), and in scope peak, it pays.
_MANY_INTEGERS = 2000
_CONTRADICTION = 1e-6  # how far a bound may lie below its solution by rounding


class OutOfTime(SolverError):
    """The time limit passed before the solver had any plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What the solver found: quotas, biases, its upper bound on the objective (None where it does not tell)."""

    quotas: dict[str, int]
    biases: frozenset[str]
    bound: float | None
    proven: bool


def solve(request: PlanRequest) -> Decision | None:
    """The best plan to within `request.gap_ratio`, or None when no plan fits the budget.

    Solver tolerances can not let a plan exceed a limit: bytes and operations are recomputed in integers, and if one is
    over, the limit is tightened by that much and the program solved again.

    Raises:
        OutOfTime: the time limit passed without any plan.
    """
    import pulp

    limit_bytes, limit_flops = request.limit_bytes, request.max_flops
    for _ in range(_TIGHTENINGS):
        formulation = Formulation(request, limit_bytes=limit_bytes, limit_flops=limit_flops, pulp=pulp).formulate()
        solution = _run(formulation, request)
        if solution is None:
            return None
        updates = _without_the_worthless(request, request.updates(solution.quotas, solution.biases))
        if fits(request, updates):
            return _decision(request, updates, solution)
        limit_bytes -= max(0, scope_bytes(request, updates) - request.limit_bytes)
        if limit_flops is not None and request.max_flops is not None:
            limit_flops -= max(0, request.flops.training(updates) - request.max_flops)
    raise SolverError("the solver's plans keep exceeding a limit by rounding; raise --budget or --max-flops a little")


def _without_the_worthless(request: PlanRequest, updates: Updates) -> Updates:
    """The same without what is worth nothing and was not asked for, unless it is all there is."""
    quotas = {n: q for n, q in updates.quotas.items() if n in request.forced or request.curves[n].values[q] > 0}
    biases = frozenset(name for name in updates.biases if request.bias_values[name] > 0)
    return request.updates(quotas, biases) if quotas or biases else updates


def _decision(request: PlanRequest, updates: Updates, solution: Solution) -> Decision:
    found = request.interpolated_value(updates)
    gap = _gap(request, solution, found)
    optimal = solution.proven and gap <= max(request.gap_ratio, 1e-6)
    return Decision(
        updates=updates,
        strategy="optimal",
        status="optimal" if optimal else "feasible",
        gap_ratio=gap,
        bound=solution.bound,
        facts={"interpolated_objective": found, "interpolation_loss": request.value(updates) - found},
    )


def _gap(request: PlanRequest, solution: Solution, found: float) -> float:
    """Relative gap to the bound; where there is none, what was asked for if the solver says it is met, else all."""
    if solution.bound is None:
        return request.gap_ratio if solution.proven else 1.0
    return max(0.0, (solution.bound - found) / abs(solution.bound)) if solution.bound else 0.0


def _run(formulation: Formulation, request: PlanRequest, *, presolve: bool | None = None) -> Solution | None:
    pulp, problem = formulation.program.pulp, formulation.program.problem
    _write_lp(problem, request)
    if presolve is None:
        presolve = request.scope == "peak" or formulation.program.integers <= _MANY_INTEGERS
    try:
        problem.solve(_solver(request, pulp, presolve=presolve))
    except pulp.PulpSolverError as error:
        raise SolverError(f"the solver failed: {error}") from error
    if problem.sol_status in (pulp.LpSolutionInfeasible, pulp.LpSolutionUnbounded):
        return None
    if problem.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        raise OutOfTime("the time limit passed before the solver found any plan; raise --time-limit")
    found, bound = float(problem.objective.value()), _bound(problem)
    if presolve and bound is not None and bound < found - _CONTRADICTION * abs(found):
        # HiGHS 1.15 was seen to cut off the optimum in presolve; its bound is then below its own solution
        return _run(formulation, request, presolve=False)
    quotas = {name: round(float(n.value() or 0.0)) for name, n in formulation.quota.items()}
    biases = frozenset(name for name, b in formulation.bias.items() if (b.value() or 0.0) > 0.5)
    return Solution(
        quotas=quotas,
        biases=biases,
        bound=None if bound is None else max(bound, found) * formulation.value_scale,
        proven=problem.sol_status == pulp.LpSolutionOptimal,
    )


def _write_lp(problem: Any, request: PlanRequest) -> None:
    """The program as text, for whoever wants to read it or to try another solver."""
    if request.lp_file is not None:
        write_atomic(request.lp_file, lambda temporary: problem.writeLP(str(temporary), max_length=255))


def _solver(request: PlanRequest, pulp: Any, *, presolve: bool) -> object:
    try:
        import highspy
    except ImportError:
        return pulp.PULP_CBC_CMD(msg=False, gapRel=request.gap_ratio, timeLimit=request.time_limit_seconds, threads=1)
    _greet(highspy.Highs)
    return pulp.HiGHS(
        msg=False,
        gapRel=request.gap_ratio,
        gapAbs=0.0,
        timeLimit=request.time_limit_seconds,
        threads=1,
        random_seed=request.seed,
        presolve="choose" if presolve else "off",
    )


@cache
def _greet(solver: Callable[[], object]) -> None:
    """HiGHS 1.16 prints its name when a process makes its first solver, whatever the options: here, where nobody hears
    it, and not into the JSON on standard output."""
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        solver()
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _bound(problem: Any) -> float | None:
    """The solver's upper bound on the objective; None from CBC, which does not tell."""
    model = getattr(problem, "solverModel", None)
    if model is None or not hasattr(model, "getInfo"):
        return None
    # HiGHS minimises the negated objective through PuLP
    return -float(model.getInfo().mip_dual_bound)
