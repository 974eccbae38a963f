"""Data specs, datasets and loaders, on small pictures made here."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from medyate_planner.data import DataBundle, ImageDataset, load_data, make_loader
from medyate_planner.data import datasets as datasets_module
from medyate_planner.data.datasets import augment_images, fit_image
from medyate_planner.errors import InputError
from medyate_planner.models import Preprocessing

ASSETS = Path(os.environ.get("MEDYATE_ASSETS") or Path(__file__).parents[2] / "../shared/assets")
RGB = Preprocessing(size=(8, 8), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, source="test")
GREY = Preprocessing(size=(8, 8), channels=1, mean=(0.0,), std=(1.0,), source="test")


def picture(shade: int, *, size: tuple[int, int] = (10, 10), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, (shade,) * 3 if mode == "RGB" else shade).save(stream, "PNG")
    return stream.getvalue()


def write_tree(root: Path, counts: dict[str, int]) -> Path:
    """Folders with so many pictures; the shade of each tells the folder and the number."""
    for place, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (root / folder / f"{index:03}.png").write_bytes(picture(20 * place + index))
    return root


def write_tar(path: Path, root: Path, top: str = "", mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        tar.add(root, arcname=top or ".")
    return path


def failure(spec: str, preprocessing: Preprocessing | None = RGB, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load_data(spec, preprocessing, **options)  # type: ignore[arg-type]
    assert "\n" not in caught.value.message
    return caught.value.message


def shades(dataset: torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]) -> list[int]:
    return [round((dataset[i][0][0, 0, 0].item() * 0.5 + 0.5) * 255) for i in range(len(dataset))]  # type: ignore[arg-type]


def test_load_data_imagefolder_with_a_test_set(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 1})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not a picture")
    bundle = load_data(f"imagefolder:{tmp_path}", RGB)
    assert bundle.class_names == ("cat", "dog")
    assert bundle.num_classes == 2
    assert shades(bundle.train) == [0, 1, 2, 20, 21]
    assert shades(bundle.test) == [40, 60]
    assert [bundle.train[i][1].item() for i in range(5)] == [0, 0, 0, 1, 1]
    assert bundle.description == (
        f"imagefolder:{tmp_path}: 5 training and 2 test samples of 2 classes; 3x8x8, bilinear, (x/255 - 0.5)/0.5 (test)"
    )


def test_load_data_splits_every_class(tmp_path: Path) -> None:
    write_tree(tmp_path, {"cat": 10, "dog": 5, "emu": 1})
    spec = f"imagefolder:{tmp_path}"
    bundle, again, other = load_data(spec, RGB), load_data(spec, RGB), load_data(spec, RGB, seed=1)
    assert torch.bincount(bundle.train.targets).tolist() == [8, 4, 1]
    assert torch.bincount(bundle.test.targets, minlength=3).tolist() == [2, 1, 0]
    assert sorted(shades(bundle.train) + shades(bundle.test)) == [*range(10), *range(20, 25), 40]
    assert shades(bundle.test) == shades(again.test)
    assert shades(bundle.test) != shades(other.test)
    assert "--val-fraction 1.5: expected a number above 0 and below 1" in failure(spec, val_fraction=1.5)


def test_load_data_limit_is_even_over_classes(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train/cat": 9, "train/dog": 3, "test/cat": 2, "test/dog": 2})
    bundle = load_data(f"imagefolder:{tmp_path}", RGB, limit=4)
    assert torch.bincount(bundle.train.targets).tolist() == [2, 2]
    assert len(bundle.test) == 4
    assert failure(f"imagefolder:{tmp_path}", limit=0) == "--limit 0: expected at least 1"


@pytest.mark.parametrize(("mode", "top"), [("w", ""), ("w", "outer"), ("w:gz", "outer")])
def test_load_data_tar_equals_folder(tmp_path: Path, mode: str, top: str) -> None:
    root = write_tree(tmp_path / "in", {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1})
    path = write_tar(tmp_path / "data.tar", root, top, mode)
    folder, packed = load_data(f"imagefolder:{root}", RGB), load_data(f"tar:{path}", RGB)
    assert packed.class_names == folder.class_names
    assert shades(packed.train) == shades(folder.train)
    loader = make_loader(packed.train, 2, shuffle=False, seed=0, epoch=0, drop_last=False, workers=2)
    assert [y.tolist() for _, y in loader] == [[0, 0], [1, 1]]


def test_load_data_tar_keeps_links_out(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "in", {"a": 2, "b": 2})
    (root / "a" / "link.png").symlink_to("/etc/passwd")
    bundle = load_data(f"tar:{write_tar(tmp_path / 'd.tar', root)}", RGB)
    assert len(bundle.train) + len(bundle.test) == 4


def test_load_data_tar_errors(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "d.tar", write_tree(tmp_path / "in", {"a": 3, "b": 3}))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    cut = tmp_path / "cut.tar"
    for end in (len(whole) // 2, last.offset, last.offset_data + 10, 700, 100):
        cut.write_bytes(whole[:end])
        assert f"data tar:{cut}: not a tar, or truncated (" in failure(f"tar:{cut}")
    zipped = write_tar(tmp_path / "z.tar.gz", tmp_path / "in", mode="w:gz").read_bytes()
    cut.write_bytes(zipped[: len(zipped) // 2])
    assert "not a tar, or truncated (" in failure(f"tar:{cut}")
    assert failure("tar:no.tar") == "data tar:no.tar: there is no such file"


def test_load_data_folder_errors(tmp_path: Path) -> None:
    spec = f"imagefolder:{tmp_path}"
    assert failure("imagefolder:/no/where") == "data imagefolder:/no/where: there is no such folder"
    assert failure(spec).startswith(f"data {spec}: no images found; expected train/CLASS/*.jpg")
    write_tree(tmp_path, {"train/cat": 2})
    assert failure(spec) == f"data {spec}: expected at least two class folders in train/, found only 'cat'"
    write_tree(tmp_path, {"train/dog": 0})
    assert failure(spec) == f"data {spec}: the class folder train/dog holds no images; fill or remove it"
    write_tree(tmp_path, {"train/dog": 1, "test/cat": 1, "test/emu": 1})
    assert failure(spec) == f"data {spec}: test/ has emu; its classes must be those of train/"
    (tmp_path / "test" / "emu" / "000.png").unlink()
    (tmp_path / "test" / "emu").rmdir()
    write_tree(tmp_path, {"test/cat": 1, "test/cow": 0})
    (tmp_path / "test" / "cow").rmdir()
    write_tree(tmp_path, {"train/owl": 1, "test/dog": 1})
    assert failure(spec) == f"data {spec}: test/ lacks owl; its classes must be those of train/"
    (tmp_path / "test" / "rat").mkdir()
    assert "the class folder test/rat holds no images" in failure(spec)


def test_load_data_corrupt_image_is_named(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "in", {"train/a": 2, "train/b": 1, "test/a": 1, "test/b": 1})
    (root / "train/a/001.png").write_bytes(picture(3, size=(64, 64))[:60])
    for spec, name in (
        (f"imagefolder:{root}", str(root / "train/a/001.png")),
        (f"tar:{write_tar(tmp_path / 'd.tar', root, 'top')}", f"top/train/a/001.png in {tmp_path / 'd.tar'}"),
    ):
        train = load_data(spec, RGB).train
        with pytest.raises(InputError) as caught:
            list(make_loader(train, 2, shuffle=False, seed=0, epoch=0, drop_last=False))
        assert caught.value.message.startswith(f"image {name}: can not be read (")
        assert caught.value.message.endswith("replace or remove it")


@pytest.mark.parametrize("spec", ["nothing", "torchvision:MNIST", "hf:mnist"])
def test_load_data_unknown_spec(spec: str) -> None:
    assert failure(spec).startswith(f"data {spec!r} is not known; expected imagefolder:DIR, tar:FILE, npz:FILE")


def test_load_data_hints_at_the_form(tmp_path: Path) -> None:
    assert failure(str(tmp_path)).endswith(f"did you mean imagefolder:{tmp_path}?")
    assert failure(f"imagefolder:{tmp_path}", augment="spin").startswith("--augment 'spin': expected one of none")
    write_tree(tmp_path, {"a": 2, "b": 2})
    assert "the model does not take images" in failure(f"imagefolder:{tmp_path}", None)


def write_npz(path: Path, **arrays: object) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return f"npz:{path}"


LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 8, 8, 1), (6, 8, 8, 3), (6, 3, 8, 8), (6, 12, 16, 3)])
def test_load_data_npz_bytes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    spec = write_npz(tmp_path / "d.npz", x=np.full(shape, 255, np.uint8), y=LABELS)
    for preprocessing, value in ((RGB, 1.0), (GREY, 1.0)):
        bundle = load_data(spec, preprocessing, val_fraction=0.5)
        inputs, target = bundle.train[0]
        assert inputs.shape == (preprocessing.channels, 8, 8)
        assert inputs.eq(value).all()
        assert target.dtype == torch.int64
        assert bundle.num_classes == 3


def test_load_data_npz_floats_are_used_as_they_are(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float64)
    arrays = {"x_train": x, "y_train": LABELS, "x_test": x[:2], "y_test": LABELS[:2, None]}
    bundle = load_data(write_npz(tmp_path / "d.npz", **arrays), RGB)
    assert torch.equal(bundle.train[1][0], torch.from_numpy(x[1]).float())
    assert "values used as they are" in bundle.description
    vectors = load_data(write_npz(tmp_path / "v.npz", x=x[:, 0, 0], y=LABELS), None, val_fraction=0.5)
    batch, _ = next(iter(make_loader(vectors.train, 3, shuffle=False, seed=0, epoch=0, drop_last=True)))
    assert batch.shape == (3, 8)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"a": LABELS}, "expected x_train, y_train, x_test, y_test, or x and y; found a"),
        ({"x": np.zeros((6, 4)), "y": LABELS - 1}, "y: label -1 is out of range, expected 0 or more"),
        ({"x": np.zeros((5, 4)), "y": LABELS}, "y: 6 labels for 5 inputs"),
        (
            {"x": np.zeros((6, 4)), "y": LABELS * 0.5},
            "y: expected whole numbers of shape (N,), got float64 [6]",
        ),
        ({"x": np.zeros((6, 4)), "y": LABELS * 0}, "expected at least two classes, found only label 0"),
        ({"x": np.array([{}] * 6), "y": LABELS}, "can not be read (ValueError: Object arrays"),
        ({"x": np.zeros((6, 9, 9, 2), np.uint8), "y": LABELS}, "expected uint8 images (N, H, W)"),
        (
            {"x_train": np.zeros((6, 4)), "y_train": LABELS, "x_test": np.zeros((1, 4)), "y_test": [3]},
            "y_test: label 3 is out of range, expected 0 to 2, the training set's classes",
        ),
        ({"x": np.zeros((6, 4)), "y": LABELS, "class_names": ["a", "b"]}, "label 2 is out of range for 2"),
    ],
)
def test_load_data_npz_errors(tmp_path: Path, arrays: dict[str, object], text: str) -> None:
    assert text in failure(write_npz(tmp_path / "d.npz", **arrays))


def test_load_data_npz_file_errors(tmp_path: Path) -> None:
    assert failure("npz:no.npz") == "data npz:no.npz: there is no such file"
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    assert "can not be read (" in failure(f"npz:{tmp_path / 'bad.npz'}")


FACTORY = """
import torch
from torch.utils.data import TensorDataset
def data(size=4):
    train = TensorDataset(torch.zeros(size, 3), torch.zeros(size))
    return train, TensorDataset(torch.zeros(2, 3), torch.zeros(2))
