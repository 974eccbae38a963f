"""`medyate train --cache-prefix`: what runs before the reach is computed once for each sample."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from medyate_planner.cli.output import say

if TYPE_CHECKING:
    from medyate_planner.cli.options import DataOptions
    from medyate_planner.data import DataBundle
    from medyate_planner.planning.plan import Plan
    from medyate_planner.training.batches import Batches
    from medyate_planner.training.prefixed import PrefixedTraining, Samples
    from medyate_planner.training.session import Session


@Parameter(name="*", group="Prefix cache")
@dataclass(frozen=True, kw_only=True)
class PrefixOptions:
    """Whether to keep, by sample, what runs before the trained layers."""

    cache_prefix: Annotated[bool, Parameter(negative="")] = False
    "Compute what runs before the trained layers once for each sample, and keep it in the run folder until the end."
    keep_prefix: Annotated[bool, Parameter(negative="")] = False
    "Leave that there at the end too."

    def cache(self, plan: Plan, reading: DataOptions, *, data: str, seed: int, run: Path) -> RunPrefix | None:
        """The cache that was asked for, in the run folder.

        Raises:
            InputError: with this plan or data a sample has other values in every epoch.
        """
        from medyate_planner.errors import InputError

        if self.keep_prefix and not self.cache_prefix:
            raise InputError("--keep-prefix says what becomes of the cache at the end: it needs --cache-prefix")
        if not self.cache_prefix:
            return None
        return RunPrefix(plan, reading, data=data, seed=seed, folder=run / "prefix", keep=self.keep_prefix)


class RunPrefix:
    """The cache of one run, in a folder of the run folder. A run that is interrupted leaves it there to go on with."""

    def __init__(self, plan: Plan, reading: DataOptions, *, data: str, seed: int, folder: Path, keep: bool) -> None:
        from medyate_planner.training.prefixed import check_cacheable

        check_cacheable(augment=reading.augment, norm=plan.norm, pool=plan.sampling.pool)
        self._plan, self._reading, self._data, self._seed = plan, reading, data, seed
        self._folder, self._keep = folder, keep
        self._made: PrefixedTraining | None = None

    def batches(self, session: Session, bundle: DataBundle, source: Batches) -> Batches:
        """What the session is to train on in place of `source`; says what it takes on disk."""
        from medyate_planner.training.prefixed import PrefixedTraining

        made = PrefixedTraining(session, self._samples(bundle, source), self._folder, facts=self._facts(), tell=say)
        say(made.describe())
        self._made = made
        return made.batches

    def finish(self) -> None:
        """The run has ended: remove the folder, unless it was asked to keep it."""
        if self._made is not None:
            self._made.finish(keep=self._keep)

    def _samples(self, bundle: DataBundle, source: Batches) -> Samples:
        from medyate_planner.data.chosen import load_places, places_by_batch
        from medyate_planner.training.prefixed import Samples

        count: int = len(bundle.train)  # type: ignore[arg-type]
        size, seed, workers = self._plan.batch_size, self._seed, self._reading.workers
        return Samples(
            count=count,
            order=lambda epoch: places_by_batch(count, size, seed=seed, epoch=epoch),
            load=lambda epoch, chosen: load_places(bundle.train, chosen, seed=seed, epoch=epoch, workers=workers),
            test=source.test,
            steps_per_epoch=source.steps_per_epoch,
        )

    def _facts(self) -> dict[str, Any]:
        """What samples depend on."""
        reading = {name: value for name, value in asdict(self._reading).items() if name != "workers"}
        file = Path(self._data.partition(":")[2]).expanduser()
        state = file.stat() if file.is_file() else None
        when = [] if state is None else [state.st_size, state.st_mtime_ns]
        return {"data": self._data, "reading": reading, "file": when, "seed": self._seed, "dtype": self._plan.dtype}
