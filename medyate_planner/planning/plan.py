"""The plan file: what is trained, why it fits, and what it was made for. JSON with a schema version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medyate_planner.errors import InputError, PlanMismatchError, did_you_mean
from medyate_planner.files import read_text, write_text
from medyate_planner.graph import LayerKind, ModelGraph
from medyate_planner.memory.mode import UpdateMode
from medyate_planner.memory.model import Updates
from medyate_planner.planning.explanation import Explanation

SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelInput(_Part):
    """One input of the model, without the batch dimension."""

    shape: tuple[int, ...] = Field(description="without the batch dimension")
    dtype: Literal["float64", "float32", "bfloat16", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"] = (
        Field(description="torch's name of the element type")
    )
    name: str | None = Field(default=None, description="set for keyword inputs")
    channels_last: bool = Field(default=True, description="memory format the live peak is predicted for")


class PlannedModel(_Part):
    """The model a plan was made for, and how to build it again."""

    spec: str | None = Field(default=None, description="as on the command line; null for a model made in Python")
    fingerprint: str = Field(description="SHA-256 of operators, wiring, parameter names and shapes")
    num_parameters: int = Field(description="elements of all parameters, those of the new head too")
    inputs: tuple[ModelInput, ...] = Field(description="what the model is called with")
    weights: str | None = Field(default=None, description="weights file; edit it where the file moved")
    num_classes: int | None = Field(default=None, description="classes of the new head; null: the model's own head")
    input_shape: tuple[int, ...] | None = Field(default=None, description="of one sample, such as [3, 128, 128]")
    head_pattern: str | None = Field(default=None, description="--head: a pattern of layer names, none, or null")


class PlannedLayer(_Part):
    """A layer that is updated: `quota` of its input channels at a time. The head is trained in full."""

    name: str = Field(description="as `medyate report` lists it; take the whole entry out to freeze the layer")
    kind: LayerKind = Field(description="what the layer is; not to be edited")
    channels: int = Field(ge=1, description="input channels that the layer has; not to be edited")
    quota: int | None = Field(
        ge=1, description="channels updated at a time, 1 to `channels`; null: drawn anew each interval (sampling.draws)"
    )
    head: bool = Field(default=False, description="the layer that is trained in full: its quota is all its channels")

    @model_validator(mode="after")
    def _quota_in_range(self) -> PlannedLayer:
        if self.quota is None and not self.head:
            return self
        most = "the head has all" if self.head else f"expected 1 to {self.channels}"
        if self.quota is None or self.quota > self.channels or (self.head and self.quota != self.channels):
            raise ValueError(f"layer {self.name}: quota {self.quota} does not fit {self.channels} channels; {most}")
        return self


class Predicted(_Part):
    """Predicted figures of one training step, in bytes; of a plan with draws, the largest of each over the draws.

    `elements` is TraDy's accounting, per sample; `sparse_update_bytes` that of Sparse Update, for an imported scheme.
    """

    update_bytes: int = Field(description="scope update: plain sum of gradients, selected activations and state")
    training_bytes: int = Field(description="scope training: the most that is kept at one moment because we train")
    live_peak_bytes: int = Field(description="the most that is live at one moment, in the dry run")
    saved_bytes: int = Field(description="kept for backward by the model's forward")
    selected_bytes: int = Field(description="of these, activations of the selected channels")
    passthrough_bytes: int = Field(description="of these, what lets gradients pass to earlier layers")
    gradients_bytes: int = Field(description="the most of gradients that is alive at once")
    optimizer_bytes: int = Field(description="state of the optimizer")
    copy_bytes: int = Field(default=0, description="working copies of selected channels, in update mode optimizer")
    loss_bytes: int = Field(description="kept for backward by the loss")
    index_bytes: int = Field(description="indices of the selected channels")
    elements: int = Field(description="TraDy's accounting, of one sample")
    sparse_update_bytes: int | None = Field(default=None, description="Sparse Update's, of an imported scheme")
    live_peak_bound_bytes: int | None = Field(default=None, description="closed form: what scope peak limits")
    weights_in_flash_bytes: int = Field(default=0, description="parameters and buffers that scope peak leaves out")
    flops: int | None = Field(default=None, description="of one step; a multiply-add is 2")
    full_flops: int | None = Field(default=None, description="of one step of ordinary full fine-tuning")


class Sampling(_Part):
    """How channels are redrawn inside each layer's quota."""

    method: Literal["uniform", "weighted", "top", "static", "fixed"] = Field(
        default="uniform",
        description="uniform; weighted by importance; top: the most important; static: drawn once; fixed: `channels`",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="draws depend on it, the interval and the layer alone")
    interval: Literal["epoch"] | Annotated[int, Field(ge=1)] = Field(
        default="epoch", description="channels are redrawn every epoch, or every so many steps"
    )
    alpha: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="weighted: exponent of the importance")
    metric: Literal["raw", "rgn", "lara"] = Field(default="raw", description="importance that draws go by")
    boost: float = Field(default=0.0, ge=0, le=1, description="weight of gradients observed while training; 0: none")
    oracle: bool = Field(default=False, description="draws anew would need full gradients, beyond the budget")
    pool: tuple[str, ...] | None = Field(
        default=None, description="layers to draw across; null: inside each layer's quota"
    )
    draws: tuple[dict[str, Annotated[int, Field(ge=1)]], ...] | None = Field(
        default=None, description="with a pool: quotas by layer of interval 0, 1, …; then from the start again"
    )
    channels: dict[str, tuple[int, ...]] | None = Field(
        default=None, description="method fixed: the channels of each layer, for good"
    )

    @model_validator(mode="after")
    def _complete(self) -> Sampling:
        if (self.pool is None) != (self.draws is None) or (self.draws is not None and not self.draws):
            raise ValueError("pool and draws belong together: layers, and their quotas for one interval or more")
        if (self.method == "fixed") != (self.channels is not None):
            raise ValueError("method fixed and channels belong together")
        return self

    @field_validator("interval", mode="before")
    @classmethod
    def _interval_is_known(cls, value: Any) -> Any:
        if value != "epoch" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError("expected epoch, or a number of steps of 1 or more")
        return value

    @property
    def interval_steps(self) -> int | None:
        """Steps between draws; None: as many as an epoch has."""
        return None if self.interval == "epoch" else self.interval

    @property
    def boosted(self) -> bool:
        """Draws follow the gradients seen while training: only where they go by importance at all."""
        return self.boost > 0 and self.method in ("weighted", "top")


