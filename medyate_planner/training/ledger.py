"""A ledger of live storages: who is in memory now, why, and how it was after each operator."""

from __future__ import annotations

from medyate_planner.memory.moments import CATEGORIES, CATEGORY_INDEX, Category, LiveMoment, Place, Timeline

_NOWHERE = Place()


class Ledger:
    """Bytes of every live storage by category; with `record` also a row after every operator.

    A storage has a category of its own and, while backward needs it, that of being kept.
    """

    def __init__(self, *, record: bool) -> None:
        self._record = record
        self._entries: dict[int, list[int]] = {}  # key -> [bytes, own category, kept category or -1, row]
        self._now = [0] * len(CATEGORIES)
        self._rows: list[tuple[str, str, Place, list[int]]] = []
        self.total_bytes = self.peak_bytes = 0
        self.grown = False  # since the latest row

    def __contains__(self, key: int) -> bool:
        return key in self._entries

    def entries(self) -> dict[int, int]:
        """Bytes of the live storages by key."""
        return {key: entry[0] for key, entry in self._entries.items()}

    def add(self, key: int, nbytes: int, category: Category) -> None:
        """A storage came into being."""
        own = CATEGORY_INDEX[category]
        self._entries[key] = [nbytes, own, -1, len(self._rows)]
        self._now[own] += nbytes
        self.grown = True
        self.total_bytes += nbytes
        if self.total_bytes > self.peak_bytes:
            self.peak_bytes = self.total_bytes

    def drop(self, key: int) -> None:
        """A storage was freed."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            nbytes, own, kept, _ = entry
            self._now[own if kept < 0 else kept] -= nbytes
            self.total_bytes -= nbytes

    def recategorise(self, key: int, category: Category) -> None:
        """It has become clear what a storage is, as of the latest row."""
        entry = self._entries.get(key)
        if entry is None:
            return
        own, entry[1] = entry[1], CATEGORY_INDEX[category]
        if entry[2] < 0:
            self._move(entry, own, entry[1], also_latest=True)

    def keep(self, key: int, category: Category) -> None:
        """Backward needs a storage from now on."""
        entry = self._entries.get(key)
        if entry is not None and entry[2] < 0:
            entry[2] = CATEGORY_INDEX[category]
            self._move(entry, entry[1], entry[2], also_latest=True)

    def release(self, key: int) -> None:
        """Backward needs a storage no longer."""
        entry = self._entries.get(key)
        if entry is not None and entry[2] >= 0:
            kept, entry[2] = entry[2], -1
            self._move(entry, kept, entry[1], also_latest=False)

    def _move(self, entry: list[int], source: int, target: int, *, also_latest: bool) -> None:
        nbytes, created = entry[0], entry[3]
        self._now[source] -= nbytes
        self._now[target] += nbytes
        if also_latest and created < len(self._rows):  # it was there when the latest row was written
            latest = self._rows[-1][3]
            latest[source] -= nbytes
            latest[target] += nbytes

    def write(self, phase: str, operator: str, place: Place = _NOWHERE) -> None:
        """Write the row of an operator that has just run."""
        if self._record:
            self._rows.append((phase, operator, place, self._now.copy()))
            self.grown = False

    def timeline(self) -> Timeline:
        """All rows."""
        return Timeline(
            moments=tuple(
                LiveMoment(phase=phase, operator=operator, place=place, live_bytes=tuple(row))
                for phase, operator, place, row in self._rows
            )
        )
