"""Nodes of a frame: one cell an instance, the best first."""

from __future__ import annotations

import torch

from solotrack.modeling.correspondence import instance_nodes, point_nodes
from solotrack.modeling.solo.inference import find_candidates
from tests import tiny


def pictures() -> tuple:
    model = tiny.model(tiny.config(tiny.detect_everything()), spread=0.3).eval()
    images = model.preprocess(
        [{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))} for n in range(3)]
    )
    with torch.no_grad():
        features = model.features(images).levels
        scores = model.head.category_logits(features).sigmoid()
    return model, images, features, scores


def test_instance_nodes_are_the_cells_of_the_detections() -> None:
    model, images, features, scores = pictures()
    size = tuple(images.tensor.shape[-2:])
    detections = model.inference(model.head, features, scores, images.image_sizes, images.image_sizes, size)
    middle = float(detections[0].scores[2])
    cells, valid = instance_nodes(model.inference, model.head, features, scores, size, middle, 4, nms_thresh=1.0)
    assert cells.shape == valid.shape == (3, 4) and valid.any() and not valid.all()
    for row, found in enumerate(detections):
        expected = found.cell_indices[found.scores >= middle][:4]
        assert cells[row][valid[row]].tolist() == expected.tolist()
    assert not cells[~valid].any()


def test_a_copy_of_a_better_node_is_none() -> None:
    """Against one mask after the other; the class does not matter."""
    model, images, features, scores = pictures()
    size = tuple(images.tensor.shape[-2:])
    _, there = instance_nodes(model.inference, model.head, features, scores, size, 0.0, 200, nms_thresh=1.0)
    cells, valid = instance_nodes(model.inference, model.head, features, scores, size, 0.0, 200, nms_thresh=0.5)
    assert 0 < valid.sum() < there.sum()
    for image, (found, soft, _) in enumerate(model.inference.select(model.head, features, scores, size)):
        masks = soft > 0.5
        expected = []
        for i, mask in enumerate(masks):
            overlaps = [(mask & better).sum() / (mask | better).sum() for better in masks[:i]]
            if all(overlap <= 0.5 for overlap in overlaps):
                expected.append(int(found.cells[i]))
        assert cells[image][valid[image]].tolist() == expected


def test_point_nodes_are_peaks_of_the_best_class() -> None:
    model, _, _, scores = pictures()
    best = scores.amax(dim=2, keepdim=True)
    threshold = float(best.quantile(0.8))
    cells, valid = point_nodes(scores, model.head.num_grids, threshold, 50)
    for image in range(3):
        found = find_candidates(best[image : image + 1], model.head.num_grids, threshold, 10**6)
        chosen = cells[image][valid[image]]
        assert sorted(chosen.tolist()) == found.cells.tolist(), "a cell of several classes counts once"
        order = best[image, chosen, 0]
        assert (order.diff() <= 0).all()
    few, valid_few = point_nodes(scores, model.head.num_grids, threshold, 2)
    assert torch.equal(few, cells[:, :2]) and torch.equal(valid_few, valid[:, :2])


def test_a_frame_without_a_node() -> None:
    model, images, features, scores = pictures()
    size = tuple(images.tensor.shape[-2:])
    for cells, valid in (
        instance_nodes(model.inference, model.head, features, torch.zeros_like(scores), size, 0.1, 5),
        point_nodes(torch.zeros_like(scores), model.head.num_grids, 0.1, 5),
    ):
        assert cells.shape == (3, 5) and not valid.any() and not cells.any()
