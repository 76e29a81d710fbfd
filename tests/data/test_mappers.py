from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from solotrack.config import load_config
from solotrack.data.annotation_file import DatasetError
from solotrack.data.coco import load_coco_instances
from solotrack.data.frames import FrameError
from solotrack.data.mappers import ImageMapper
from solotrack.data.views import RandomSimilarity
from tests.data.labelled import MASKS, H, W, annotation, boxes_by_hand, encode, plain


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
