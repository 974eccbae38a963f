"""Model specs, weights, heads and preprocessing. Nothing here needs the network."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from third_party import import_timm, import_torchvision
from torch import nn

from medyate_planner.errors import InputError
from medyate_planner.models import ZOO, Preprocessing, build_zoo_model, example_input, load_model, parse_shape

ASSETS = Path(os.environ.get("MEDYATE_ASSETS") or Path(__file__).parents[2] / "../shared/assets")


def needs_assets(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test of the pre-trained weights, and skip it where they are absent."""
    absent = pytest.mark.skipif(not (ASSETS / "backbones").is_dir(), reason=f"no data files in {ASSETS}")
    return pytest.mark.assets(absent(test))


FACTORY = """
import torch

class Net(torch.nn.Module):
    input_shape = (3, 8, 8)
    num_classes = 6
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.head = torch.nn.Linear(4, 6)
    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))

class TwoHeads(Net):
    def __init__(self):
        super().__init__()
        self.other = torch.nn.Linear(4, 6)
    def forward(self, x):
        return super().forward(x) + self.other(self.conv(x).mean((2, 3)))

def shapeless():
    return torch.nn.Linear(4, 2)
def text():
    return "a model"
def broken():
    raise ValueError("out of luck\\nand more")
number = 3
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(FACTORY)
    return str(path)


@pytest.fixture
def no_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDYATE_ASSETS", str(tmp_path / "nothing"))


def failure(spec: str, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load_model(spec, **options)  # type: ignore[arg-type]
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2
    return caught.value.message


@pytest.mark.parametrize("name", ZOO)
@needs_assets
def test_load_model_reads_zoo_weights_exactly(name: str) -> None:
    loaded = load_model(name, require_weights=True)
    path = ASSETS / "backbones" / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no iterator)
    assert {key for key, _ in loaded.model.named_parameters()} == set(stored)
    assert all(torch.equal(value, stored[key]) for key, value in loaded.model.state_dict().items())
    assert (loaded.input_shape, loaded.num_classes, loaded.head_module) == ((3, 128, 128), 1000, None)
    assert loaded.weights_source == str(path.resolve())
    assert not loaded.model.training
    assert loaded.model.stem.weight.is_contiguous(memory_format=torch.channels_last)
    logits = loaded.model(torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    assert logits.isfinite().all()
    assert logits.std() > 0.5


@needs_assets
def test_load_model_keeps_the_backbone_under_a_new_head() -> None:
    old, new = load_model("mcunet-5fps").model, load_model("mcunet-5fps", num_classes=10)
    assert (new.head_module, new.num_classes) == ("classifier", 10)
    assert torch.equal(old.blocks[3].project.weight, new.model.blocks[3].project.weight)


@pytest.mark.usefixtures("no_assets")
def test_load_model_without_assets_is_random_and_seeded() -> None:
    first, again = load_model("mcunet-5fps", seed=3), load_model("mcunet-5fps", seed=3)
    other = load_model("mcunet-5fps", seed=4)
    assert first.weights_source == "random initialisation (seed 3)"
    assert torch.equal(first.model.stem.weight, again.model.stem.weight)
    assert not torch.equal(first.model.stem.weight, other.model.stem.weight)
    assert "pass --weights FILE or set MEDYATE_ASSETS" in failure("mcunet-5fps", require_weights=True)


@pytest.mark.usefixtures("no_assets")
def test_load_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_model("proxyless-w0.3", num_classes=5, seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.usefixtures("no_assets")
def test_load_model_makes_a_seeded_head() -> None:
    head = load_model("mcunet-5fps", num_classes=10, seed=1).model.classifier
    again = load_model("mcunet-5fps", num_classes=10, seed=1).model.classifier
    assert (head.out_features, tuple(head.weight.shape)) == (10, (10, 160))
    assert torch.equal(head.weight, again.weight)
    assert 0.008 < head.weight.std() < 0.012
    assert not head.bias.any()


@pytest.mark.usefixtures("no_assets")
def test_load_model_converts_to_bfloat16() -> None:
    model = load_model("mcunet-5fps", num_classes=4, dtype="bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert example_input(model, (3, 128, 128)).dtype == torch.bfloat16
    assert failure("mcunet-5fps", dtype="float16") == "--dtype 'float16': expected float32 or bfloat16"


def test_load_model_torchvision_resnet18() -> None:
    import_torchvision()
    loaded = load_model("torchvision:resnet18", num_classes=7)
    assert (loaded.head_module, loaded.num_classes, loaded.input_shape) == ("fc", 7, (3, 224, 224))
    assert loaded.weights_source == "random initialisation (seed 0)"
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.mean == (0.485, 0.456, 0.406)
    assert loaded.preprocessing.crop_ratio == pytest.approx(224 / 256)
    assert loaded.preprocessing.source == "torchvision weights' transforms"


def test_load_model_torchvision_with_a_convolutional_head() -> None:
    import_torchvision()
    loaded = load_model("squeezenet1_0", num_classes=3, input_shape=(3, 64, 64))
    assert (loaded.spec, loaded.head_module) == ("torchvision:squeezenet1_0", "classifier.1")
    assert loaded.model.classifier[1].out_channels == 3
    assert loaded.model.num_classes == 3
    assert loaded.model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.size == (64, 64)


def test_load_model_timm_mobilenet() -> None:
    import_timm()
    loaded = load_model("timm:mobilenetv2_035", num_classes=7)
    assert (loaded.head_module, loaded.num_classes, loaded.model.num_classes) == ("classifier", 7, 7)
    assert loaded.preprocessing is not None
    assert (loaded.preprocessing.interpolation, loaded.preprocessing.crop_ratio) == ("bicubic", 0.875)
    assert loaded.preprocessing.source == "timm default_cfg"


def test_load_model_suggests_close_names() -> None:
    import_timm()
    assert failure("mcunet-5fp") == "model 'mcunet-5fp' is not known; did you mean mcunet-5fps?"
    assert "did you mean torchvision:resnet18" in failure("torchvision:resnt18")
    assert "did you mean timm:mobilenetv2_035" in failure("timm:mobilenetv2_35")
    assert "expected mcunet-5fps, mbv2-w0.35" in failure("qqqqq")


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_load_model_names_the_extra_of_a_missing_package(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    text = failure(f"{package}:resnet18")
    assert text.startswith(f"model {package}:resnet18: the package {package} is not installed")
    assert text.endswith("pip install 'medyate-planner[models]'")


def test_load_model_never_downloads_from_hf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing is downloaded here" in failure("hf:google/vit-base")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert failure(f"hf:{tmp_path}").endswith("pip install 'medyate-planner[models]'")


def test_load_model_from_a_file(factory: str) -> None:
    loaded = load_model(f"{factory}:Net", num_classes=2)
    assert (loaded.input_shape, loaded.num_classes, loaded.head_module) == ((3, 8, 8), 2, "head")
    assert loaded.weights_source == "as the factory made them"
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.source == "default: ImageNet mean and deviation"
    assert load_model(f"{factory}:Net", num_classes=6).head_module is None


def test_load_model_from_a_module(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(factory).parent)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    assert load_model("net:Net").num_classes == 6
    assert load_model("net.py:Net").num_classes == 6


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nothing", "has no 'nothing'; it has torch, Net, TwoHeads"),
        ("number", "'number' is a int, not a function to call"),
        ("text", "expected a torch.nn.Module, got a str"),
        ("broken", "the factory raised ValueError: out of luck"),
        ("shapeless", "does not say what input it takes; pass it, such as --input-shape 3x128x128"),
    ],
)
def test_load_model_factory_errors(factory: str, name: str, text: str) -> None:
    assert text in failure(f"{factory}:{name}")


def test_load_model_file_errors(factory: str, tmp_path: Path) -> None:
    assert f"there is no file {tmp_path / 'no.py'}" in failure(f"{tmp_path / 'no.py'}:make")
    assert failure(factory).endswith(f"say which function makes the model: {factory}:FACTORY")
    assert "can not import 'no.such.module'" in failure("no.such.module:make")
    bad = tmp_path / "bad.py"
    bad.write_text("import no_such_module")
    assert "raised ModuleNotFoundError: No module named 'no_such_module'" in failure(f"{bad}:make")


def test_load_model_head_pattern(factory: str) -> None:
    assert load_model(f"{factory}:Net", num_classes=2, head="he*").head_module == "head"
    assert load_model(f"{factory}:Net", num_classes=2, head="*").head_module == "head"
    assert "--head 'x*' fits no linear layer or 1x1 convolution; the last are head" in failure(
        f"{factory}:Net", num_classes=2, head="x*"
    )
    assert "with 2 outputs in other the model fails" in failure(f"{factory}:TwoHeads", num_classes=2)
    assert "the model fails on an input of [2, 5, 5]" in failure(f"{factory}:Net", num_classes=2, input_shape=(5, 5))
    assert failure(f"{factory}:Net", num_classes=0) == "--num-classes 0: expected at least 1"


def test_load_model_weights_round_trip(factory: str, tmp_path: Path) -> None:
    model = load_model(f"{factory}:Net", seed=5).model
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        loaded = load_model(f"{factory}:Net", weights=tmp_path / name)
        assert torch.equal(loaded.model.head.weight, model.head.weight)
        assert loaded.weights_source == str(tmp_path / name)


def test_load_model_weights_with_another_head(factory: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    model = load_model(f"{factory}:Net", num_classes=2, seed=5).model
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    loaded = load_model(f"{factory}:Net", weights=path, num_classes=2)
    assert loaded.head_module == "head"
    assert torch.equal(loaded.model.head.weight, model.head.weight)
    third = load_model(f"{factory}:Net", weights=path, num_classes=3)
    assert torch.equal(third.model.conv.weight, model.conv.weight)
    assert third.model.head.out_features == 3
    assert failure(f"{factory}:Net", weights=path).endswith("the head has 2 classes there; pass --num-classes 2")


def test_load_model_weights_errors(factory: str, tmp_path: Path) -> None:
    spec, good = f"{factory}:Net", tmp_path / "good.safetensors"
    state = {k: v.contiguous() for k, v in load_model(spec).model.state_dict().items()}
    save_file(state, good)
    assert failure(spec, weights="no.pth") == "weights no.pth: there is no such file"
    for name in ("cut.safetensors", "cut.pth"):
        torch.save(state, tmp_path / "good.pth")
        whole = (tmp_path / name.replace("cut", "good")).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        assert "can not be read, damaged or not weights alone" in failure(spec, weights=tmp_path / name)
    torch.save(nn.Linear(2, 2), tmp_path / "code.pt")
    assert "can not be read, damaged or not weights alone" in failure(spec, weights=tmp_path / "code.pt")
    (tmp_path / "w.bin").write_bytes(b"")
    assert "expected a .safetensors, .pt or .pth file" in failure(spec, weights=tmp_path / "w.bin")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    assert "holds no tensors by name" in failure(spec, weights=tmp_path / "empty.pt")
    wrong = {"conv.bias": torch.zeros(9), "head.bias": state["head.bias"], "extra": torch.zeros(2, 2)}
    save_file(wrong, good)
    assert failure(spec, weights=good) == (
        f"weights {good} do not fit {spec}: 2 missing (conv.weight [4, 3, 3, 3], head.weight [6, 4]); "
        "1 unexpected (extra [2, 2]); 1 of another shape (conv.bias [9] instead of [4])"
    )


def test_load_model_efficientnet_lite(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    path = tmp_path / "lite.py"
    path.write_text(
        "from efficientnet_lite_pytorch import EfficientNet\n"
        "def make():\n    return EfficientNet.from_name('efficientnet-lite0')\n"
    )
    loaded = load_model(f"{path}:make", num_classes=2)
    assert (loaded.input_shape, loaded.head_module) == ((3, 224, 224), "_fc")
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.mean == (127 / 255,) * 3


@pytest.mark.parametrize("name", ZOO)
def test_build_zoo_model_residuals_are_where_shapes_allow(name: str) -> None:
    model = build_zoo_model(name)
    for block in model.blocks:
        first = block.expand if block.expand is not None else block.depthwise
        fits = block.depthwise.stride == (1, 1) and first.in_channels == block.project.out_channels
        assert block.residual == fits


def test_parse_shape() -> None:
    assert parse_shape("3x128x96") == (3, 128, 96)
    assert parse_shape("64") == (64,)
    for text in ("", "3x", "0x2", "axb", "3x-1", "3 x 4"):
        with pytest.raises(InputError, match="expected positive whole numbers joined by x, such as 3x128x128"):
            parse_shape(text)


def test_preprocessing_round_trip_and_text() -> None:
    made = Preprocessing(size=(128, 96), channels=1, mean=(0.5,), std=(0.25,), crop_ratio=0.875, source="zoo")
    assert Preprocessing.from_dict(made.to_dict()) == made
    assert made.describe() == "1x128x96, bilinear, centre 0.875, (x/255 - 0.5)/0.25 (zoo)"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": (0, 4)}, "expected a positive size and channels"),
        ({"mean": (0.5, 0.5)}, "1 channels need as many means"),
        ({"std": (0.0,)}, "every deviation must be above 0"),
        ({"interpolation": "cubic"}, "'cubic' is none of bilinear, bicubic"),
        ({"crop_ratio": 1.5}, "crop_ratio must be above 0 and at most 1"),
    ],
)
def test_preprocessing_refuses_nonsense(change: dict[str, object], text: str) -> None:
    facts: dict[str, object] = {
        "size": (4, 4),
        "channels": 1,
        "mean": (0.5,),
        "std": (0.5,),
        "source": "test",
    }
    with pytest.raises(InputError, match=text):
        Preprocessing(**{**facts, **change})  # type: ignore[arg-type]
