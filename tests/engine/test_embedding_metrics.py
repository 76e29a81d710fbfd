"""Embeddings are judged by what they follow: one that is the colour passes the shift test, one that is the place does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances
from PIL import Image

from solotrack.data.annotation_file import DatasetError
from solotrack.data.intensity import Stretch
from solotrack.engine.embedding_metrics import identified_frames, shift_test, video_association
from solotrack.modeling.meta_arch.solo_track import Features
from solotrack.modeling.solo.targets import assign_grid_targets
from solotrack.ops.masks import centers_of_mass, masks_to_boxes
from solotrack.ops.rle import encode_masks
from tests import tiny

SIZE = tiny.SIZE
COLORS = np.array([(230, 30, 30), (30, 230, 30), (30, 30, 230), (230, 230, 30), (30, 230, 230)], dtype=np.uint8)
GRIDS = (8, 6, 4)


def squares(rng: np.random.Generator, side: int = 13) -> tuple[np.ndarray, np.ndarray]:
    """A grey image with a square of each colour that do not touch, and their masks (5, SIZE, SIZE)."""
    while True:
        corners = rng.integers(0, SIZE - side + 1, (len(COLORS), 2))
        gaps = np.abs(corners[:, None] - corners[None]).max(axis=2) + SIZE * np.eye(len(COLORS), dtype=int)
        if gaps.min() > side:
            break
    image = np.full((SIZE, SIZE, 3), 110, np.uint8)
    masks = np.zeros((len(COLORS), SIZE, SIZE), dtype=bool)
    for mask, color, (y, x) in zip(masks, COLORS, corners, strict=True):
        mask[y : y + side, x : x + side] = True
        image[mask] = color
    return image, masks


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """Config changes that name squares_images (30 pictures) and squares_videos (4 videos of 6 frames, squares at new places in each)."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    categories = [{"id": 1, "name": "square"}]
    images, annotations = [], []
    for number in range(1, 31):
        image, masks = squares(rng)
        Image.fromarray(image).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": SIZE, "width": SIZE})
        annotations += [{"image_id": number, "category_id": 1, "iscrowd": 0, "segmentation": rle} for rle in encode_masks(masks)]
    annotations = [{"id": i, **a, "bbox": [0, 0, 1, 1], "area": 1} for i, a in enumerate(annotations, 1)]
    (folder / "images.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))

    videos, tracks = [], []
    for number in range(1, 5):
        frames = [squares(rng) for _ in range(6)]
        paths = [f"v{number}_{t}.png" for t in range(6)]
        for path, (image, _) in zip(paths, frames, strict=True):
            Image.fromarray(image).save(folder / path)
        videos.append({"id": number, "file_names": paths, "height": SIZE, "width": SIZE, "length": 6})
        for k in range(len(COLORS)):
            rles = encode_masks(np.stack([masks[k] for _, masks in frames]))
            rles[k] = None  # every square is away for a frame
            tracks.append({"video_id": number, "category_id": 1, "iscrowd": 0, "segmentations": rles, "areas": [169] * 6})
    tracks = [{"id": i, **track} for i, track in enumerate(tracks, 1)]
    (folder / "videos.json").write_text(json.dumps({"videos": videos, "annotations": tracks, "categories": categories}))
    return {
        "DATASETS.CUSTOM.IMAGES": [["squares_images", str(folder / "images.json"), str(folder)]],
        "DATASETS.CUSTOM.VIDEOS": [["squares_videos", str(folder / "videos.json"), str(folder)]],
        "DATASETS.TRAIN": ["squares_images"],
        "MODEL.SOLO.NUM_CLASSES": 1,
    }


@pytest.fixture
def setup(names: dict[str, list]) -> tuple[CfgNode, torch.nn.Module]:
    """A config and a model whose "features" are the normalised picture itself, for heads made by hand."""
    cfg = tiny.config(names)
    model = tiny.model(cfg)
    model.features = lambda images: Features([], images.tensor)
    return cfg, model


def color_at_cells(pictures: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) -> (N, R, 3): the colour at the middle of each cell."""
    levels = [F.interpolate(pictures, size=(s, s), mode="nearest-exact") for s in GRIDS]
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)


def place_of_cells(pictures: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) -> (N, R, 64): soft one-hot place of each cell, cells nearby being similar."""
    centers = torch.cat([_grid(s) for s in GRIDS])  # (R, 2)
    bumps = torch.exp(-(centers[:, None] - _grid(8)[None]).square().sum(dim=2) / (2 * 0.15**2))
    return bumps.expand(len(pictures), -1, -1)


def _grid(s: int) -> torch.Tensor:
    axis = (torch.arange(s) + 0.5) / s
    return torch.cartesian_prod(axis, axis)


@pytest.mark.parametrize("measure", ["shift", "videos"])
def test_colour_is_appearance_and_place_is_not(setup: tuple[CfgNode, torch.nn.Module], measure: str) -> None:
    cfg, model = setup

    def result():
        return shift_test(cfg, model, "squares_images") if measure == "shift" else video_association(cfg, model, "squares_videos")

    model.embedding_head.forward = color_at_cells
    color = result()
    assert color.match > 0.97 and color.new_object_auc > 0.95
    assert color.instances > 50 and 3 < color.candidates <= 5
    model.embedding_head.forward = place_of_cells
    place = result()
    assert place.distance == color.distance < 0.45, "squares jump, so the nearest centre is mostly another's"
    assert abs(place.match - place.distance) < 0.12
    assert 0.35 < place.new_object_auc < 0.65
    assert place.instances == color.instances and place.candidates == color.candidates


def test_shift_test_is_repeatable_and_takes_so_many_images(setup: tuple[CfgNode, torch.nn.Module]) -> None:
    cfg, model = setup
    model.embedding_head.forward = place_of_cells
    assert shift_test(cfg, model, "squares_images", seed=1) == shift_test(cfg, model, "squares_images", seed=1)
    assert shift_test(cfg, model, "squares_images", seed=1) != shift_test(cfg, model, "squares_images", seed=2)
    assert shift_test(cfg, model, "squares_images", images=3).instances <= 15


def test_null_rate_is_that_of_the_calibrated_value(setup: tuple[CfgNode, torch.nn.Module]) -> None:
    cfg, model = setup
    model.embedding_head.forward = color_at_cells
    rates = []
    for value in (-1e6, float("nan"), 0.0, 1e6):
        model.embedding_head.null_logit.fill_(value)
        rates.append(video_association(cfg, model, "squares_videos").null_rate)
    assert rates[0] == 0 < rates[1] == rates[2] < rates[3] == 1, "NaN stands for 0"


def frames(count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    for number in range(count):
        image, masks = squares(rng)
        yield image, masks, 10 * number + np.arange(len(masks))


@pytest.mark.parametrize("size", [0, 64, 96, 40])
def test_embeddings_of_true_instances(names: dict[str, list], size: int) -> None:
    """Against cells looked up instance by instance, at the size that the network sees."""
    cfg = tiny.config(names | {"INPUT.MIN_SIZE_TEST": size})
    model = tiny.model(cfg, spread=0.3).eval()
    given = list(frames(3, seed=1))
    nothing = (given[0][0], given[0][1][:0], given[0][2][:0])
    tiny_one = (given[0][0], given[0][1].copy(), given[0][2])
    tiny_one[1][2] = False  # an instance without pixels has no cell
    measured = identified_frames(cfg, model, [*given, nothing, tiny_one])
    assert [len(frame.identities) for frame in measured] == [5, 5, 5, 0, 4]
    assert measured[4].identities.tolist() == [0, 1, 3, 4]
    side = size or SIZE
    for (image, masks, identities), frame in zip(given, measured, strict=False):
        resized = np.array(Image.fromarray(image).resize((side, side), Image.BILINEAR))
        small = np.stack([np.array(Image.fromarray(mask.astype(np.uint8)).resize((side, side), Image.NEAREST)) for mask in masks]) > 0
        small = torch.from_numpy(small)
        images = model.preprocess([{"image": torch.from_numpy(resized.transpose(2, 0, 1).copy())}])
        truth = Instances((side, side), gt_masks=BitMasks(small), gt_boxes=Boxes(masks_to_boxes(small)), gt_classes=torch.zeros(5).long())
        padded = tuple(images.tensor.shape[-2:])
        index = assign_grid_targets([truth], padded, GRIDS, (4, 4, 8), model.scale_ranges, 0.2, 1).instance_index[0]
        with torch.no_grad():
            cells = model.embedding_head(model.features(images).for_embedding)[0]
        for number in range(5):
            torch.testing.assert_close(frame.embeddings[number], cells[index == number].mean(dim=0), rtol=1e-4, atol=1e-4)
        assert frame.identities.tolist() == identities.tolist()
        torch.testing.assert_close(frame.centers, centers_of_mass(torch.from_numpy(masks)))


def test_grey_levels_are_stretched_as_in_training(names: dict[str, list]) -> None:
    (image, masks, identities), *_ = frames(1, seed=4)
    dim = (20 + image // 8, masks, identities)
    cfg = tiny.config(names | {"INPUT.STRETCH.ENABLED": True})
    model = tiny.model(cfg, spread=0.3).eval()
    (given,) = identified_frames(cfg, model, [dim])
    (expected,) = identified_frames(tiny.config(names), model, [(Stretch.from_config(cfg)(dim[0]), masks, identities)])
    torch.testing.assert_close(given.embeddings, expected.embeddings)


def test_channel_order_is_the_model_s(names: dict[str, list]) -> None:
    """Both orders see the same colours: the normalised channels are swapped along."""
    results = []
    for order, mean in (("RGB", [100.0, 120.0, 140.0]), ("BGR", [140.0, 120.0, 100.0])):
        cfg = tiny.config(names | {"INPUT.FORMAT": order, "MODEL.PIXEL_MEAN": mean, "MODEL.PIXEL_STD": [1.0, 1.0, 1.0]})
        model = tiny.model(cfg)
        model.features = lambda images: Features([], images.tensor)
        model.embedding_head.forward = color_at_cells
        results.append(shift_test(cfg, model, "squares_images", images=5))
    assert results[0].match == results[1].match
    assert results[0].new_object_auc == pytest.approx(results[1].new_object_auc, abs=0.02)


def test_data_that_cannot_be_measured(setup: tuple[CfgNode, torch.nn.Module], names: dict[str, list], tmp_path: Path) -> None:
    cfg, model = setup
    with pytest.raises(DatasetError, match=r"needs labelled images; squares_videos is a set of videos"):
        shift_test(cfg, model, "squares_videos")
    with pytest.raises(DatasetError, match=r"images\.json has no list 'videos'"):
        video_association(cfg, model, "squares_images")
    _, json_file, folder = names["DATASETS.CUSTOM.IMAGES"][0]
    data = json.loads(Path(json_file).read_text())
    data["annotations"] = [a | {"iscrowd": int(a["id"] % 5 != 0)} for a in data["annotations"]]  # one and four of a crowd each
    (tmp_path / "lonely.json").write_text(json.dumps(data))
    cfg = tiny.config(names | {"DATASETS.CUSTOM.IMAGES": [["squares_lonely", str(tmp_path / "lonely.json"), folder]]})
    with pytest.raises(DatasetError, match=r"two instances or more; squares_lonely has none"):
        shift_test(cfg, model, "squares_lonely")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(segmentations=a["segmentations"][:4]), r"annotations\[2\] has 4 segmentations but its video 6 frames"),
        (lambda a: a["segmentations"].__setitem__(1, {"size": [SIZE, SIZE], "counts": "o"}), r"annotations\[2\]: segmentations\[1\]"),
        (lambda a: a["segmentations"].__setitem__(1, "mask.png"), r"annotations\[2\]: segmentations\[1\]"),
        (lambda a: a.pop("video_id"), r"annotations\[2\]: lacks 'video_id'"),
        (lambda a: a.update(video_id=99), "video_id 99 is no video"),
    ],
)
def test_faulty_labels_of_videos_are_named(setup, names: dict[str, list], tmp_path: Path, change, message: str) -> None:
    _, json_file, folder = names["DATASETS.CUSTOM.VIDEOS"][0]
    data = json.loads(Path(json_file).read_text())
    change(data["annotations"][2])
    (tmp_path / "faulty.json").write_text(json.dumps(data))
    name = f"{tmp_path.name}_videos"
    cfg = tiny.config(names | {"DATASETS.CUSTOM.VIDEOS": [[name, str(tmp_path / "faulty.json"), folder]]})
    with pytest.raises(DatasetError, match=rf"(?s)faulty\.json: .*{message}"):
        video_association(cfg, setup[1], name)


def test_pictures_of_another_size_are_named(setup, names: dict[str, list], tmp_path: Path) -> None:
    (_, images, folder), (_, videos, _) = names["DATASETS.CUSTOM.IMAGES"][0], names["DATASETS.CUSTOM.VIDEOS"][0]
    changes = {}
    for key, json_file, kind in (("IMAGES", images, "images"), ("VIDEOS", videos, "videos")):
        data = json.loads(Path(json_file).read_text())
        for record in data[kind]:
            record["height"] += 1
        for annotation in data["annotations"]:
            if kind == "images":
                annotation["segmentation"] = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]
            else:
                annotation["segmentations"] = [[[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]] * 6
        (tmp_path / f"{kind}.json").write_text(json.dumps(data))
        changes[f"DATASETS.CUSTOM.{key}"] = [[f"{tmp_path.name}_{kind}", str(tmp_path / f"{kind}.json"), folder]]
    cfg = tiny.config(names | changes)
    for measure, kind in ((shift_test, "images"), (video_association, "videos")):
        with pytest.raises(DatasetError, match=rf"png has {SIZE} x {SIZE} pixels .* json says {SIZE} x {SIZE + 1}"):
            measure(cfg, setup[1], f"{tmp_path.name}_{kind}")
