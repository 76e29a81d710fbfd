from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch.nn import functional as F

from solotrack.config import load_config
from solotrack.modeling.solo import SOLOHead, SOLOInference, embedding_cells, inference
from solotrack.modeling.solo.inference import find_candidates, point_nms, resize_masks
from solotrack.modeling.solo.targets import assign_grid_targets
from solotrack.ops.masks import masks_to_boxes
from solotrack.ops.matrix_nms import matrix_nms

GRIDS, STRIDES, CLASSES = (7, 6, 5, 4, 3), (8, 8, 16, 32, 32), 3
RANGES = ((1, 24), (12, 48), (24, 96), (48, 192), (96, 512))
CELLS = sum(s * s for s in GRIDS)
PADDED, SIZES, OUTPUTS = (96, 128), [(96, 128), (90, 101)], [(192, 256), (90, 101)]


def make_head() -> SOLOHead:
    torch.manual_seed(0)
    head = SOLOHead(in_channels=4, num_classes=CLASSES, strides=STRIDES, num_grids=GRIDS, num_convs=1, channels=8, num_groups=4)
    for p in head.mask_tower.parameters():
        torch.nn.init.normal_(p, std=0.5)
    for conv in head.mask_out:  # masks from nothing to everything, and some empty
        torch.nn.init.normal_(conv.weight, std=0.6)
        torch.nn.init.normal_(conv.bias, std=0.8)
    return head


