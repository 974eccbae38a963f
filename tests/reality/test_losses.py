"""What the loss keeps, for the named losses and the user's own; and what full fine-tuning costs in PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner import InputError, plan, prepare, report, verify
from medyate_planner.subject import subject_of


def network(classes: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )


def focal(outputs: Tensor, target: Tensor) -> Tensor:
    """A loss of a user's own."""
    surprise = functional.cross_entropy(outputs, target, reduction="none")
    return ((1 - torch.exp(-surprise)) ** 2 * surprise).mean()


@pytest.mark.parametrize(("batch_size", "classes"), [(1, 6), (8, 6), (5, 1000)])
def test_cross_entropy_keeps_its_probabilities_labels_and_weight(batch_size: int, classes: int) -> None:
    made = subject_of(network(classes), torch.zeros(batch_size, 3, 8, 8))
    assert sum(keep.nbytes for keep in made.memory.loss) == batch_size * classes * 4 + 8 * batch_size + 4


@pytest.mark.parametrize("loss", ["cross-entropy", "mse", focal])
def test_predicted_and_measured_agree_for_every_loss(loss: object) -> None:
    model, x = network(), torch.zeros(4, 3, 8, 8)
    decided = plan(model, x, budget="20kB", strategy="full", loss=loss)
    assert decided.predicted.loss_bytes > 0
    assert verify(model, decided, loss=loss).ok  # type: ignore[arg-type]
    with prepare(model, decided) as session:  # needs no loss
        session(x).square().mean().backward()


def test_an_output_that_the_loss_keeps_too_is_counted_once() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 4), nn.Sigmoid())
    decided = plan(model, torch.zeros(3, 6), budget="20kB", strategy="full", loss="mse")
    result = verify(model, decided)
    assert result.ok, result.categories


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(InputError, match="hinge"):
        subject_of(network(), torch.zeros(4, 3, 8, 8), loss="hinge")


@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_full_fine_tuning_is_predicted_as_pytorch_runs_it(norm: str) -> None:
    model, x, target = network(), torch.randn(4, 3, 8, 8), torch.arange(4)
    full = report(model, x, norm=norm).full
    model.train(norm == "train")
    kept: dict[int, int] = {}
    resident = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in resident:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    functional.cross_entropy(output, target).backward()
    assert full.saved_bytes == sum(kept.values())
    assert full.gradients_bytes == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
