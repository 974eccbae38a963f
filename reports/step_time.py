"""Time and memory of a training step: a plan, full fine-tuning, the plan simulated by masks, and the bare calls.

    python reports/step_time.py > reports/step_time.txt      (about half a minute; needs the data files)

The plan trains 10 % of the input channels of the last 20 convolutions and the classifier in full, with fused SGD.
Repetitions are interleaved, so that a busy moment hits all alike, every other one in reverse, so that what ran before a
step favours none; quotients are taken within each repetition.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from bare_calls import looped_calls, straight_calls
from subjects import CLASSES
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner.api import plan
from medyate_planner.memory.model import Updates
from medyate_planner.models import example_input, load_model
from medyate_planner.models.zoo import ZOO_PREPROCESSING
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.kept import KeptTracker
from medyate_planner.training.measure import measure_step
from medyate_planner.training.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

NETWORKS = ("mcunet-5fps", "mbv2-w0.35")
BATCHES = (8, 1)
LAYERS, SHARE = 20, 0.1
REPETITIONS, WARM_UP = 20, 5
LR = 1e-4
BUDGET = "512kB"
PLANNED, FULL, MASKED = "planned", "(a) full fine-tuning", "(b) the plan by masks"
LOOP, STRAIGHT = "(c) bare calls in a loop", "(c') as straight code"
Step = Callable[[], object]
Bytes = tuple[int, int]


def main() -> None:
    """Print a table of times and one of bytes for each network and batch size."""
    torch.set_num_threads(1)
    print(
        f"{SHARE:.0%} of the channels of the last {LAYERS} convolutions, classifier in full, SGD, cross-entropy. "
        f"128 px, channels_last, 1 thread,\n{REPETITIONS} interleaved repetitions, in turn forwards and backwards. "
        "Times in ms: median (quartiles), "
        "minimum. Planned / this: median (quartiles) of the quotients\nwithin a repetition, and of the minima.\n"
        "(a) plain PyTorch, norms in evaluation mode. (b) the same, gradients multiplied by masks. (c) the ATen calls "
        "that the plan\nneeds: forward, activation backward, input gradients in the reach, gradients of given slices, "
        "bound to stored tensors; no\nloss, no packing, no selecting, no update. (c') the same calls as straight code "
        "that hands results on and frees them, which\nis faster: they are still in the cache.\n"
    )
    for name in NETWORKS:
        for batch in BATCHES:
            _of_network(name, batch)
    _within_budget(NETWORKS[0], BATCHES[0])


def _subject(name: str, batch: int) -> tuple[Subject, Tensor, Tensor]:
    """A network with its pre-trained weights and a random head, a batch, and its labels."""
    torch.manual_seed(0)
    model = load_model(name, num_classes=CLASSES, require_weights=True).model.to(memory_format=torch.channels_last)
    shape = example_input(model, ZOO_PREPROCESSING.shape, batch_size=batch).shape
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    subject = subject_of(model, x)
    head = subject.graph.layer_by_name[subject.graph.head[0]]
    with torch.no_grad():
        dict(model.named_parameters())[head.weight].normal_(0, 0.05)
    return subject, x, torch.arange(batch) % CLASSES


def _by_hand(subject: Subject) -> Updates:
    body = [layer for layer in subject.graph.layers if layer.name not in subject.graph.head]
    quotas = {layer.name: max(1, int(SHARE * layer.channels)) for layer in body[-LAYERS:]}
    return Updates(quotas=quotas, full=frozenset(subject.graph.head))


def _of_network(name: str, batch: int) -> None:
    subject, x, target = _subject(name, batch)
    updates = _by_hand(subject)
    ordinary = {FULL: _Ordinary(subject, None, x, target), MASKED: _Ordinary(subject, updates, x, target)}
    floors = {LOOP: looped_calls(subject, updates, x), STRAIGHT: straight_calls(subject, updates, x)}
    with Session(subject.model, subject.traced, subject.graph, updates, lambda _interval: {}) as session:
        session.set_lr(LR)

        def planned() -> None:
            functional.cross_entropy(session(x), target).backward()

        measured = measure_step(session, (x,), {}, target, subject.loss.function)
        steps = {FULL: ordinary[FULL].step, MASKED: ordinary[MASKED].step, **floors, PLANNED: planned}
        seconds = _interleaved(steps)
    print(f"{name}, batch {batch}\n")
    _show_times(seconds)
    sizes = {PLANNED: (measured.saved_bytes, measured.training_bytes)}
    _show_bytes(sizes | {what: each.measured() for what, each in ordinary.items()})


class _Ordinary:
    """Plain fine-tuning of a copy; with updates, gradients are multiplied by masks, as the papers simulate a plan."""

    def __init__(self, subject: Subject, updates: Updates | None, x: Tensor, target: Tensor) -> None:
        self.model = copy.deepcopy(subject.model).eval()
        self.x, self.target = x, target
        for parameter in self.model.parameters():
            parameter.requires_grad_()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR)
        self.masks = [] if updates is None else _masks(subject, updates, self.model)

    def step(self) -> None:
        """One training step."""
        functional.cross_entropy(self.model(self.x), self.target).backward()
        for parameter, mask in self.masks:
            assert parameter.grad is not None
            parameter.grad.mul_(mask)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def measured(self) -> Bytes:
        """Bytes saved by forward, and the largest sum of what is kept for training at a time, masks included."""
        masks = [mask for _, mask in self.masks]
        resident = [*self.model.parameters(), *self.model.buffers(), *masks]
        kept = KeptTracker(resident, fixed_bytes=sum(mask.nbytes for mask in masks), lean=False)

        def seen(parameter: Tensor) -> None:
            assert parameter.grad is not None
            kept.gradient(parameter.grad, True)

        handles = [p.register_post_accumulate_grad_hook(seen) for p in self.model.parameters()]  # type: ignore[no-untyped-call]
        with kept:
            output = self.model(self.x)
            saved = kept.saved_bytes
            kept.phase = "loss"
            functional.cross_entropy(output, self.target).backward()
        for handle in handles:
            handle.remove()
        self.optimizer.zero_grad(set_to_none=True)
        return saved, kept.training_bytes


def _masks(subject: Subject, updates: Updates, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """For each parameter ones where the plan trains it: the first channels of each layer, and the head."""
    found = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for layer in subject.graph.layers:
        n = updates.quotas.get(layer.name, 0)
        if layer.name in updates.full:
            for parameter in (layer.weight, layer.bias):
                if parameter is not None:
                    found[parameter].fill_(1)
        elif layer.kind == "depthwise":
            found[layer.weight][:n] = 1
        else:
            found[layer.weight][:, :n] = 1
    return [(parameter, found[name]) for name, parameter in model.named_parameters()]


def _interleaved(steps: Mapping[str, Step]) -> dict[str, list[float]]:
    """Milliseconds of each step in each repetition, the first few left out."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(WARM_UP + REPETITIONS):
        ordered = list(steps.items())
        for name, step in ordered if repetition % 2 else reversed(ordered):
            start = time.perf_counter()
            step()
            seconds = time.perf_counter() - start
            if repetition >= WARM_UP:
                taken[name].append(1e3 * seconds)
    return taken


