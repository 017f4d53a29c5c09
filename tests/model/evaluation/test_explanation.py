"""Heat maps: they lie where the object is, not at its transpose, and pictures lose no image."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath, PureWindowsPath

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch.nn import functional

from msmamba.cli import mmdeploy
from msmamba.errors import BackendError, InputError, TargetError
from msmamba.model import MicroscopicMamba
from msmamba.model.evaluation.explanation import Explainer, _below_common, explain_images
from msmamba.model.networks.microscopic_mamba import SIZES, Architecture
from msmamba.model.networks.registry import family_of
from msmamba.plugins.selective_scan import cpu

SIDE = 64


def scene(generator: np.random.Generator, place: tuple[int, int] | None) -> np.ndarray:
    """(3, S, S): noise, and a red disc of radius 7 around a row and a column if there is one."""
    pixels = generator.normal(0, 0.3, (3, SIDE, SIDE)).astype(np.float32)
    if place is not None:
        rows, columns = np.mgrid[:SIDE, :SIDE]
        disc = (rows - place[0]) ** 2 + (columns - place[1]) ** 2 < 49
        pixels[0][disc] += 2.5
        pixels[2][disc] -= 1.5
    return pixels


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The networks here are so small that threads spend their time waiting for each other."""
    before = torch.get_num_threads(), cpu.threads()
    torch.set_num_threads(1)
    cpu.set_threads(1)
    yield
    torch.set_num_threads(before[0])
    cpu.set_threads(before[1])


@pytest.fixture(scope="module")
def disc_finder() -> MicroscopicMamba:
    """A network trained until it tells scenes with a disc, anywhere, from those without."""
    torch.manual_seed(0)
    network = MicroscopicMamba(Architecture(depths=(1, 1), dims=(32, 64), num_classes=2))
    generator = np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    truth = torch.tensor([0, 1] * 4)
    network.train()
    for _ in range(30):
        places = [tuple(generator.integers(10, SIDE - 10, 2)) if label else None for label in truth.tolist()]
        scenes = np.stack([scene(generator, place) for place in places])
        loss = functional.cross_entropy(network(torch.from_numpy(scenes)), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.4
    return network.eval()


@pytest.mark.parametrize(
    ("method", "layer"),
    [
        pytest.param("gradcam", "stage1", id="early-map"),
        pytest.param("gradcam", "stage2", id="last-map"),
        pytest.param("gradcam", "layers.0.blocks.0", id="a-block-by-path"),
        pytest.param("occlusion", None, id="occlusion"),
    ],
)
@pytest.mark.parametrize(
    ("row", "column"),
    [
        pytest.param(0, 0, id="top-left"),
        pytest.param(0, 1, id="top-right"),
        pytest.param(1, 0, id="bottom-left"),
        pytest.param(1, 1, id="bottom-right"),
    ],
)
def test_the_heat_is_where_the_object_is_and_not_at_its_transpose(
    row: int, column: int, method: str, layer: str | None, disc_finder: MicroscopicMamba
) -> None:
    place = (14 + 36 * row, 14 + 36 * column)
    image = torch.from_numpy(scene(np.random.default_rng(1), place))[None]
    heat = Explainer(disc_finder, SIDE, method, layer).heat(image, torch.tensor([1]))[0]
    half = len(heat) // 2
    quarters = heat.reshape(2, half, 2, half).sum((1, 3))
    shares = quarters / quarters.sum()
    assert shares[row, column] > 0.7
    if row != column:
        assert shares[column, row] < 0.15


def test_a_network_and_its_images_are_left_as_they_are(disc_finder: MicroscopicMamba) -> None:
    before = {name: tensor.clone() for name, tensor in disc_finder.state_dict().items()}
    image = torch.from_numpy(scene(np.random.default_rng(1), (14, 14)))[None]
    explainer = Explainer(disc_finder, SIDE)
    explainer.heat(image, torch.tensor([1]))
    assert not image.requires_grad
    assert torch.equal(explainer.logits(image), disc_finder(image))
    after = disc_finder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.requires_grad for parameter in disc_finder.parameters())


