"""A line of results.jsonl, and all runs as `medyate bench --json` prints them: what their JSON Schemas tell."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Line(_Part):
    job: str = Field(description="stage, network, task, contender, budget and seed; unique within a matrix")
    digest: str = Field(description="of what the result depends on: the same job of another matrix has another")
    network: str = Field(description="its name in the matrix")
    task: str = Field(description="its name in the matrix")
    seed: int = Field(description="of the head's weights, the order of the data, and draws")
    failure: str | None = Field(
        default=None, description="why there is no result: no room, or the loss became infinite"
    )
    seconds: float = Field(description="time of the whole job, loading and measuring included")


class RankResult(_Line):
    """Importance of a network on a task, measured with one seed."""

    stage: Literal["rank"] = Field(description="before all others")
    contender: None = Field(description="null: for all contenders")
    budget: None = Field(description="null: for all budgets")
    rate: None = Field(description="null: nothing is tuned")
    accuracy: None = Field(default=None, description="null: nothing is tested")
    steps: int | None = Field(default=None, description="batches of an epoch")
    layers: dict[str, dict[str, float]] | None = Field(
        default=None, description="scores of layers, by metric (raw, rgn, lara) and name"
    )


class Likeness(_Part):
    """How alike two measurements of importance are."""

    layers: float | None = Field(description="Spearman's correlation of the layers by LaRa, -1 to 1")
    channels: float | None = Field(description="mean over layers of that of their channels by gradient energy, -1 to 1")
    best: float | None = Field(description="share of the best quarter of a layer's channels that is the same, mean")


class FollowedImportance(_Part):
    """Importance compared with that at the start of the training."""

    again: Likeness = Field(description="on as many other batches, with nothing trained between")
    epochs: tuple[Likeness, ...] = Field(description="on the same batches, after each epoch")


class TrainingResult(_Line):
    """One training that is done. Where it failed, there is `failure`, and what is measured is not there."""

    stage: Literal["tune", "run"] = Field(description="tune: tries a learning rate on validation data; run: counts")
    contender: str = Field(description="its name in the matrix")
    budget: str | None = Field(description="its name in the matrix; null: the contender has none")
    rate: float = Field(description="learning rate")
    diverged_rates: tuple[float, ...] = Field(
        default=(), description="higher ones that were tried first, and at which the loss ended no better than a guess"
    )
    accuracy: float | None = Field(
        description="after the last epoch, on the test data (tune: the validation data), 0 to 1"
    )
    accuracies: tuple[float | None, ...] | None = Field(default=None, description="after each epoch, 0 to 1")
    losses: tuple[float | None, ...] | None = Field(
        default=None, description="on the same data after each epoch; null where it is infinite"
    )
    train_losses: tuple[float | None, ...] | None = Field(
        default=None, description="mean over the steps of each epoch; null where it is infinite"
    )
    training_bytes: int | None = Field(default=None, description="measured training memory, the most of any step")
    live_peak_bytes: int | None = Field(default=None, description="measured live peak, the most of any step")
    step_seconds: float | None = Field(default=None, description="median time from step to step; null: too few steps")
    budget_bytes: int | None = Field(default=None, description="the budget in bytes; null: the contender has none")
    layers: int | None = Field(default=None, description="layers that are trained, the head apart; LoRA: adapted ones")
    channels: int | None = Field(default=None, description="channels that are trained at a time, over all layers")
    biases: int | None = Field(default=None, description="biases that are trained")
    coverage: float | None = Field(
        default=None, description="share of the planned layers' channels that were ever trained, 0 to 1; null: unknown"
    )
    blocks: int | None = Field(default=None, description="checkpointed: blocks that are computed again in backward")
    stability: FollowedImportance | None = Field(default=None, description="of a contender with `follow`")


class BenchOutput(_Part):
    """What `medyate bench --json` and `medyate show FOLDER --json` print."""

    kind: Literal["bench"] = Field(description="what this file is")
    schema_version: Literal[1] = Field(description="of this form")
    name: str = Field(description="of the matrix")
    runs: tuple[TrainingResult, ...] = Field(description="trainings of stage run that are done, in the matrix's order")


ResultLine = Annotated[RankResult | TrainingResult, Field(discriminator="stage")]