class ImportanceRef(_Part):
    """The importance file a plan was made from; null file: what is named in `source`."""

    source: str = Field(description="what the importance was measured on")
    file: str | None = Field(default=None, description="name of the file, looked for beside the plan")
    sha256: str | None = Field(default=None, description="of that file; another one is refused")


class Plan(_Part):
    """Which layers are updated, how many channels in each, and what that costs."""

    schema_version: Literal[1] = Field(default=1, description="of this format")
    kind: Literal["plan"] = Field(default="plan", description="what this file is")
    model: PlannedModel = Field(description="the model it was made for")
    batch_size: int = Field(ge=1, description="samples in one pass; all figures are for it")
    dtype: str = Field(default="float32", description="type of the weights: float32 or bfloat16")
    device: str = Field(default="cpu", description="where it is trained; figures are for it")
    loss: str = Field(default="cross-entropy", description="cross-entropy, next-token, mse, or module:factory")
    loss_outputs: tuple[str, ...] = Field(description="names of the model's outputs (in its graph) that the loss reads")
    dropout: Literal["off", "keep"] = Field(default="off", description="what becomes of dropout in training")
    norm: Literal["frozen", "train"] = Field(
        default="frozen", description="BatchNorms go by stored statistics (frozen) or those of the batch (train)"
    )
    autocast: Literal["bfloat16"] | None = Field(default=None, description="the type torch.autocast computes with")
    budget_bytes: int = Field(ge=1, description="what must not be exceeded in the scope; B, not kB")
    scope: Literal["update", "training", "peak"] = Field(description="which figure of `predicted` the budget limits")
    margin_ratio: float = Field(default=0.0, ge=0, description="part of the budget kept free, relative to the rest")
    weights_in: Literal["ram", "flash"] = Field(default="ram", description="scope peak counts weights in ram alone")
    strategy: str = Field(description="who made the plan")
    objective_name: str = Field(default="norm", description="what was maximised: projection, norm or energy")
    curve: str = Field(default="uniform", description="how n channels are valued: uniform, weighted or top")
    metric: Literal["sized", "raw", "rgn", "lara"] = Field(default="raw", description="what a channel is valued by")
    max_flops: int | None = Field(default=None, description="most operations of a step; null: no limit")
    update: Literal["fused", "optimizer"] = Field(
        default="fused", description="fused: plain SGD during backward; optimizer: a torch optimizer on compact weights"
    )
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] = Field(default="sgd", description="whose state is paid for")
    accumulation: int = Field(default=1, ge=1, description="passes whose gradients are summed before a step")
    status: Literal["optimal", "feasible"] = Field(description="feasible after an edit by hand (medyate plan --check)")
    gap_ratio: float = Field(description="how far from the optimum the plan may be at most")
    objective: float = Field(description="exact value; of a plan with draws, that of the first")
    objective_bound: float | None = Field(
        default=None, description="the solver's, of the interpolated value: objective less interpolation_loss"
    )
    interpolation_loss: float = Field(default=0.0, description="what interpolation takes off the value of this plan")
    predicted: Predicted = Field(description="recomputed from the rest by `medyate plan --check FILE -o FILE`")
    layers: tuple[PlannedLayer, ...] = Field(description="what is updated by channels, and the head; the rest stays")
    biases: tuple[str, ...] = Field(default=(), description="layers whose bias is updated; take one out to freeze it")
    sampling: Sampling = Field(default=Sampling(), description="how channels are redrawn within the quotas")
    importance: ImportanceRef = Field(description="what the plan was made from")
    explanation: Explanation | None = Field(default=None, description="why each layer is in or out, if asked for")

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        try:
            mode = self.mode
        except InputError as error:
            raise ValueError(str(error)) from error
        if self.sampling.pool is not None and not mode.is_fused:
            raise ValueError("quotas that are drawn anew each interval (sampling.pool) need update mode fused")
        by_name = {layer.name: layer for layer in self.layers}
        if len(by_name) < len(self.layers):
            names = [layer.name for layer in self.layers]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"layer {twice} is listed twice")
        if len(set(self.biases)) < len(self.biases):
            raise ValueError("biases: one is listed twice")
        pool = set(self.sampling.pool or ())
        for layer in self.layers:
            if (layer.quota is None) != (layer.name in pool):
                raise ValueError(
                    f"layer {layer.name}: a quota of null is for layers of sampling.pool, and for them alone"
                )
        for drawn in self.sampling.draws or ():
            for name, quota in drawn.items():
                if name not in by_name or name not in pool or quota > by_name[name].channels:
                    raise ValueError(f"sampling.draws: {name}: {quota} does not fit the layers of the pool")
        bought = {layer.name for layer in self.layers if not layer.head}
        if self.sampling.channels is not None and set(self.sampling.channels) != bought:
            raise ValueError(
                "sampling.channels: expected the layers that are updated, the head excepted, and no others"
            )
        for name, channels in (self.sampling.channels or {}).items():
            if name not in by_name or len(set(channels)) != len(channels) or by_name[name].quota != len(channels):
                raise ValueError(f"sampling.channels: {name}: expected as many different channels as its quota")
            if channels and not 0 <= min(channels) <= max(channels) < by_name[name].channels:
                raise ValueError(f"sampling.channels: {name}: expected channels of 0 to {by_name[name].channels - 1}")
        return self

    @property
    def mode(self) -> UpdateMode:
        """How weights are updated."""
        return UpdateMode(update=self.update, optimizer=self.optimizer, accumulation=self.accumulation)

    @property
    def used_bytes(self) -> int:
        """The predicted figure that the budget limits; in scope `peak` the live peak of the dry run, weights in flash
        left out."""
        figures = self.predicted
        if self.scope == "peak":
            return figures.live_peak_bytes - figures.weights_in_flash_bytes
        return figures.update_bytes if self.scope == "update" else figures.training_bytes

    def quotas(self, interval: int = 0) -> dict[str, int]:
        """Channels trained in an interval, by layer, the head excepted."""
        if self.sampling.draws:
            drawn = self.sampling.draws[interval % len(self.sampling.draws)]
            return {layer.name: drawn[layer.name] for layer in self.layers if layer.name in drawn}
        return {layer.name: layer.quota for layer in self.layers if not layer.head and layer.quota is not None}

    def updates(self, interval: int = 0) -> Updates:
        """What is trained in an interval, for the memory model and the session."""
        return Updates(
            quotas=self.quotas(interval),
            biases=frozenset(self.biases),
            full=frozenset(layer.name for layer in self.layers if layer.head),
        )

    def check_autocast(self, autocast: str | None) -> None:
        """Raise `PlanMismatchError` for a model that was made ready under another autocast."""
        if autocast != self.autocast:
            raise PlanMismatchError(
                f"the plan was made under autocast {self.autocast}, the model was made ready under {autocast}; "
                f"pass autocast={self.autocast!r} to subject_of"
            )

    def check(self, graph: ModelGraph) -> None:
        """Raise `PlanMismatchError` unless the plan was made for the model that `graph` describes."""
        difference = _first_difference(self, graph)
        if graph.fingerprint != self.model.fingerprint:
            raise PlanMismatchError(
                f"the plan was made for another model (fingerprint {self.model.fingerprint[:12]}, this one has "
                f"{graph.fingerprint[:12]}{difference}); run `medyate plan` on this one"
            )
        if difference:
            raise PlanMismatchError(f"the plan does not suit its model{difference}; correct it, or run `medyate plan`")

    def __repr__(self) -> str:
        """A few lines; `to_dict` has everything."""
        from medyate_planner.planning.summary import summary_of

        return summary_of(self).text()

    def __str__(self) -> str:
        """The same lines."""
        return repr(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from medyate_planner.planning.summary import summary_of

        return summary_of(self).html()

    def to_dict(self) -> dict[str, Any]:
        """JSON types, keys as in the file."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save(self, path: Path | str, *, force: bool = True) -> Path:
        """Write the plan, whole or not at all."""
        return write_text(Path(path), self.to_json(), force=force)

    @classmethod
    def load(cls, path: Path | str) -> Plan:
        """Read a plan file.

        Raises:
            InputError: missing, not JSON, of another schema version, or with a wrong value; names the key.
        """
        path = Path(path)
        text = read_text(path, what="plan")
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(
                f"plan {path}: not complete JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
                "make it again with `medyate plan`"
            ) from error
        except RecursionError as error:
            raise InputError(
                f"plan {path}: nested too deeply to be a plan; make it again with `medyate plan`"
            ) from error
        return cls.from_dict(data, where=f"plan {path}")

    @classmethod
    def from_dict(cls, data: Any, *, where: str = "plan") -> Plan:
        """Validate JSON data; the inverse of `to_dict`."""
        if not isinstance(data, dict) or data.get("kind") != "plan":
            raise InputError(f"{where}: expected a plan (key kind), got something else; make one with `medyate plan`")
        if data.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"{where}: expected schema version {SCHEMA_VERSION}, got {data.get('schema_version')}; "
                "make it again with this version's `medyate plan`"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "content"
            found = first["input"]
            got = f" (got {found!r})" if isinstance(found, (str, int, float)) else ""
            text = first["msg"].removeprefix("Value error, ")
            raise InputError(f"{where}: {key}: {text}{got}; correct it, or run `medyate plan` again") from error


def _first_difference(plan: Plan, graph: ModelGraph) -> str:
    known = graph.layer_by_name
    for name in plan.loss_outputs:
        if name not in graph.values:
            return f"; the model has no output {name!r} (loss_outputs)"
    for layer in plan.layers:
        if layer.name not in known:
            near = did_you_mean(layer.name, [unit.name for unit in graph.units]).strip()
            return f"; the model has no layer {layer.name!r}" + (f", {near}" if near else "")
        if known[layer.name].channels != layer.channels:
            return f"; {layer.name} has {known[layer.name].channels} channels, the plan expects {layer.channels}"
    for name in plan.biases:
        if name not in known or known[name].bias is None:
            return f"; layer {name} has no bias of its own"
    return ""
