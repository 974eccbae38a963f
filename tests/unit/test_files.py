"""Files are written whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from medyate_planner.errors import InputError
from medyate_planner.files import read_text, sha256_of, write_atomic, write_text


def test_write_text_makes_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "plan.json"
    assert write_text(path, "größe\n") == path
    assert path.read_bytes() == "größe\n".encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError("torn"), KeyboardInterrupt(), ValueError("torn")])
@pytest.mark.parametrize("exists", [True, False])
def test_write_atomic_leaves_the_old_file_when_the_writer_fails(
    tmp_path: Path, error: BaseException, exists: bool
) -> None:
    path = tmp_path / "file"
    if exists:
        path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise error

    with pytest.raises(type(error)):
        write_atomic(path, write)
    assert [p.read_text() for p in tmp_path.iterdir()] == (["old"] if exists else [])


def test_write_atomic_reports_a_full_disk_as_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="can not be written: No space left on device") as caught:
        write_atomic(path, write)
    assert str(path) in caught.value.message
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_write_atomic_writes_beside_the_file(tmp_path: Path) -> None:
    seen: list[Path] = []
    write_atomic(tmp_path / "file", lambda temporary: seen.append(temporary))
    assert seen[0].parent == tmp_path
    assert seen[0].name != "file"


def test_write_text_without_force_refuses_to_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "first", force=False)
    with pytest.raises(InputError, match="exists; pass --force") as caught:
        write_text(path, "second", force=False)
    assert str(path) in caught.value.message
    assert path.read_text() == "first"
    write_text(path, "second", force=True)
    assert path.read_text() == "second"


def test_write_text_onto_or_below_the_wrong_thing_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    for path in (tmp_path / "folder", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="can not be written") as caught:
            write_text(path, "x")
        assert str(path) in caught.value.message
        assert "\n" not in caught.value.message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_read_text_names_what_is_missing_or_unreadable(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"plan .*nothing: no such file"):
        read_text(tmp_path / "nothing", what="plan")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"plan .*binary: can not be read"):
        read_text(tmp_path / "binary", what="plan")
    with pytest.raises(InputError, match="can not be read"):
        read_text(tmp_path, what="plan")


def test_sha256_of_a_file_longer_than_one_chunk(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