def asks(preprocessing):
    return TensorDataset(torch.zeros(5, *preprocessing.shape), torch.zeros(5)), data()[1]
def wrong():
    return 3
"""


def test_load_data_factory(tmp_path: Path) -> None:
    path = tmp_path / "made.py"
    path.write_text(FACTORY)
    bundle = load_data(f"{path}:data", RGB)
    assert isinstance(bundle, DataBundle)
    assert (len(bundle.train), len(bundle.test), bundle.num_classes) == (4, 2, None)
    assert load_data(f"{path}:asks", RGB).train[0][0].shape == (3, 8, 8)
    assert len(load_data(f"{path}:data", RGB, limit=3).train) == 3
    assert "expected a pair of map-style data sets (train, test) or a DataBundle, got int" in failure(f"{path}:wrong")
    assert "has no 'nothing'" in failure(f"{path}:nothing")


def gradient_images(tmp_path: Path, **options: object) -> ImageDataset:
    x = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    spec = write_npz(tmp_path / "g.npz", x_train=x, y_train=np.arange(10) % 2, x_test=x[:2], y_test=[0, 1])
    large = Preprocessing(size=(32, 32), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, source="test")
    train = load_data(spec, large, **options).train  # type: ignore[arg-type]
    assert isinstance(train, ImageDataset)
    return train


@pytest.mark.parametrize("augment", ["flip", "crop", "flip+crop"])
def test_augmentation_depends_on_seed_epoch_and_index_alone(tmp_path: Path, augment: str) -> None:
    plain, dataset = gradient_images(tmp_path), gradient_images(tmp_path, augment=augment)
    first = torch.stack([dataset[i][0] for i in range(10)])
    assert torch.equal(first, dataset.__getitems__(range(10)).inputs)
    dataset.set_epoch(1)
    second = dataset.__getitems__(range(10)).inputs
    assert not torch.equal(first, second)
    dataset.set_epoch(0)
    assert torch.equal(dataset.__getitems__(range(9, -1, -1)).inputs, first.flip(0))
    other = gradient_images(tmp_path, augment=augment, seed=1).__getitems__(range(10)).inputs
    assert not torch.equal(first, other)
    if augment == "flip":
        original = plain.__getitems__(range(10)).inputs
        same = [torch.equal(a, b) for a, b in zip(first, original, strict=True)]
        mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(first, original, strict=True)]
        assert all(a != b for a, b in zip(same, mirrored, strict=True))
        assert len(set(same)) == 2


def test_augment_images_moves_by_at_most_four_percent() -> None:
    image = torch.arange(50.0).view(1, 1, 50, 1).expand(64, 50, 50, 1)
    moved = augment_images(image, "crop", [(0, 0, index) for index in range(64)])
    shift = (moved - image)[:, 10, 25, 0]
    assert set(shift.int().tolist()) == {-2, -1, 0, 1, 2}
    assert moved.min() == 0
    assert moved.max() == 49


def test_fit_image_crops_the_centre() -> None:
    wide = Image.new("L", (40, 20), 0)
    wide.paste(255, (10, 0, 30, 20))
    made = Preprocessing(size=(10, 10), channels=1, mean=(0.0,), std=(1.0,), crop_ratio=0.5, source="test")
    assert (fit_image(wide, made) == 255).all()
    squeezed = fit_image(wide, Preprocessing(size=(10, 10), channels=1, mean=(0.0,), std=(1.0,), source="test"))
    assert squeezed[5, 0, 0] == 0
    assert squeezed[5, 5, 0] == 255


def test_image_dataset_decodes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 1, "test/b": 1})
    for limit, again in ((2**20, 0), (4 * 8 * 8 * 3, 2)):
        monkeypatch.setattr(datasets_module, "CACHE_BYTES", limit)
        dataset = load_data(f"imagefolder:{root}", RGB).train
        calls: list[object] = []
        before = shades(dataset)
        monkeypatch.setattr(
            datasets_module, "fit_image", lambda *args, calls=calls: (calls.append(args), fit_image(*args))[1]
        )
        assert shades(dataset) == before
        assert len(calls) == again
        monkeypatch.setattr(datasets_module, "fit_image", fit_image)


def test_make_loader_order_depends_on_seed_and_epoch(tmp_path: Path) -> None:
    dataset = gradient_images(tmp_path)

    def order(seed: int, epoch: int) -> list[torch.Tensor]:
        loader = make_loader(dataset, 4, shuffle=True, seed=seed, epoch=epoch, drop_last=False)
        once, twice = [x for x, _ in loader], [x for x, _ in loader]
        assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
        return once

    torch.manual_seed(3)
    expected = torch.get_rng_state()
    first = order(0, 0)
    torch.manual_seed(4)
    assert torch.equal(torch.cat(order(0, 0)), torch.cat(first))
    assert not torch.equal(torch.cat(order(0, 1)), torch.cat(first))
    assert not torch.equal(torch.cat(order(1, 0)), torch.cat(first))
    torch.manual_seed(3)
    order(0, 0)
    assert torch.equal(torch.get_rng_state(), expected)


def test_make_loader_batches(tmp_path: Path) -> None:
    dataset = gradient_images(tmp_path)
    loader = make_loader(dataset, 4, shuffle=False, seed=0, epoch=0, drop_last=True)
    batches = list(loader)
    assert [len(x) for x, _ in batches] == [4, 4]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in batches)
    assert torch.equal(batches[0][0], torch.stack([dataset[i][0] for i in range(4)]))
    assert torch.equal(batches[0][1], dataset.targets[:4])
    plain = make_loader(dataset, 4, shuffle=False, seed=0, epoch=0, drop_last=False, channels_last=False)
    assert [len(x) for x, _ in plain] == [4, 4, 2]
    assert all(x.is_contiguous() for x, _ in plain)
    assert [len(x) for x, _ in make_loader(dataset, 64, shuffle=True, seed=0, epoch=0, drop_last=True)] == [10]
    with pytest.raises(InputError, match="expected a batch size of at least 1"):
        make_loader(dataset, 0, shuffle=False, seed=0, epoch=0, drop_last=False)


def test_make_loader_takes_any_map_style_data() -> None:
    dataset = TensorDataset(torch.arange(24.0).view(2, 3, 2, 2), torch.tensor([1, 0]))
    inputs, targets = next(iter(make_loader(dataset, 2, shuffle=False, seed=0, epoch=0, drop_last=False)))
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert targets.tolist() == [1, 0]


@pytest.mark.assets
@pytest.mark.skipif(not (ASSETS / "datasets").is_dir(), reason=f"no data files in {ASSETS}")
def test_load_data_sign_digits() -> None:
    bundle = load_data(f"tar:{ASSETS / 'datasets/sign_digits.tar'}", RGB)
    assert (len(bundle.train), len(bundle.test), bundle.num_classes) == (1562, 500, 10)
    assert torch.bincount(bundle.test.targets).tolist() == [50] * 10
