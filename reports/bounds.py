"""How tight the closed-form bound of the live peak is: bound against dry run, for random updates of growing reach.

python reports/bounds.py > reports/bounds.txt       (about 3 minutes, one thread)
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
CASES = {"head alone": 0, "last 8 layers": 8, "last 20 layers": 20, "all layers": 10**6}
SHARE = 0.2
BATCH = 4


def main() -> None:
    """Print one row per network."""
    import torch
    from architectures import PLANNED, build, example, loss_name

    from medyate_planner.models import ZOO, example_input, load_model
    from medyate_planner.subject import subject_of

    torch.set_num_threads(1)
    print(
        f"Bound of the live peak divided by the live peak (dry run), batch {BATCH}, about {SHARE:.0%} of the channels\n"
    )
    print(f"{'network':36}" + "".join(f"{name:>16}" for name in CASES))
    for name in (*ZOO, *PLANNED):
        if name in ZOO:
            model = load_model(name, allocate=False).model
            subject = subject_of(model, example_input(model, (3, 128, 128), batch_size=BATCH))
        else:
            model = build(name, "meta")
            subject = subject_of(model, example(name, model, BATCH), loss=loss_name(name))
        cells = [_ratio(subject, count) for count in CASES.values()]
        print(f"{name:36}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


def _ratio(subject: Any, count: int) -> str:
    from medyate_planner.memory.model import Updates
    from medyate_planner.training.dryrun import dry_run

    graph, random = subject.graph, Random(0)
    body = [layer for layer in graph.layers if layer.name not in graph.head][-count:] if count else []
    updates = Updates(
        quotas={layer.name: max(1, round(layer.channels * SHARE * 2 * random.random())) for layer in body},
        full=frozenset(graph.head),
    )
    if not updates.layers:
        return "no head"
    dry = dry_run(subject.traced, graph, updates, subject.loss.function, subject.loss.make_target)
    return f"{subject.peak_bound_bytes(updates) / dry.live_peak_bytes:.4f}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
