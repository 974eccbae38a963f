"""Seconds and error of memory estimators on one step, side by side in one run; and a cold report.

    python reports/speed.py > reports/speed.txt      (about 3 minutes, one thread; needs torchinfo and torchlens)

Every tool is asked for what it claims to know, for the same model and batch; the truth is a measured real step.
Repetitions are interleaved, so that a busy moment hits all alike; the table gives the median and the spread.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
CASES = (("torchvision:resnet50", 8), ("timm:vit_small_patch16_224", 8))
REPETITIONS = 3
COLD_REPETITIONS = 5
_EXPORT_ALONE = """
import warnings; warnings.simplefilter("ignore")
import torch; torch.set_num_threads(1)
from torch.export import Dim, export
from medyate_planner.models import build_zoo_model
with torch.device("cpu"):
    model = build_zoo_model("mcunet-5fps").eval()
export(model, (torch.zeros(2, 3, 128, 128),), dynamic_shapes=({0: Dim("batch")},), strict=False).module()
"""


def main() -> None:
    """Print all tables."""
    import torch

    torch.set_num_threads(1)
    for spec, batch in CASES:
        _compare(spec, batch)
    _cold()


def _compare(spec: str, batch: int) -> None:
    from architectures import build, example

    from medyate_planner.losses import named_loss
    from medyate_planner.trace import input_specs
    from medyate_planner.training.ordinary import Regime
    from medyate_planner.training.real import real_step

    model = build(spec, "cpu")
    x = example(spec, model, batch)
    loss = named_loss("cross-entropy")
    truth = real_step(model, input_specs(x), batch, loss.function, loss.make_target, Regime()).step
    tools: dict[str, Callable[[Any, Any], dict[str, int]]] = {
        "torchinfo (output bytes, as saved)": _torchinfo,
        "torch MemTracker, fake tensors": _mem_tracker,
        "torchlens (autograd bytes, as saved)": _torchlens,
        "medyate: a step on fake tensors": _dry_step,
        "torch.export alone": _export,
        "medyate: all but torch.export": _everything,
    }
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    found: dict[str, dict[str, int]] = {}
    for repetition in range(REPETITIONS + 1):
        for name, tool in tools.items():
            start = time.perf_counter()
            result = tool(model, x)
            taken = time.perf_counter() - start
            if "own seconds" in result:
                taken = result.pop("own seconds") / 1e6
            if repetition:  # the first one imports and warms up
                seconds[name].append(taken)
            found[name] = result
    actual = {"saved": truth.saved_bytes, "live peak": truth.live_peak_bytes}
    print(f"{spec}, batch {batch}: measured saved {actual['saved']:,} B, live peak {actual['live peak']:,} B\n")
    print(f"{'':38}{'median s':>10}{'min - max s':>18}{'saved':>18}{'error':>9}{'live peak':>18}{'error':>9}")
    for name in tools:
        cells = ""
        for figure in ("saved", "live peak"):
            amount = found[name].get(figure)
            error = "" if amount is None else f"{amount / actual[figure] - 1:+.1%}" if amount != actual[figure] else "0"
            cells += f"{'' if amount is None else f'{amount:,}':>18}{error:>9}"
        taken = seconds[name]
        print(f"{name:38}{statistics.median(taken):>10.2f}{f'{min(taken):.2f} - {max(taken):.2f}':>18}{cells}")
    print(flush=True)


def _torchinfo(model: Any, x: Any) -> dict[str, int]:
    import torchinfo

    return {"saved": int(torchinfo.summary(model, input_data=x, verbose=0).total_output_bytes)}


def _torchlens(model: Any, x: Any) -> dict[str, int]:
    import torchlens

    return {"saved": int(torchlens.trace(model, x).total_autograd_memory)}


def _mem_tracker(model: Any, x: Any) -> dict[str, int]:
    """One step under MemTracker, with nothing of ours but the fake copy."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    from medyate_planner.trace.twin import fake_copy

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    twin = fake_copy(model, mode, "cpu")
    with mode:
        batch = torch.empty_like(x)
        target = torch.zeros(x.shape[0], dtype=torch.int64)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.0)
        tracker = MemTracker()
        tracker.track_external(twin, optimizer, batch, target)
        with tracker:
            torch.nn.functional.cross_entropy(twin(batch), target).backward()
            optimizer.step()
            optimizer.zero_grad()
        peak = tracker.get_tracker_snapshot("peak")
    return {"live peak": int(next(iter(peak.values()))["Total"])}


def _dry_step(model: Any, x: Any) -> dict[str, int]:
    from medyate_planner.losses import named_loss
    from medyate_planner.trace import input_specs
    from medyate_planner.training.ordinary import Regime, dry_ordinary

    loss = named_loss("cross-entropy")
    step = dry_ordinary(model, input_specs(x), x.shape[0], loss.function, loss.make_target, Regime()).step
    return {"saved": step.saved_bytes, "live peak": step.live_peak_bytes}


def _export(model: Any, x: Any) -> dict[str, int]:
    from torch.export import Dim, export

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(model, (x,), dynamic_shapes=({0: Dim("batch")},), strict=False).module(check_guards=False)
    return {}


def _everything(model: Any, x: Any) -> dict[str, int]:
    """A whole report (graph, layers, inference, full and lean fine-tuning, bound) without torch.export's own time."""
    import medyate_planner
    from medyate_planner.trace import capture

    spent, original = [0.0], capture._export

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - start

    capture._export = timed
    start = time.perf_counter()
    try:
        report = medyate_planner.report(model, x)
    finally:
        capture._export = original
    own = time.perf_counter() - start - spent[0]
    full = report.full
    return {"saved": full.saved_bytes, "live peak": full.live_peak_bytes, "own seconds": int(own * 1e6)}


def _cold() -> None:
    """Whole processes, paired: a script that imports torch and exports, and `medyate report` of the same network."""
    commands = {
        "import torch, torch.export of mcunet-5fps": [sys.executable, "-c", _EXPORT_ALONE],
        "medyate report mcunet-5fps": [sys.executable, "-m", "medyate_planner", "report", "mcunet-5fps"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(COLD_REPETITIONS):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    print("Cold, whole processes, interleaved\n")
    for name, taken in seconds.items():
        print(f"{name:48}{statistics.median(taken):>8.2f} s   ({min(taken):.2f} - {max(taken):.2f})")
    export, report = seconds.values()
    extra = [r - e for e, r in zip(export, report, strict=True)]
    print(
        f"{'a report costs beyond that':48}{statistics.median(extra):>8.2f} s   ({min(extra):.2f} - {max(extra):.2f})"
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
