"""Overlays on frames, and the mp4 files they are written to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from solotrack.data.frames import open_frames
from solotrack.visualization.colors import identity_color
from solotrack.visualization.overlay import draw_tracks, readable_zoom
from solotrack.visualization.video_writer import VideoWriter, fit_frame


def tracked(masks: torch.Tensor, ids: list[int], scores: list[float] | None = None) -> Instances:
    instances = Instances(tuple(masks.shape[1:]))
    instances.pred_masks = masks
    instances.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    instances.scores = torch.tensor(scores if scores is not None else [0.9] * len(masks))
    instances.pred_classes = torch.zeros(len(masks), dtype=torch.int64)
    instances.ID = torch.tensor(ids, dtype=torch.int64)
    return instances


def rectangle(height: int, width: int, x0: int, y0: int, x1: int, y1: int) -> torch.Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_mask_is_blended_outlined_and_the_rest_untouched():
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    before = image.copy()
    mask = rectangle(120, 160, 30, 40, 90, 100)
    mask[60:70, 50:60] = False  # a hole
    out = draw_tracks(image, tracked(mask[None], [4]), alpha=0.5, labels=False)
    np.testing.assert_array_equal(image, before)
    assert out.dtype == np.uint8 and out.shape == image.shape
    color = np.array(identity_color(4))
    inner = np.zeros((120, 160), bool)
    inner[43:97, 33:87] = True
    inner &= mask.numpy()
    expected = 0.5 * image[inner].astype(float) + 0.5 * color
    assert np.abs(out[inner] - expected).max() <= 1
    outside = np.ones((120, 160), bool)
    outside[38:102, 28:92] = False
    outside[60:70, 50:60] = True
    np.testing.assert_array_equal(out[outside], image[outside])
    assert np.abs(out[40, 32:88].astype(int) - color).max() <= 16, "the outline has nearly the full colour"


def test_read_only_frames_and_no_instances():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image.setflags(write=False)
    empty = tracked(torch.zeros(0, 20, 30, dtype=torch.bool), [])
    out = draw_tracks(image, empty)
    np.testing.assert_array_equal(out, image)
    assert out.flags.writeable
    nothing = tracked(torch.zeros(1, 20, 30, dtype=torch.bool), [1])
    np.testing.assert_array_equal(draw_tracks(image, nothing), image)


def test_detections_without_a_track_are_left_out():
    image = np.zeros((60, 60, 3), np.uint8)
    masks = torch.stack([rectangle(60, 60, 5, 5, 25, 25), rectangle(60, 60, 30, 30, 55, 55)])
    out = draw_tracks(image, tracked(masks, [-1, 2]), labels=False)
    assert not out[:28, :28].any()
    assert out[40, 40].any()


def test_an_identity_keeps_its_colour_whatever_else_is_there():
    image = np.full((60, 60, 3), 128, np.uint8)
    first, second = rectangle(60, 60, 5, 5, 25, 25), rectangle(60, 60, 30, 30, 55, 55)
    alone = draw_tracks(image, tracked(second[None], [7]), labels=False)
    both = draw_tracks(image, tracked(torch.stack([first, second]), [3, 7]), labels=False)
    swapped = draw_tracks(image, tracked(torch.stack([second, first]), [7, 3]), labels=False)
    np.testing.assert_array_equal(alone[28:, 28:], both[28:, 28:])
    np.testing.assert_array_equal(both, swapped)
    assert np.abs(both[15, 15].astype(int) - both[45, 45].astype(int)).max() > 20


def test_the_surer_instance_lies_on_top():
    image = np.zeros((60, 60, 3), np.uint8)
    masks = torch.stack([rectangle(60, 60, 5, 5, 45, 45), rectangle(60, 60, 15, 15, 55, 55)])
    for scores, top in [([0.9, 0.3], 0), ([0.3, 0.9], 1)]:
        out = draw_tracks(image, tracked(masks, [0, 1], scores), alpha=1.0, labels=False)
        np.testing.assert_array_equal(out[30, 30], identity_color(top))


@pytest.mark.parametrize("size", [(24, 24), (90, 160), (480, 640)])
@pytest.mark.parametrize("corner", [(0, 0), (1, 1)])
def test_labels_stay_inside(size, corner):
    height, width = size
    x, y = corner[0] * (width - 8), corner[1] * (height - 8)
    image = np.zeros((height, width, 3), np.uint8)
    instances = tracked(rectangle(height, width, x, y, x + 8, y + 8)[None], [5])
    bare, labelled = draw_tracks(image, instances, labels=False), draw_tracks(image, instances, ["dog", "cat"])
    changed = (bare != labelled).any(axis=2)
    assert changed.sum() > 50
    assert not np.array_equal(draw_tracks(image, instances, ["cat", "dog"]), labelled)
    only = draw_tracks(image, instances, ["dog"])
    np.testing.assert_array_equal(only, draw_tracks(image, instances, ["cat"]))  # no need to name the only class


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_mp4_round_trip(tmp_path, size):
    height, width = size
    ramp = np.linspace(0, 180, width).astype(np.uint8)
    images = [np.broadcast_to((ramp + 6 * i)[None, :, None], (height, width, 3)).copy() for i in range(11)]
    path = tmp_path / "new" / "a.mp4"
    with VideoWriter(path, fps=12.5) as writer:
        for image in images:
            writer.write(image)
            assert not path.exists(), "the name appears when the file is whole"
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]
    source = open_frames(path)
    assert source.fps == 12.5 and source.length == 11
    got = list(source)
    assert len(got) == 11
    for frame, image in zip(got, images, strict=True):
        assert frame.image.shape == (48, 64, 3)
        assert np.abs(frame.image[:height, :width].astype(int) - image).mean() < 4


def test_frames_of_other_sizes_are_fitted(tmp_path):
    with VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(np.full((48, 64, 3), 200, np.uint8))
        writer.write(np.full((96, 64, 3), 200, np.uint8))
    first, second = (frame.image.astype(int) for frame in open_frames(tmp_path / "a.mp4"))
    assert first.shape == second.shape == (48, 64, 3)
    assert abs(second[:, 20:44].mean() - 200) < 8
    assert second[:, :12].mean() < 8 and second[:, 52:].mean() < 8


def test_fit_frame():
    image = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert fit_frame(image, 5, 7) is image
    padded = fit_frame(image, 6, 8)
    np.testing.assert_array_equal(padded[:5, :7], image)
    np.testing.assert_array_equal(padded[5, :7], image[4])
    np.testing.assert_array_equal(padded[:5, 7], image[:, 6])
    assert fit_frame(image, 100, 20).shape == (100, 20, 3)
    assert fit_frame(np.zeros((1, 500, 3), np.uint8), 10, 10).shape == (10, 10, 3)


def test_failed_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), VideoWriter(path) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
        raise KeyError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    with VideoWriter(tmp_path / "none.mp4"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    for fps in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="fps"):
            VideoWriter(path, fps=fps)


def test_zoom_makes_every_pixel_a_block() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[0, 5:12, 7:20] = True
    instances = tracked(mask, [3])
    out = draw_tracks(image, instances, labels=False, zoom=3)
    assert out.shape == (60, 90, 3)
    inside = out[15:36, 21:60]
    np.testing.assert_array_equal(out[:12], image[:4].repeat(3, 0).repeat(3, 1))
    assert (inside != image[5:12, 7:20].repeat(3, 0).repeat(3, 1)).any(2).mean() > 0.95, "tinted"


@pytest.mark.parametrize(
    ("size", "zoom"), [((128, 128), 3), ((90, 200), 4), ((360, 640), 1), ((1080, 1920), 1), ((359, 500), 2), ((1, 1), 360)]
)
def test_readable_zoom(size: tuple[int, int], zoom: int) -> None:
    assert readable_zoom(*size) == zoom
