"""Reports as files: what is written is what the report says, and no name in it can do harm."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from example_report import HOSTILE_NAMES
from torch import nn

from medyate_planner import report
from medyate_planner.errors import InputError
from medyate_planner.reporting import figures
from medyate_planner.reporting.export import ENDINGS, check_ending, report_csv, write_report
from medyate_planner.reporting.tables import safe
from medyate_planner.reporting.view import MemoryReport, ReportedModule, read_report

FORMULAS = (
    "=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1+1", "\r=1+1", "\n=1+1", "=cmd|' /C calc'!A0", '=HYPERLINK("http://x","y")',
)  # fmt: skip
FIGURES = ("parameters", "weights_bytes", "gradients_bytes", "optimizer_bytes", "saved_bytes")


class Net(nn.Module):
    """Two convolutions in a block, a norm, a head, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(x).mean((2, 3)) * self.scale)


@pytest.fixture(scope="module")
def made() -> MemoryReport:
    return report(Net(), torch.zeros(2, 3, 8, 8), optimizer="adam")


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def _renamed(made: MemoryReport, name: str, *, kind: str = "Linear") -> MemoryReport:
    """The report as if its modules and layers had a hostile name, also after that of a parent."""
    modules = (
        ReportedModule(**{**made.modules[1].model_dump(), "path": name, "kind": kind}),
        ReportedModule(**{**made.modules[2].model_dump(), "path": f"{name}.{name}", "kind": kind}),
    )
    layer = made.layers[0].model_copy(update={"name": f"alone {name}"})
    stray = made.layers[1].model_copy(update={"name": name[::-1] + "="})
    model = made.model.model_copy(update={"spec": name})
    return made.model_copy(update={"modules": modules, "layers": (layer, stray), "model": model})


def test_csv_parses_back_and_sums_to_the_totals(made: MemoryReport) -> None:
    rows = _rows(report_csv(made))
    assert [row["module"] for row in rows[: len(made.modules)]] == [m.path or "(model)" for m in made.modules]
    for figure in FIGURES[1:]:
        assert sum(int(row[figure]) for row in rows) == getattr(made.full, figure), figure
    assert sum(int(row["parameters"]) for row in rows) == made.model.num_parameters
    for row in rows:
        assert int(row["total_bytes"]) == sum(int(row[figure]) for figure in FIGURES[1:])


def test_csv_has_what_a_channel_of_each_layer_costs(made: MemoryReport) -> None:
    rows = {row["module"]: row for row in _rows(report_csv(made))}
    for layer in made.layers:
        row = rows[layer.name]
        assert row["layer_kind"] == layer.kind
        assert int(row["channels"]) == layer.channels
        assert int(row["gradient_bytes_per_channel"]) == layer.gradient_bytes_per_channel
        assert int(row["passthrough_bytes"]) == layer.passthrough_bytes
        assert row["head"] == str(layer.head)
    assert rows["block.1"]["channels"] == ""


def test_csv_lists_a_layer_that_no_module_is_named_after(made: MemoryReport) -> None:
    stray = made.layers[0].model_copy(update={"name": "no.such.module"})
    rows = _rows(report_csv(made.model_copy(update={"layers": (*made.layers, stray)})))
    assert (rows[-1]["module"], rows[-1]["total_bytes"], rows[-1]["layer_kind"]) == ("no.such.module", "0", stray.kind)


@pytest.mark.parametrize("name", [*FORMULAS, *HOSTILE_NAMES])
@pytest.mark.parametrize("where", ["path", "kind"])
def test_no_cell_is_a_formula_or_holds_a_control_character(made: MemoryReport, name: str, where: str) -> None:
    hostile = _renamed(made, name) if where == "path" else _renamed(made, "block", kind=name)
    text = report_csv(hostile)
    rows = list(csv.reader(io.StringIO(text)))
    assert {len(row) for row in rows} == {14}
    assert len(rows) == 1 + 4
    for cell in (cell for row in rows for cell in row):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")), repr(cell)
        assert cell == safe(cell), repr(cell)


def test_json_reads_back_as_the_same_report(made: MemoryReport, tmp_path: Path) -> None:
    file = made.save(tmp_path / "report.json")
    assert read_report(json.loads(file.read_text()), where="file") == made
    hostile = _renamed(made, HOSTILE_NAMES[2])
    assert read_report(json.loads(hostile.save(file).read_text()), where="file") == hostile


@pytest.mark.parametrize("ending", [".png", ".svg", ".csv", ".json", ".html"])
def test_the_same_report_gives_the_same_file(made: MemoryReport, tmp_path: Path, ending: str) -> None:
    first, second = made.save(tmp_path / f"a{ending}"), made.save(tmp_path / f"b{ending}")
    assert first.read_bytes() == second.read_bytes()
    assert len(first.read_bytes()) > 100


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "$x$", "$\\frac{", "a\\$b", "\ud800"])
def test_a_figure_with_a_hostile_name_is_drawn(made: MemoryReport, tmp_path: Path, name: str) -> None:
    file = _renamed(made, name).save(tmp_path / "report.svg")
    text = file.read_text()
    assert "\x1b" not in text
    assert "<script>window" not in text


def test_a_figure_leaves_matplotlib_as_it_was(made: MemoryReport, tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    before = (matplotlib.get_backend(), dict(matplotlib.rcParams))
    made.save(tmp_path / "report.png")
    assert (matplotlib.get_backend(), dict(matplotlib.rcParams)) == before


@pytest.mark.parametrize("name", ["report", "report.txt", "report.JSON", "report.csv.bak", ".json"])
def test_an_unknown_ending_is_refused_with_those_that_are_known(made: MemoryReport, tmp_path: Path, name: str) -> None:
    for refuse in (lambda: made.save(tmp_path / name), lambda: check_ending(Path(name))):
        with pytest.raises(InputError) as caught:
            refuse()
        assert all(ending in caught.value.message for ending in ENDINGS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_figures_without_matplotlib_are_refused_with_the_remedy(
    made: MemoryReport, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "find_spec", lambda _name: None)
    for refuse in (lambda: made.save(tmp_path / f"r{ending}"), lambda: check_ending(Path(f"r{ending}"))):
        with pytest.raises(InputError, match=r"pip install 'medyate-planner\[report\]'"):
            refuse()
    assert list(tmp_path.iterdir()) == []
    check_ending(Path("r.csv"))
    made.save(tmp_path / "r.csv")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_exists_is_left_alone_without_force(made: MemoryReport, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"report{ending}"
    file.write_text("mine")
    with pytest.raises(InputError, match="--force"):
        write_report(made, file, force=False)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_text() == "mine"
    write_report(made, file, force=True)
    assert file.read_bytes() != b"mine"


def test_a_failure_while_drawing_leaves_no_file(
    made: MemoryReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(figures, "_panel", fail)
    (tmp_path / "report.png").write_text("mine")
    with pytest.raises(RuntimeError, match="no ink"):
        made.save(tmp_path / "report.png")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.png", "mine")]
