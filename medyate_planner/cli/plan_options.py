"""Options of `medyate plan` by theme, and the request they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from medyate_planner.memory.mode import UpdateMode
    from medyate_planner.planning.request import StrategySettings
    from medyate_planner.subject import Subject


@Parameter(name="*", group="Budget")
@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """What must fit, and where."""

    scope: Annotated[str, Parameter(group="Parameters")] = "training"
    "training: largest moment of what training keeps; peak: all that is live; update: plain sum."
    margin: str = "0%"
    "Part of the budget left to the allocator, on top of what is planned."
    weights_in: str = "ram"
    "ram or flash: whether scope peak counts weights."
    max_flops: str | None = None
    "Operations of one step: 800M, 1.2G, or 50% of full fine-tuning's (time follows them)."


@Parameter(name="*", group="How weights are updated")
@dataclass(frozen=True, kw_only=True)
class UpdateOptions:
    """How weights are updated."""

    optimizer: Annotated[str, Parameter(group="Parameters")] = "sgd"
    "sgd, momentum, adam or adamw: whose state is paid for."
    update: str | None = None
    "fused (plain SGD during backward) or optimizer (a torch optimizer); default fused for sgd."
    accumulation: int = 1
    "Passes whose gradients are summed before a step."
    norm: str = "frozen"
    "frozen (stored statistics of BatchNorms) or train (those of the batch)."
    autocast: str | None = None
    "bfloat16: train under torch.autocast, weights in their own type."

    def mode(self) -> UpdateMode:
        """The update mode.

        Raises:
            InputError: an unknown word, or words that do not go together.
        """
        from medyate_planner.memory.mode import FUSED, choose_mode

        return choose_mode(self.update, self.optimizer, self.accumulation) or FUSED


@Parameter(name="*", group="What may be bought")
@dataclass(frozen=True, kw_only=True)
class BuyOptions:
    """What may be bought."""

    biases: bool = True
    "Also buy biases, of norms too."
    norm_scales: bool = False
    "Also buy scales of norms, by channels."
    head_by_channels: Annotated[bool, Parameter(negative="")] = False
    "Buy the head by channels too, instead of training it in full."
    max_layers: int | None = None
    "Update at most this many layers."
    granularity: int = 1
    "Quotas are multiples of this."
    min_quota: int = 1
    "Fewest channels of an updated layer; a smaller layer is bought whole."
    max_quota: int | None = None
    "Most channels of a layer."
    force_layer: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    "Pattern of layers that must be updated."
    forbid_layer: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    "Pattern of layers that must not be updated."


@Parameter(name="*", group="Value and draws")
@dataclass(frozen=True, kw_only=True)
class ValueOptions:
    """What channels are worth, and how they are drawn."""

    objective: str = "projection"
    "projection (on each layer's gradient), norm (root of captured energy) or energy."
    curve: str = "uniform"
    "uniform, weighted or top: how n channels are valued."
    metric: str = "sized"
    "sized (gradient times number of weights), raw, rgn or lara: what is captured."
    sampling: str = "uniform"
    "uniform, weighted, top or static: how channels are redrawn."
    interval: str = "epoch"
    "How often: epoch, or a number of steps."
    alpha: float = 1.0
    "Exponent of the importance in weighted draws."
    boost: float = 0.0
    "Weight of gradients seen while training in weighted draws; 0: none."

    @property
    def draws_by(self) -> str:
        """The metric within a layer, whose channels all have the same number of weights."""
        return "raw" if self.metric == "sized" else self.metric


@Parameter(name="*", group="Single strategies and the solver")
@dataclass(frozen=True, kw_only=True)
class StrategyOptions:
    """What single strategies can be told, and the solver."""

    scheme: Path | None = None
    "sparse-update: JSON file with n_bias and weights."
    last_layers: int | None = None
    "last-k: how many layers."
    top_layers: int | None = None
    "TraDy and MeDyate: choose among this many layers."
    top_share: float = 0.97
    "TraDy and MeDyate: or among those that carry this share of importance."
    intervals: int = 20
    "Draws across layers: how many to plan, then from the start again."
    population: int = 48
    "evolutionary: plans at a time."
    generations: int = 60
    "evolutionary: rounds."
    mutation: float = 0.1
    "evolutionary: largest chance of a gene to change."
    gap: float = 1e-3
    "Relative gap at which the solver may stop; 0 proves the optimum."
    time_limit: float | None = None
    "Seconds for the solver."
    write_lp: Path | None = None
    "Write the integer program as text."


def read_interval(text: str) -> Literal["epoch"] | int:
    """`--interval` as a plan has it.

    Raises:
        InputError: neither epoch nor a number of steps.
    """
    from medyate_planner.errors import InputError

    if text == "epoch":
        return "epoch"
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise InputError(f"--interval: expected epoch, or a number of steps of 1 or more, got {text!r}")
    return int(text)


def check_words(budget: BudgetOptions, value: ValueOptions) -> None:
    """Raise `InputError` for a word that is none of those an option knows, before any model is built."""
    from medyate_planner.errors import unknown_name
    from medyate_planner.importance.curves import CURVES, OBJECTIVES
    from medyate_planner.importance.metrics import METRICS
    from medyate_planner.planning.request import SCOPES, WEIGHTS_IN
    from medyate_planner.planning.sampling import METHODS

    for option, word, known in (
        ("--scope", budget.scope, SCOPES),
        ("--weights-in", budget.weights_in, WEIGHTS_IN),
        ("--objective", value.objective, OBJECTIVES),
        ("--curve", value.curve, CURVES),
        ("--metric", value.metric, METRICS),
        ("--sampling", value.sampling, METHODS),
    ):
        if word not in known:
            raise unknown_name(option, word, known)


_POOLS = ("trady-static", "trady", "medyate", "lara-trady", "lara-medyate")
_BELONGS_TO = {
    "scheme": ("sparse-update",),
    "last_layers": ("last-k",),
    "top_layers": _POOLS,
    "top_share": _POOLS,
    "intervals": ("random", "trady", "medyate", "lara-trady", "lara-medyate"),
    "population": ("evolutionary",),
    "generations": ("evolutionary",),
    "mutation": ("evolutionary",),
}


def check_belonging(strategy: str, settings: StrategyOptions, budget: BudgetOptions) -> None:
    """Raise `InputError` for an option that would be ignored."""
    from medyate_planner.errors import InputError

    defaults = StrategyOptions()
    for name, strategies in _BELONGS_TO.items():
        if getattr(settings, name) != getattr(defaults, name) and strategy not in strategies:
            raise InputError(
                f"--{name.replace('_', '-')} belongs to --strategy {' or '.join(strategies)}, not {strategy}"
            )
    if budget.weights_in == "flash" and budget.scope != "peak":
        raise InputError(f"--weights-in flash belongs to --scope peak: scope {budget.scope} counts no weights")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """All of them."""

    updating: UpdateOptions
    budget: BudgetOptions
    buy: BuyOptions
    value: ValueOptions
    strategy: StrategyOptions

    def request(self, subject: Subject, seed: int) -> dict[str, Any]:
        """Keys of `PlanRequest` beside memory, importance and budget.

        Raises:
            InputError: a share, a number of operations or a scheme that can not be read.
        """
        from medyate_planner.memory.flops import FlopModel
        from medyate_planner.units import parse_flops, parse_ratio

        budget, buy, value, strategy = self.budget, self.buy, self.value, self.strategy
        flops = budget.max_flops
        return {
            "scope": budget.scope,
            "margin_ratio": parse_ratio(budget.margin, what="--margin"),
            "weights_in": budget.weights_in,
            "max_flops": None if flops is None else parse_flops(flops, FlopModel(subject.memory).full_flops),
            "objective": value.objective,
            "curve": value.curve,
            "metric": value.metric,
            "head_mode": "channels" if buy.head_by_channels else "full",
            "buy_biases": buy.biases,
            "buy_norm_scales": buy.norm_scales,
            "max_layers": buy.max_layers,
            "granularity": buy.granularity,
            "min_quota": buy.min_quota,
            "max_quota": buy.max_quota,
            "force_layers": buy.force_layer,
            "forbid_layers": buy.forbid_layer,
            "gap_ratio": strategy.gap,
            "time_limit_seconds": strategy.time_limit,
            "lp_file": strategy.write_lp,
            "seed": seed,
            "settings": self.settings(subject),
        }

    def settings(self, subject: Subject) -> StrategySettings:
        """What single strategies are told."""
        import json

        from medyate_planner.errors import InputError
        from medyate_planner.files import read_text
        from medyate_planner.memory.accounting import read_scheme
        from medyate_planner.planning.request import StrategySettings

        chosen, scheme = self.strategy, None
        if chosen.scheme is not None:
            try:
                scheme = read_scheme(json.loads(read_text(chosen.scheme, what="scheme")), subject.graph)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(
                    f"scheme {chosen.scheme}: not complete JSON ({str(error)[:80]}); expected "
                    '{"n_bias": N, "weights": {"INDEX or NAME": RATIO, …}}'
                ) from error
        return StrategySettings(
            scheme=scheme,
            last_layers=chosen.last_layers,
            top_share=chosen.top_share,
            top_layers=chosen.top_layers,
            intervals=chosen.intervals,
            alpha=self.value.alpha,
            boost=self.value.boost,
            population=chosen.population,
            generations=chosen.generations,
            mutation=chosen.mutation,
        )
