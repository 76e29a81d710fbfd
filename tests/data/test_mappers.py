from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from solotrack.config import load_config
from solotrack.data.annotation_file import DatasetError
from solotrack.data.coco import load_coco_instances
from solotrack.data.frames import FrameError
from solotrack.data.mappers import ImageMapper
from solotrack.data.views import RandomSimilarity

H, W = 60, 80


@pytest.fixture
def seeded() -> Callable[[int], None]:
    """Detectron2's transforms draw from NumPy's global state."""
    before = np.random.get_state()  # noqa: NPY002
    yield np.random.seed
    np.random.set_state(before)  # noqa: NPY002


def disc(x: int, y: int, radius: int) -> np.ndarray:
    return cv2.circle(np.zeros((H, W), np.uint8), (x, y), radius, 1, -1)


def encode(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def annotation(segmentation: Any, category: int, crowd: int = 0) -> dict[str, Any]:
    return {"iscrowd": crowd, "bbox": [0, 0, 1, 1], "bbox_mode": BoxMode.XYWH_ABS, "category_id": category, "segmentation": segmentation}


MASKS = {0: disc(20, 20, 8), 2: disc(27, 23, 7), 4: disc(60, 40, 9)}  # by place among the annotations; the first two overlap


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """A noisy image, three discs, a polygon, a crowd and an empty mask."""
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 7,
        "height": H,
        "width": W,
        "annotations": [
            annotation(encode(MASKS[0]), 1),
            annotation(encode(disc(40, 30, 20)), 0, crowd=1),
            annotation(encode(MASKS[2]), 0),
            annotation(encode(np.zeros((H, W), np.uint8)), 0),
            annotation(encode(MASKS[4]), 2),
            annotation([[10.0, 40.0, 25.0, 40.0, 25.0, 55.0, 10.0, 55.0]], 3),
        ],
    }


def plain(*overrides: str) -> ImageMapper:
    """A mapper that changes nothing but what the overrides say."""
    return ImageMapper(load_config("", ["INPUT.MIN_SIZE_TRAIN", f"({H},)", "INPUT.RANDOM_FLIP", "none", *overrides]))


def boxes_by_hand(masks: torch.Tensor) -> list[list[float]]:
    boxes = []
    for mask in masks.numpy():
        ys, xs = np.nonzero(mask)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    return boxes


def test_targets_without_augmentation(record):
    before = copy.deepcopy(record)
    mapped = plain()(record)
    assert record == before
    assert {k: mapped[k] for k in ("height", "width", "image_id")} == {"height": H, "width": W, "image_id": 7}
    assert "annotations" not in mapped and "second_view" not in mapped
    rgb = cv2.imread(record["file_name"])[..., ::-1]
    assert mapped["image"].dtype == torch.uint8 and mapped["image"].is_contiguous()
    np.testing.assert_array_equal(mapped["image"].permute(1, 2, 0).numpy(), rgb)
    instances = mapped["instances"]
    assert instances.image_size == (H, W)
    assert instances.gt_ids.tolist() == [0, 2, 4, 5]  # neither the crowd nor the empty one; ids are places in the json
    assert instances.gt_classes.tolist() == [1, 0, 2, 3] and instances.gt_classes.dtype == torch.int64
    assert instances.gt_masks.tensor.dtype == torch.bool
    np.testing.assert_array_equal(instances.gt_masks.tensor[:3].numpy(), np.stack(list(MASKS.values())))
    expected = np.zeros((H, W), bool)
    expected[40:55, 10:25] = True
    np.testing.assert_array_equal(instances.gt_masks.tensor[3].numpy(), expected)
    assert instances.gt_boxes.tensor.tolist() == boxes_by_hand(instances.gt_masks.tensor)
    assert instances.gt_boxes.tensor[3].tolist() == [10, 40, 25, 55]


def test_image_format(record):
    rgb, bgr = plain()(record)["image"], plain("INPUT.FORMAT", "BGR")(record)["image"]
    assert torch.equal(rgb, bgr.flip(0))


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_learn_from(record, count):
    record["annotations"] = record["annotations"][1 : 1 + count]  # nothing, or a crowd
    for mapper in (plain(), plain("MODEL.SOLO_TRACK.EMB.VIEWS", "2")):
        mapped = mapper(record)
        for view in (mapped, mapped.get("second_view", mapped)):
            instances = view["instances"]
            assert len(instances) == 0 and instances.gt_masks.tensor.shape == (0, H, W) and instances.gt_boxes.tensor.shape == (0, 4)