def make_features(n: int = 2) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    coarse = [torch.randn(n, 4, 3, 4, generator=g) for _ in STRIDES]
    return [F.interpolate(c, size=(PADDED[0] // s, PADDED[1] // s), mode="bilinear") for c, s in zip(coarse, STRIDES, strict=True)]


def make_scores(n: int = 2, share: float = 0.3, seed: int = 2) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, CELLS, CLASSES, generator=g)
    return torch.where(torch.rand(n, CELLS, CLASSES, generator=g) < share, scores, scores * 0.05)


def full_masks(head: SOLOHead, features: list[torch.Tensor], image: int) -> torch.Tensor:
    """Probabilities of all cells by the whole convolutions, at the output size of level 0: (R, h, w)."""
    maps = []
    for level in range(len(GRIDS)):
        tower = F.interpolate(head.mask_tower(features[level][image : image + 1]), scale_factor=2, mode="bilinear", align_corners=False)
        probs = head.mask_out[level](tower).sigmoid()
        maps.append(F.interpolate(probs, size=(PADDED[0] // 4, PADDED[1] // 4), mode="bilinear", align_corners=False)[0])
    return torch.cat(maps)


@torch.no_grad()
def slow_inference(head: SOLOHead, features: list[torch.Tensor], scores: torch.Tensor, image: int, nms_pre: int, top: int):
    """METHOD 1.5 with loops over cells and classes: [(score, class, cell, mask, clustered cells)]."""
    soft = full_masks(head, features, image)
    found = []
    offset = 0
    for s, stride in zip(GRIDS, STRIDES, strict=True):
        for i in range(s):
            for j in range(s):
                cell = offset + i * s + j
                for c in range(CLASSES):
                    neighbours = [offset + k * s + m for k in (i - 1, i) for m in (j - 1, j) if k >= 0 and m >= 0]
                    score = scores[image, cell, c].item()
                    binary = soft[cell] > 0.5
                    if score > 0.1 and score == max(scores[image, k, c].item() for k in neighbours) and binary.sum() > stride:
                        found.append((score * soft[cell][binary].mean().item(), c, cell, binary))
        offset += s * s
    found = sorted(found, key=lambda f: -f[0])[:nms_pre]
    decayed = matrix_nms(
        torch.stack([f[3] for f in found]), torch.tensor([f[1] for f in found]), torch.tensor([f[0] for f in found])
    ).tolist()
    order = [k for k in sorted(range(len(found)), key=lambda k: -decayed[k]) if decayed[k] >= 0.05][:top]
    results = []
    for k in order:
        _, c, cell, binary = found[k]
        up = F.interpolate(soft[cell][None, None], size=PADDED, mode="bilinear", align_corners=False)
        up = up[..., : SIZES[image][0], : SIZES[image][1]]
        mask = F.interpolate(up, size=OUTPUTS[image], mode="bilinear", align_corners=False)[0, 0] > 0.5
        same = [
            other[2]
            for rank, other in enumerate(found)
            if rank > k and rank not in order and other[1] == c and (other[3] & binary).sum() / (other[3] | binary).sum() > 0.5
        ]
        if mask.any():
            results.append((decayed[k], c, cell, mask, [cell, *same]))
    return results


def test_point_nms_looks_left_and_up_only() -> None:
    heat = torch.zeros(1, 1, 4, 4)
    heat[0, 0, 1, 1] = 0.9
    for (i, j), survives in {
        (1, 2): False,
        (2, 1): False,
        (2, 2): False,
        (0, 1): True,
        (1, 0): True,
        (0, 0): True,
        (0, 2): True,
        (2, 0): True,
    }.items():
        other = heat.clone()
        other[0, 0, i, j] = 0.5
        kept = point_nms(other)
        assert kept[0, 0, 1, 1] == torch.tensor(0.9)
        assert (kept[0, 0, i, j] == 0.5) == survives, (i, j)


def test_point_nms_by_loop_and_per_class() -> None:
    heat = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    kept = point_nms(heat)
    for n, c, i, j in np.ndindex(*heat.shape):
        window = heat[n, c, max(i - 1, 0) : i + 1, max(j - 1, 0) : j + 1]
        assert kept[n, c, i, j] == (heat[n, c, i, j] if heat[n, c, i, j] == window.max() else 0)


@pytest.mark.parametrize(("nms_pre", "top", "share"), [(500, 100, 0.3), (20, 100, 0.1), (20, 4, 0.1)])
def test_equals_the_slow_rule(nms_pre: int, top: int, share: float) -> None:
    head, features, scores = make_head(), make_features(), make_scores(share=share)
    detect = SOLOInference(nms_pre=nms_pre, max_per_image=top)
    # The guard against thousands of candidates is not of this test; the limit before Matrix NMS is.
    most = int(find_candidates(scores, GRIDS, 0.1, 10**6).image.bincount().max())
    assert nms_pre == 500 or nms_pre < most <= 2 * nms_pre
    results = detect(head, features, scores, SIZES, OUTPUTS, PADDED, with_clusters=True)
    clustered = 0
    for image, got in enumerate(results):
        wanted = slow_inference(head, features, scores, image, nms_pre, top)
        assert got.image_size == OUTPUTS[image]
        assert got.cell_indices.tolist() == [w[2] for w in wanted]
        assert got.pred_classes.tolist() == [w[1] for w in wanted]
        np.testing.assert_allclose(got.scores, [w[0] for w in wanted], rtol=1e-4)
        assert got.pred_masks.dtype == torch.bool
        for mask, box, cluster, w in zip(got.pred_masks, got.pred_boxes, got.cluster_cells, wanted, strict=True):
            assert (mask != w[3]).sum() <= 2  # a pixel at 0.5 to within rounding
            ys, xs = mask.nonzero(as_tuple=True)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert [c for c in cluster.tolist() if c >= 0] == w[4]
            clustered += len(w[4]) - 1
        assert 3 < len(got) <= top
    assert clustered > 0 or nms_pre == 20


def test_cell_index_survives_every_filter() -> None:
    """Each result's cell made that very result, and a map that stores its own index reads it back (METHOD 13, T18)."""
    head, features, scores = make_head(), make_features(), make_scores(share=0.6)
    own_index = torch.arange(CELLS)
    for image, got in enumerate(SOLOInference(max_per_image=20)(head, features, scores, SIZES, OUTPUTS, PADDED)):
        assert len(got) == 20 and len(got.cell_indices.unique()) > 10
        assert torch.equal(own_index[got.cell_indices], got.cell_indices)
        with torch.no_grad():
            soft = full_masks(head, features, image)
        masks = resize_masks(soft[got.cell_indices], PADDED, SIZES[image], OUTPUTS[image], 0.5)
        assert ((masks != got.pred_masks).sum((1, 2)) <= 2).all()
        undecayed = scores[image, got.cell_indices, got.pred_classes]
        assert (got.scores <= undecayed).all() and (undecayed > 0.1).all()
        assert (got.scores.diff() <= 0).all()


def test_a_cell_that_fires_for_two_classes_gives_both() -> None:
    head, features = make_head(), make_features()
    with torch.no_grad():
        sizes = (full_masks(head, features, 0) > 0.5).sum((1, 2))
    cell = int((sizes > 300).nonzero()[0])
    scores = torch.zeros(2, CELLS, CLASSES)
    scores[0, cell, 0], scores[0, cell, 2] = 0.9, 0.8
    first, second = SOLOInference()(head, features, scores, SIZES, OUTPUTS, PADDED)
    assert first.cell_indices.tolist() == [cell, cell] and first.pred_classes.tolist() == [0, 2]
    assert torch.equal(first.pred_masks[0], first.pred_masks[1])
    assert len(second) == 0


def test_nothing_found() -> None:
    head, features = make_head(), make_features()
    runs = []
    head.mask_tower.register_forward_hook(lambda *args: runs.append(1))
    for got, size in zip(
        SOLOInference()(head, features, torch.zeros(2, CELLS, CLASSES), SIZES, OUTPUTS, PADDED, with_clusters=True), OUTPUTS, strict=True
    ):
        assert got.pred_masks.shape == (0, *size) and got.pred_boxes.tensor.shape == (0, 4)
        assert len(got) == len(got.scores) == len(got.pred_classes) == len(got.cell_indices) == len(got.cluster_cells) == 0
    assert not runs


def test_mask_branch_runs_only_on_levels_with_a_candidate() -> None:
    head, features = make_head(), make_features()
    sizes = []
    head.mask_tower.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[-2:])))
    scores = torch.zeros(2, CELLS, CLASSES)
    scores[1, head.level_offsets[2] + 7, 1] = 0.9
    SOLOInference()(head, features, scores, SIZES, OUTPUTS, PADDED)
    assert sizes == [(6, 8)]


def test_masks_of_as_many_pixels_as_the_stride_are_dropped() -> None:
    head = make_head()
    head.mask_tower = torch.nn.Identity()
    with torch.no_grad():
        head.mask_out[0].weight.zero_()
        head.mask_out[0].bias.zero_()
        head.mask_out[0].weight[3, 0] = head.mask_out[0].weight[20, 1] = 1  # cell 3 reads channel 0, cell 20 channel 1
    features = [torch.full((1, 8, PADDED[0] // s, PADDED[1] // s), -9.0) for s in STRIDES]
    features[0][0, 0, 4, 5:7] = 9.0  # two pixels of stride 8 are eight of stride 4
    features[0][0, 1, 4, 5:8] = 9.0
    scores = torch.zeros(1, CELLS, CLASSES)
    scores[0, [3, 20], 0] = 0.9
    got = SOLOInference()(head, features, scores, SIZES, OUTPUTS, PADDED)[0]
    assert got.cell_indices.tolist() == [20]


def test_candidates_are_above_the_threshold() -> None:
    scores = torch.zeros(1, CELLS, CLASSES)
    scores[0, 10, 1], scores[0, 30, 2] = 0.5, 0.5001
    assert find_candidates(scores, GRIDS, 0.5, 100).cells.tolist() == [30]


def test_small_masks_are_dropped_and_empty_ones_never_returned() -> None:
    head, features = make_head(), make_features()
    with torch.no_grad():
        head.mask_out[0].weight.zero_()
        head.mask_out[0].bias.copy_(torch.linspace(-5, 5, 49))  # constant maps: nothing, or the whole padded image
    scores = torch.zeros(2, CELLS, CLASSES)
    scores[0, :49, 0] = torch.arange(49) * 0.01 + 0.3  # ascending, so that point NMS keeps all
    got = SOLOInference()(head, features, scores, SIZES, OUTPUTS, PADDED)[0]
    assert got.cell_indices.min() > 24 and got.pred_masks.all()
    # A mask that lies in the padding alone is empty in the image.
    soft = torch.zeros(1, 24, 32)
    soft[:, 23:, :] = 1
    assert not resize_masks(soft, PADDED, (80, 128), (80, 128), 0.5).any()


def test_masks_that_lie_in_the_padding_are_dropped() -> None:
    head, features, scores = make_head(), make_features(), make_scores()
    tiny = [(1, 1), (1, 1)]
    for got in SOLOInference()(head, features, scores, tiny, tiny, PADDED):
        assert got.pred_masks.all()
        assert 0 < len(got) < 100


def test_candidate_limit_keeps_the_best_of_each_image() -> None:
    scores = make_scores(n=3, share=1.0)
    scores[1] *= 0.12
    scores[2] = 0
    every = find_candidates(scores, GRIDS, 0.1, 10**6)
    counts = every.image.bincount(minlength=3).tolist()
    assert counts[0] > 50 > counts[1] > 5 and counts[2] == 0
    some = find_candidates(scores, GRIDS, 0.1, 50)
    assert some.image.bincount(minlength=3).tolist() == [50, counts[1], 0]
    best = every.scores[every.image == 0].sort(descending=True).values[:50]
    assert torch.equal(some.scores[some.image == 0].sort(descending=True).values, best)
    key = some.image * CELLS + some.cells
    assert (key.diff() >= 0).all()
    assert torch.equal(scores[some.image, some.cells, some.classes], some.scores)


def test_resizing_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    soft = torch.rand(7, 24, 32, generator=torch.Generator().manual_seed(0))
    whole = resize_masks(soft, PADDED, (90, 101), (123, 140), 0.5)
    monkeypatch.setattr(inference, "_CHUNK_BYTES", 4 * 2 * (96 * 128 + 123 * 140))
    assert torch.equal(resize_masks(soft, PADDED, (90, 101), (123, 140), 0.5), whole)
    wanted = F.interpolate(soft[None], size=PADDED, mode="bilinear", align_corners=False)[..., :90, :101]
    wanted = F.interpolate(wanted, size=(123, 140), mode="bilinear", align_corners=False)[0] > 0.5
    assert (whole != wanted).float().mean() < 1e-4


def test_parts_of_a_mask() -> None:
    head, features, scores = make_head(), make_features(), make_scores()
    whole = SOLOInference()(head, features, scores, SIZES, OUTPUTS, PADDED)
    pieces = SOLOInference(min_part=1.0)(head, features, scores, SIZES, OUTPUTS, PADDED)
    smaller = 0
    for before, after in zip(whole, pieces, strict=True):
        assert torch.equal(before.cell_indices, after.cell_indices) and torch.equal(before.scores, after.scores)
        torch.testing.assert_close(after.pred_boxes.tensor, masks_to_boxes(after.pred_masks))
        assert not (after.pred_masks & ~before.pred_masks).any()
        smaller += int((after.pred_masks.sum((1, 2)) < before.pred_masks.sum((1, 2))).sum())
    assert smaller > 5


def test_from_config_and_kernel() -> None:
    detect = SOLOInference(
        load_config(overrides=["MODEL.SOLO.NMS_PRE", 7, "MODEL.SOLO.NMS_KERNEL", "linear", "MODEL.SOLO.SCORE_THRESH", 0.3])
    )
    assert (detect.nms_pre, detect.nms_kernel, detect.score_thresh) == (7, "linear", 0.3)
    assert (detect.mask_thresh, detect.nms_sigma, detect.update_thresh, detect.max_per_image) == (0.5, 2.0, 0.05, 100)


def read(mode: str, instances: Instances, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    geometry = {"image_size": (48, 64), "padded_size": (64, 96), "num_grids": GRIDS, "scale_ranges": RANGES, "sigma": 0.6}
    return embedding_cells(mode, instances, **geometry | kwargs)


def detections() -> Instances:
    """Three masks in an image twice the size the network saw."""
    masks = torch.zeros(3, 96, 128, dtype=torch.bool)
    masks[0, 10:50, 20:60] = True
    masks[1, 60:64, 100:103] = True  # 1.7 pixels for the network
    masks[2, :, :] = True
    instances = Instances((96, 128))
    instances.pred_masks = masks
    instances.pred_boxes = Boxes(masks_to_boxes(masks))
    instances.cell_indices = torch.tensor([17, 60, 130])
    return instances


def test_read_the_cell() -> None:
    cells, valid = read("cell", detections())
    assert cells.tolist() == [[17], [60], [130]] and valid.all()


@pytest.mark.parametrize("pool_levels", ["all", "per_level"])
def test_read_the_center_region_is_what_training_assigns(pool_levels: str) -> None:
    instances = detections()
    cells, valid = read("center_region", instances, pool_levels=pool_levels)
    level_of = np.repeat(np.arange(5), [s * s for s in GRIDS])
    for mask, own, row, ok in zip(instances.pred_masks, instances.cell_indices.tolist(), cells, valid, strict=True):
        small = F.interpolate(mask[None, None].float(), scale_factor=0.5, mode="area") >= 0.5  # as the network saw it
        truth = Instances((48, 64))
        truth.gt_masks = BitMasks(small[0])
        truth.gt_boxes, truth.gt_classes = truth.gt_masks.get_bounding_boxes(), torch.tensor([0])
        targets = assign_grid_targets([truth], (64, 96), GRIDS, STRIDES, RANGES, 0.6, CLASSES)
        wanted = (targets.instance_index[0] == 0).nonzero().squeeze(1).tolist()
        if pool_levels == "per_level":
            wanted = [c for c in wanted if level_of[c] == level_of[own]]
        assert sorted(row[ok].tolist()) == (wanted or [own])
        assert (row[~ok] == 0).all()
    assert valid.sum() > 6


def test_read_the_cluster() -> None:
    instances = detections()
    with pytest.raises(ValueError, match="with_clusters=True"):
        read("cluster", instances)
    instances.cluster_cells = torch.tensor([[17, 4, 5], [60, -1, -1], [130, 7, -1]])
    cells, valid = read("cluster", instances)
    assert cells.tolist() == [[17, 4, 5], [60, 0, 0], [130, 7, 0]]
    assert valid.tolist() == [[True, True, True], [True, False, False], [True, True, False]]


@pytest.mark.parametrize("mode", ["cell", "center_region", "cluster"])
def test_read_no_detection(mode: str) -> None:
    instances = detections()[:0]
    instances.cluster_cells = torch.zeros(0, 1, dtype=torch.int64)
    cells, valid = read(mode, instances)
    assert cells.shape == valid.shape and len(cells) == 0 and valid.dtype == torch.bool


def test_read_in_an_unknown_way() -> None:
    with pytest.raises(ValueError, match="EMB_READ"):
        read("nearest", detections())
