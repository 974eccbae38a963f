"""Why a plan is as it is, as data: every layer and bias with its reason, the limits, and what more bytes would buy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from medyate_planner.graph import LayerKind

Reason = Literal[
    "head", "forced", "in_whole", "in_all_allowed", "in_budget", "in_flops", "in_gap", "in_strategy", "in_bias",
    "forbidden", "not_upstream", "frozen", "not_for_sale", "granularity", "no_value", "max_layers", "max_flops",
    "reach", "worth_less", "too_large", "gap", "strategy",
]  # fmt: skip
SENTENCES: dict[Reason, str] = {
    "head": "head, in full",
    "forced": "in: forced, {quota} of {channels} channels",
    "in_whole": "in: all {channels} channels",
    "in_all_allowed": "in: {quota} of {channels} channels, as many as --max-quota and --granularity allow",
    "in_budget": "in: {quota} of {channels} channels; {step} more would cost {added:,} B, and {left:,} B are left",
    "in_flops": "in: {quota} of {channels} channels; {step} more would exceed --max-flops",
    "in_gap": "in: {quota} of {channels} channels; {step} more would fit, and gain less than the solver's gap",
    "in_strategy": "in: {quota} of {channels} channels; {step} more would fit, but strategy {strategy} stopped here",
    "in_bias": "in: worth {value:.3g}, {price}",
    "forbidden": "out: forbidden",
    "not_upstream": "out: not upstream of the loss",
    "frozen": "out: frozen by the user",
    "not_for_sale": "out: {what} not for sale",
    "granularity": "out: fewer channels than the granularity {granularity}",
    "no_value": "out: value 0, no importance measured",
    "max_layers": "out: --max-layers {max_layers} is used up",
    "max_flops": "out: --max-flops",
    "reach": "out: its cheapest {thing} would add {reach:,} B of pass-through (reach) {where}",
    "worth_less": "out: worth {per_kb:.3g} per kB, the plan's worst unit is worth {worst:.3g}",
    "too_large": "out: its cheapest {thing} would cost {added:,} B, and {left:,} B are left",
    "gap": "out: its cheapest {thing} would fit, and gain less than the solver's gap",
    "strategy": "out: its cheapest {thing} would fit, but strategy {strategy} leaves it out",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExplainedUnit(_Part):
    """A layer's channels, or its bias: in or out, at what price, and why.

    What is not for sale has no price. Bytes are those of the budget's scope, beside everything else in the plan.
    """

    name: str
    what: Literal["channels", "bias"]
    kind: LayerKind
    channels: int
    quota: int = Field(description="channels updated at a time; of a bias 1 or 0")
    chosen: bool
    reason: Reason
    sentence: str
    own_bytes: int | None = Field(
        default=None, description="selected activations, gradient and indices of what it has, or of its least quota"
    )
    reach_bytes: int | None = Field(
        default=None, description="what the same costs beyond that: pass-through (in scope peak also what is in flight)"
    )
    next_bytes: int | None = Field(default=None, description="what one step more would really add to the scope")
    next_value: float | None = Field(default=None, description="what that would be worth")
    next_value_per_kb: float | None = Field(default=None, description="null where the step costs nothing")
    last_value_per_kb: float | None = Field(
        default=None, description="of the last step it has; null where giving that up would free nothing"
    )


class Limit(_Part):
    """Something a plan may not exceed, and how far it is from it."""

    name: Literal["budget", "max-layers", "max-flops"]
    used: int
    limit: int
    left: int
    binds: bool = Field(description="whether some unit is kept out, or from growing, by this")
    where: str = Field(default="", description="the moment of the step at which it is used, in words")
    at: str | None = Field(default=None, description="operator of that moment")


class QuotaChange(_Part):
    """A layer that more bytes would change; 0 is out."""

    name: str
    before: int
    after: int


class NextBytes(_Part):
    """What the same strategy would do with more bytes."""

    next_bytes: int
    budget_bytes: int
    used_bytes: int = Field(description="what it would really use beyond this plan")
    gained: float
    gained_per_kb: float
    layers: tuple[QuotaChange, ...]
    biases_entering: tuple[str, ...]
    biases_leaving: tuple[str, ...]


class Explanation(_Part):
    """Why a plan is as it is."""

    strategy: str
    scope: Literal["update", "training", "peak"]
    budget_bytes: int
    used_bytes: int
    left_bytes: int
    worst_value_per_kb: float | None = Field(description="of the last steps of all that was bought, the lowest")
    limits: tuple[Limit, ...]
    units: tuple[ExplainedUnit, ...]
    next: NextBytes | None = Field(default=None, description="null where it was not asked for, or could not be found")
    notes: tuple[str, ...] = ()