def test_a_batch_gives_each_image_the_map_that_it_gets_alone(disc_finder: MicroscopicMamba) -> None:
    generator = np.random.default_rng(2)
    images = torch.from_numpy(np.stack([scene(generator, place) for place in ((14, 50), (40, 18), (16, 16))]))
    classes = torch.tensor([1, 1, 0])
    explainer = Explainer(disc_finder, SIDE, layer="stage1")
    together = explainer.heat(images, classes)
    for number in range(3):
        alone = explainer.heat(images[number : number + 1], classes[number : number + 1])
        np.testing.assert_allclose(together[number], alone[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("size", "layer"),
    [(224, "stage4"), (448, "stage4"), (192, "stage3"), (64, "stage2"), (32, "stage1")],
)
def test_the_default_layer_is_the_last_one_that_still_says_where(size: int, layer: str) -> None:
    network = MicroscopicMamba.of_size("t", num_classes=2)
    assert family_of(network).default_map_layer(network, size) == layer


def test_every_block_is_a_layer() -> None:
    network = MicroscopicMamba.of_size("t", num_classes=2)
    names = family_of(network).map_layers(network)
    assert list(names)[:4] == ["stage1", "stage2", "stage3", "stage4"]
    assert len(names) == 4 + sum(SIZES["t"]["depths"])
    assert names["stage3"] == names["layers.2.blocks.3"]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(mmdeploy, ["explain", *(str(argument) for argument in arguments)])


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[Path]:
    """Images of one name in two folders, of one stem in two formats, and one that is broken."""
    generator = np.random.default_rng(0)
    for name in ("a/x.png", "a/x.tif", "b/x.png", "b/wide.png"):
        path = tmp_path / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (30, 90, 3) if "wide" in name else (40, 44, 3)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(path)
    (tmp_path / "slides" / "b" / "torn.png").write_bytes((tmp_path / "slides/b/x.png").read_bytes()[:99])
    yield tmp_path / "slides"
    # Whatever is explained, what was given is not touched.
    assert len([path for path in (tmp_path / "slides").rglob("*") if path.is_file()]) == 5


def test_each_image_gets_its_own_picture_and_a_broken_one_a_reason(
    checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    result = command(checkpoint, pictures, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "error: 1 of 5 images could not be explained" in result.stderr
    lines = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert lines[str(pictures / "b" / "torn.png")].startswith("error: ")
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert made == {
        "a/x.png.gradcam.png",
        "a/x.tif.gradcam.png",
        "b/x.gradcam.png",
        "b/wide.gradcam.png",
    }
    with Image.open(tmp_path / "out" / "b" / "wide.gradcam.png") as picture:
        assert picture.width > 2 * 420  # the image and its map, each enlarged


def test_pictures_stay_in_their_folder_and_any_name_can_be_written(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "costs").mkdir()
    shutil.copy(pictures / "a" / "x.png", tmp_path / "costs" / "$x$ {\\y}.png")
    monkeypatch.chdir(pictures / "b")
    outside = [Path("../a/x.png"), Path("x.png"), Path("../../costs/$x$ {\\y}.png")]
    results = list(explain_images(checkpoint, outside, tmp_path / "out"))
    assert [result.error for result in results] == [""] * 3
    made = {result.picture.relative_to(tmp_path / "out").as_posix() for result in results if result.picture}
    assert made == {
        "slides/a/x.gradcam.png",
        "slides/b/x.gradcam.png",
        "costs/$x$ {\\y}.gradcam.png",
    }


def test_pictures_of_several_drives_go_below_their_names() -> None:
    drives = [PureWindowsPath("C:/cells/a"), PureWindowsPath("D:/a"), PureWindowsPath("//host/share/a")]
    assert _below_common(drives) == [PurePath("C/cells/a"), PurePath("D/a"), PurePath("host_share/a")]


def test_another_class_is_explained_when_asked(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    (found,) = explain_images(
        checkpoint, [pictures / "a" / "x.png"], tmp_path, label="lymphocyte", method="occlusion"
    )
    assert found.explained == "lymphocyte"
    assert 0 < found.explained_probability <= found.probability < 1
    assert found.heat is not None
    assert found.heat.shape == (32, 32)
    assert found.picture == tmp_path / "x.occlusion.png"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"method": "tea leaves"}, "no method 'tea leaves': choose one of gradcam", id="method"),
        pytest.param({"layer": "stage9"}, "no layer 'stage9': choose one of stage1, stage2", id="layer"),
        pytest.param({"layer": "stage1", "method": "occlusion"}, "looks at no layer", id="layer-unused"),
        pytest.param({"label": "blast"}, "no class 'blast': choose one of basophil", id="class"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(
    options: dict[str, str], message: str, checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        next(explain_images(checkpoint, [pictures / "a" / "x.png"], tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TargetError, match="cannot make the folder"):
        next(explain_images(checkpoint, [pictures / "a" / "x.png"], tmp_path / "file" / "out"))


def test_without_captum_it_says_how_to_get_it(
    disc_finder: MicroscopicMamba, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(BackendError, match=r"need Captum, which is not installed: pip install"):
        Explainer(disc_finder, SIDE)