def _quartiles(values: Sequence[float], digits: int) -> str:
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def _show_times(taken: Mapping[str, list[float]]) -> None:
    print(f"{'':26}{'ms':>24}{'min':>8}{'planned / this':>26}{'of minima':>11}")
    for name in (PLANNED, FULL, MASKED, LOOP, STRAIGHT):
        values = taken[name]
        row = f"{name:26}{_quartiles(values, 2):>24}{min(values):>8.2f}"
        if name != PLANNED:
            quotients = [mine / other for mine, other in zip(taken[PLANNED], values, strict=True)]
            row += f"{_quartiles(quotients, 3):>26}{min(taken[PLANNED]) / min(values):>11.3f}"
        print(row)
    print()


def _show_bytes(sizes: Mapping[str, Bytes]) -> None:
    saved, training = sizes[PLANNED]
    print(f"{'measured bytes':26}{'saved':>14}{'/ planned':>11}{'training':>14}{'/ planned':>11}")
    for name, (other_saved, other_training) in sizes.items():
        times = f"{other_saved / saved:.1f}", f"{other_training / training:.1f}"
        print(f"{name:26}{other_saved:>14,}{times[0]:>11}{other_training:>14,}{times[1]:>11}")
    print(flush=True)


def _within_budget(name: str, batch: int) -> None:
    """What a plan of the planner keeps, channels valued by their mean squared weights."""
    subject, x, target = _subject(name, batch)
    full = _Ordinary(subject, None, x, target).measured()
    decided = plan(subject, budget=BUDGET, request={"objective": "norm", "metric": "raw"})
    with Session(subject.model, subject.traced, subject.graph, decided.updates(), lambda _interval: {}) as session:
        session.set_lr(LR)
        measured = measure_step(session, (x,), {}, target, subject.loss.function)
    quotas = decided.quotas()
    print(
        f"{name}, batch {batch}, planned for {BUDGET} of training memory: {sum(quotas.values())} channels of "
        f"{len(quotas)} layers and {len(decided.biases)} biases\n"
    )
    _show_bytes({PLANNED: (measured.saved_bytes, measured.training_bytes), FULL: full})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