def test_resize_flip_and_crop_are_detectron2s(record, seeded):
    """Against Detectron2's own mapping of one annotation at a time with the same random numbers."""
    overrides = ["INPUT.MIN_SIZE_TRAIN", "(45, 90)", "INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "[0.7, 0.7]"]
    cfg = load_config("", overrides)
    mapper = ImageMapper(cfg)
    sizes = set()
    for seed in range(8):
        seeded(seed)
        mapped = mapper(record)
        seeded(seed)
        crop = T.RandomCrop("relative_range", [0.7, 0.7])
        resize = T.ResizeShortestEdge((45, 90), cfg.INPUT.MAX_SIZE_TRAIN, "choice")
        image = T.AugInput(utils.read_image(record["file_name"], "RGB"))
        transforms = T.AugmentationList([crop, resize, T.RandomFlip()])(image)
        size = image.image.shape[:2]
        sizes.add(min(size))
        np.testing.assert_array_equal(mapped["image"].permute(1, 2, 0).numpy(), image.image)
        expected = {}
        for index, entry in enumerate(copy.deepcopy(record["annotations"])):
            if isinstance(entry["segmentation"], list):
                # Detectron2 cuts polygons with a package that is not needed otherwise; drawn on a larger canvas nothing has to be cut
                points = transforms.apply_coords(np.array(entry["segmentation"][0]).reshape(-1, 2))
                canvas = utils.polygons_to_bitmask([(points + 300).reshape(-1)], 800, 800)[300:, 300:]
                mask = torch.from_numpy(canvas[: size[0], : size[1]])
            else:
                entry = utils.transform_instance_annotations(entry, transforms, size)
                mask = utils.annotations_to_instances([entry], size, "bitmask").gt_masks.tensor[0]
            if not entry["iscrowd"] and mask.any():
                expected[index] = mask
        assert mapped["instances"].gt_ids.tolist() == list(expected)
        assert torch.equal(mapped["instances"].gt_masks.tensor, torch.stack(list(expected.values())))
        assert mapped["instances"].gt_boxes.tensor.tolist() == boxes_by_hand(mapped["instances"].gt_masks.tensor)
    assert sizes == {45, 90}


def test_two_views_share_ids_and_follow_their_transforms(record, seeded):
    """Each view's masks are the base masks warped, pixel by pixel, with the matrix that was drawn for it."""
    mapper = plain("MODEL.SOLO_TRACK.EMB.VIEWS", "2", "INPUT.VIEWS.MIN_VISIBLE", "0.3")
    base = {int(i): mask.numpy() for i, mask in zip(*[plain()(record)["instances"].get(k) for k in ("gt_ids", "gt_masks")], strict=True)}
    drawn = []

    class Recording(RandomSimilarity):
        def get_transform(self, image):
            drawn.append(super().get_transform(image))
            return drawn[-1]

    mapper.view.augmentations.augs[0].__class__ = Recording
    dropped, common = 0, 0
    for seed in range(6):
        drawn.clear()
        seeded(seed)
        mapped = mapper(record)
        views = [mapped, mapped["second_view"]]
        assert set(views[1]) == {"image", "instances"}
        assert len(drawn) == 2 and not np.allclose(drawn[0].matrix, drawn[1].matrix)
        assert not torch.equal(views[0]["image"], views[1]["image"])
        common += len(set(views[0]["instances"].gt_ids.tolist()) & set(views[1]["instances"].gt_ids.tolist()))
        for view, transform in zip(views, drawn, strict=True):
            inverse = np.linalg.inv(np.vstack([transform.matrix, [0, 0, 1]]))
            instances = view["instances"]
            warped = {}
            for index, mask in base.items():
                points = np.argwhere(np.ones((H, W)))[:, ::-1]  # (x, y) of every pixel of the view
                sources = np.rint(np.c_[points, np.ones(len(points))] @ inverse[:2].T).astype(int)
                inside = ((sources >= 0) & (sources < (W, H))).all(axis=1)
                result = np.zeros(H * W, bool)
                result[inside] = mask[sources[inside, 1], sources[inside, 0]]
                warped[index] = result.reshape(H, W)
            share = {i: m.sum() / (base[i].sum() * transform.scale**2) for i, m in warped.items()}
            assert instances.gt_ids.tolist() == [i for i in warped if share[i] >= 0.3]
            dropped += len(base) - len(instances)
            assert instances.gt_classes.tolist() == [record["annotations"][i]["category_id"] for i in instances.gt_ids.tolist()]
            for index, mask in zip(instances.gt_ids.tolist(), instances.gt_masks.tensor.numpy(), strict=True):
                assert (mask != warped[index]).sum() <= 2  # sources that lie between two pixels
            assert instances.gt_boxes.tensor.tolist() == boxes_by_hand(instances.gt_masks.tensor)
            assert view["image"].shape == (3, H, W) and instances.image_size == (H, W)
    assert dropped and common


def test_one_view_zoom_and_colour(record, seeded):
    seeded(0)
    mapped = plain("INPUT.AUG.SCALE_RANGE", "[2.0, 2.0]")(record)
    mask = mapped["instances"].gt_masks.tensor[mapped["instances"].gt_ids == 2][0]
    assert abs(mask.sum() / MASKS[2].sum() - 4) < 0.3  # about the centre, so it stays inside
    assert "second_view" not in mapped
    coloured = plain("INPUT.AUG.COLOR", "0.5")(record)
    assert not torch.equal(coloured["image"], plain()(record)["image"])
    assert torch.equal(coloured["instances"].gt_masks.tensor, plain()(record)["instances"].gt_masks.tensor)


def test_mapper_for_tests_resizes_only(record):
    cfg = load_config("", ["INPUT.MIN_SIZE_TEST", "120", "INPUT.AUG.COLOR", "0.5", "MODEL.SOLO_TRACK.EMB.VIEWS", "2"])
    mapped = ImageMapper(cfg, is_train=False)(record)
    assert set(mapped) == {"file_name", "image_id", "height", "width", "image"}
    assert mapped["image"].shape == (3, 120, 160) and (mapped["height"], mapped["width"]) == (H, W)
    labelled = ImageMapper(cfg, is_train=False, with_labels=True)(record)
    assert labelled["instances"].gt_ids.tolist() == [0, 2, 4, 5] and labelled["instances"].image_size == (120, 160)


def test_grey_and_16_bit_images(record, tmp_path):
    ramp = np.linspace(0, 65535, H * W).reshape(H, W).astype(np.uint16)
    for name, pixels in (("grey.png", (ramp // 257).astype(np.uint8)), ("deep.png", ramp), ("deep.tif", ramp)):
        cv2.imwrite(str(tmp_path / name), pixels)
        image = plain()({**record, "file_name": str(tmp_path / name)})["image"].numpy()
        assert (image[0] == image[1]).all() and (image[0] == image[2]).all()
        assert np.abs(image[0] - ramp / 257).max() <= 1


def test_broken_images_are_named(record, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    whole = cv2.imencode(".jpg", noise)[1].tobytes()
    for name, content in (("cut.jpg", whole[: len(whole) // 2]), ("text.jpg", b"not an image"), ("empty.jpg", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FrameError, match=rf"{name} cannot be read .* copy or extract it again"):
            plain()({**record, "file_name": str(tmp_path / name)})
    with pytest.raises(FrameError, match=r"gone\.jpg does not exist"):
        plain()({**record, "file_name": str(tmp_path / "gone.jpg")})


def test_sizes_and_masks_that_do_not_fit_are_named(record):
    with pytest.raises(DatasetError, match=rf"a\.png has {W} x {H} pixels .* json says {W} x {H + 1}"):
        plain()({**record, "height": H + 1})
    for segmentation in (encode(np.zeros((H, W + 1), np.uint8)), [[1.0, 2.0, 3.0]], {"size": [H, W], "counts": "~"}):
        broken = {**record, "annotations": [record["annotations"][0], annotation(segmentation, 0)]}
        with pytest.raises(DatasetError, match=r"annotation number 1 .* of .*a\.png has no mask that can be used"):
            plain()(broken)
    del record["annotations"][0]["segmentation"]
    with pytest.raises(DatasetError, match="annotation number 0"):
        plain()(record)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="num_views is 2"):
        ImageMapper([], "RGB", view=None, num_views=2)
    with pytest.raises(ValueError, match="needs the labels"):
        ImageMapper(load_config("", ["MODEL.SOLO_TRACK.EMB.VIEWS", "2"]), with_labels=False)


def test_real_images(shared_dir, seeded):
    folder = shared_dir / "data" / "nuclei"
    if not folder.is_dir():
        pytest.skip("the nuclei images are not on this machine")
    records = load_coco_instances(str(folder / "val.json"), str(folder))
    mapper = ImageMapper(load_config("", ["INPUT.MIN_SIZE_TRAIN", "(96, 128)", "MODEL.SOLO_TRACK.EMB.VIEWS", "2"]))
    seeded(0)
    for record in records[:4]:
        mapped = mapper(record)
        for view in (mapped, mapped["second_view"]):
            instances = view["instances"]
            assert min(view["image"].shape[1:]) in (96, 128)
            assert instances.gt_masks.tensor.shape == (len(instances), *view["image"].shape[1:]) and len(instances) > 0
            assert instances.gt_boxes.tensor.tolist() == boxes_by_hand(instances.gt_masks.tensor)
            # nuclei shine: inside the masks it is brighter than outside
            grey = view["image"].float().mean(0)
            covered = instances.gt_masks.tensor.any(0)
            assert grey[covered].mean() > grey[~covered].mean()


# ---- copy-paste


@pytest.fixture
def donor(tmp_path: Path) -> dict[str, Any]:
    """A white image of another size, with a crowd and two squares."""
    cv2.imwrite(str(tmp_path / "b.png"), np.full((40, 50, 3), 255, np.uint8))
    squares = [[[x, 5.0, x + 12, 5.0, x + 12, 17.0, x, 17.0]] for x in (5.0, 30.0)]
    everything = [[0.0, 0.0, 50.0, 0.0, 50.0, 40.0, 0.0, 40.0]]
    annotations = [annotation(everything, 0, crowd=1), annotation(squares[0], 2), annotation(squares[1], 3)]
    return {"file_name": str(tmp_path / "b.png"), "image_id": 8, "height": 40, "width": 50, "annotations": annotations}


PASTE = ["INPUT.COPY_PASTE.PROB", "1.0", "INPUT.COPY_PASTE.MAX_INSTANCES", "2", "INPUT.COPY_PASTE.SCALE_RANGE", "[1.0, 1.0]"]


def pasting(donors: list[dict[str, Any]], *overrides: str) -> ImageMapper:
    words = ["INPUT.MIN_SIZE_TRAIN", f"({H},)", "INPUT.RANDOM_FLIP", "none", *PASTE, *overrides]
    return ImageMapper(load_config("", words), donors=donors)


def test_pasted_instances(record, donor, seeded):
    """They are the donor's, at the size that the augmentations give it, and hide what is below."""
    before = copy.deepcopy((record, donor))
    counts = set()
    for seed in range(12):
        seeded(seed)
        mapped = pasting([donor])(record)
        image, instances = mapped["image"].numpy(), mapped["instances"]
        pasted = instances.gt_ids >= 6  # the record's six annotations come before the donor's
        counts.add(int(pasted.sum()))
        classes = {6 + 1: 2, 6 + 2: 3} | {0: 1, 2: 0, 4: 2, 5: 3}
        assert instances.gt_classes.tolist() == [classes[i] for i in instances.gt_ids.tolist()]
        masks = instances.gt_masks.tensor.numpy()
        covered = masks[pasted.numpy()].any(axis=0)
        assert (image[:, covered] == 255).all() and not (masks[~pasted.numpy()] & covered).any()
        np.testing.assert_array_equal(image[:, ~covered], plain()(record)["image"].numpy()[:, ~covered])
        assert masks[pasted.numpy()].sum(axis=(1, 2)).max() == 18**2  # 12 pixels * 60 / 40; what is on top is whole
        assert instances.gt_boxes.tensor.tolist() == boxes_by_hand(instances.gt_masks.tensor)
        assert {k: mapped[k] for k in ("file_name", "height", "width")} == {k: record[k] for k in ("file_name", "height", "width")}
    assert counts == {1, 2} and (record, donor) == before


def test_both_views_show_what_was_pasted(record, donor, seeded):
    common = Counter()
    for seed in range(10):
        seeded(seed)
        mapped = pasting([donor], "MODEL.SOLO_TRACK.EMB.VIEWS", "2", "INPUT.VIEWS.SHIFT", "0.1")(record)
        common.update(set(mapped["instances"].gt_ids.tolist()) & set(mapped["second_view"]["instances"].gt_ids.tolist()))
    assert common[7] + common[8] > 8 and common[4] > 5


def test_an_image_gets_nothing_from_itself_nor_where_there_is_nothing(record, donor, seeded):
    seeded(0)
    for donors in ([record], [], [donor | {"annotations": donor["annotations"][:1]}], [donor | {"annotations": []}]):
        mapped = pasting(donors)(record)
        assert torch.equal(mapped["image"], plain()(record)["image"]) and mapped["instances"].gt_ids.tolist() == [0, 2, 4, 5]
    empty = pasting([donor])(record | {"annotations": []})
    assert set(empty["instances"].gt_ids.tolist()) <= {1, 2} and len(empty["instances"])


def test_how_often_it_pastes_and_from_whom(record, donor, tmp_path, seeded):
    dark = donor | {"file_name": str(tmp_path / "c.png")}
    cv2.imwrite(dark["file_name"], np.zeros((40, 50, 3), np.uint8))
    seeded(0)
    mapper, seen = pasting([donor, dark], "INPUT.COPY_PASTE.PROB", "0.5"), Counter()
    for _ in range(120):
        mapped = mapper(record)
        pasted = mapped["instances"].gt_masks.tensor[mapped["instances"].gt_ids >= 6].any(0)
        seen[int(mapped["image"][0][pasted].max()) if pasted.any() else None] += 1
    assert 45 < seen[None] < 75 and min(seen[0], seen[255]) > 15
    off = pasting([donor], "INPUT.COPY_PASTE.PROB", "0.0", "INPUT.AUG.COLOR", "0.5")
    seeded(1)
    expected = plain("INPUT.AUG.COLOR", "0.5")(record)["image"]
    seeded(1)
    assert torch.equal(off(record)["image"], expected), "switched off it draws no random number"


def test_instances_pasted_into_their_own_image_keep_their_identity(record, seeded):
    """They are there twice: the same pixels in another place, under one id and class."""
    classes, twice = {0: 1, 2: 0, 4: 2, 5: 3}, 0
    original = plain()(record)
    whole = original["instances"]
    pixels = {int(i): original["image"][:, mask] for i, mask in zip(whole.gt_ids, whole.gt_masks.tensor, strict=True)}
    for seed in range(12):
        seeded(seed)
        mapped = pasting([], "INPUT.COPY_PASTE.SOURCE", "same")(record)
        instances = mapped["instances"]
        ids = instances.gt_ids.tolist()
        assert instances.gt_classes.tolist() == [classes[i] for i in ids]
        masks = instances.gt_masks.tensor
        assert masks.sum(0).max() <= whole.gt_masks.tensor.sum(0).max()
        for place, i in enumerate(ids):
            if ids.index(i) < place and masks[place].sum() == pixels[i].shape[1]:  # a second one, and all of it in sight
                assert torch.equal(mapped["image"][:, masks[place]], pixels[i])
                twice += 1
    assert twice > 6


def test_a_second_look_in_the_same_image_is_that_of_a_view(record, seeded):
    """Its colours are those of a jitter of its own, which without a view they are not."""
    lone = record | {"annotations": record["annotations"][:1]}

    def colours(*overrides: str) -> list[int]:
        """Of the mean colours of an instance in its two places, the largest difference of a channel."""
        differences = []
        for seed in range(8):
            seeded(seed)
            mapped = pasting([], "INPUT.COPY_PASTE.SOURCE", "same", *overrides)(lone)
            assert mapped["instances"].gt_ids.tolist() in ([0], [0, 0])
            means = [mapped["image"][:, mask].float().mean(dim=1) for mask in mapped["instances"].gt_masks.tensor]
            if len(means) == 2:
                differences.append(float((means[0] - means[1]).abs().max()))
        assert len(differences) > 2
        return differences

    assert max(colours()) < 10 < max(colours("INPUT.AUG.COLOR", "0.8"))


def test_an_image_without_an_instance_has_none_to_paste(record, seeded):
    seeded(0)
    for view in ([], ["INPUT.AUG.STRONG", "True"]):
        assert not len(pasting([], "INPUT.COPY_PASTE.SOURCE", "same", *view)(record | {"annotations": []})["instances"])


def test_a_broken_donor_is_named(record, donor):
    Path(donor["file_name"]).write_bytes(b"")
    with pytest.raises(FrameError, match=r"b\.png cannot be read"):
        pasting([donor])(record)
