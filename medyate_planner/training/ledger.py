"""A ledger of live storages: who is in memory now, why, and how it was after each operator."""

from __future__ import annotations

from medyate_planner.memory.moments import CATEGORIES, CATEGORY_INDEX, Category, LiveMoment, Place, Timeline

_NOWHERE = Place()


class _Entry:
    """A live storage: its own category, that of being kept (or -1), the one it counts in now and the one it has in the
    latest row; how many rows there were when it was made and when it was last moved."""

    __slots__ = ("category", "created", "in_latest", "kept", "moved", "nbytes", "own")

    def __init__(self, nbytes: int, own: int, rows: int) -> None:
        self.nbytes, self.own, self.kept, self.category, self.in_latest = nbytes, own, -1, own, own
        self.created, self.moved = rows, -1


class Ledger:
    """Bytes of every live storage by category; with `record` also a row after every operator.

    A storage has a category of its own and, while backward needs it, that of being kept.
    """

    def __init__(self, *, record: bool) -> None:
        self._record = record
        self._entries: dict[int, _Entry] = {}  # key -> see _Entry
        self._now = [0] * len(CATEGORIES)
        self._rows: list[tuple[str, str, Place, list[int]]] = []
        self.total_bytes = self.peak_bytes = 0
        self.grown = False  # since the latest row

    def __contains__(self, key: int) -> bool:
        return key in self._entries

    def entries(self) -> dict[int, int]:
        """Bytes of the live storages by key."""
        return {key: entry.nbytes for key, entry in self._entries.items()}

    def add(self, key: int, nbytes: int, category: Category) -> None:
        """A storage came into being."""
        own = CATEGORY_INDEX[category]
        self._entries[key] = _Entry(nbytes, own, len(self._rows))
        self._now[own] += nbytes
        self.grown = True
        self.total_bytes += nbytes
        if self.total_bytes > self.peak_bytes:
            self.peak_bytes = self.total_bytes

    def drop(self, key: int) -> None:
        """A storage was freed."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._now[entry.category] -= entry.nbytes
            self.total_bytes -= entry.nbytes

    def recategorise(self, key: int, category: Category) -> None:
        """It has become clear what a storage is, as of the latest row."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.own = CATEGORY_INDEX[category]
            if entry.kept < 0:
                self._move(entry, entry.own, also_latest=True)

    def keep(self, key: int, category: Category) -> None:
        """Backward needs a storage from now on."""
        entry = self._entries.get(key)
        if entry is not None and entry.kept < 0:
            entry.kept = CATEGORY_INDEX[category]
            self._move(entry, entry.kept, also_latest=True)

    def release(self, key: int) -> None:
        """Backward needs a storage no longer."""
        entry = self._entries.get(key)
        if entry is not None and entry.kept >= 0:
            entry.kept = -1
            self._move(entry, entry.own, also_latest=False)

    def _move(self, entry: _Entry, target: int, *, also_latest: bool) -> None:
        source, entry.category = entry.category, target
        self._now[source] -= entry.nbytes
        self._now[target] += entry.nbytes
        if entry.moved != len(self._rows):  # the first move since the latest row, which has it where it was
            entry.moved, entry.in_latest = len(self._rows), source
        if also_latest and entry.created < len(self._rows):  # it was there when the latest row was written
            latest = self._rows[-1][3]
            latest[entry.in_latest] -= entry.nbytes
            latest[target] += entry.nbytes
            entry.in_latest = target

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
