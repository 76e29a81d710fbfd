"""Targets and Matrix NMS against MMDetection 3.3.0's SOLO (../shared/parity/solo)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from solotrack.modeling.solo import assign_grid_targets
from solotrack.ops.matrix_nms import matrix_nms

STRIDES = (8, 8, 16, 32, 32)
BACKGROUND = 7


def load(shared_dir: Path, name: str) -> dict[str, np.ndarray]:
    path = shared_dir / "parity" / "solo" / name
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    with np.load(path) as file:
        return dict(file)


def unpack(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.unpackbits(bits)[: int(np.prod(shape))].reshape(shape).astype(bool)


def test_targets(shared_dir: Path) -> None:
    data = load(shared_dir, "targets.npz")
    positives = 0
    for case in range(int(data["n_cases"])):
        case_data = {key.split("/")[1]: value for key, value in data.items() if key.startswith(f"{case}/")}
        size = (int(case_data["H"]), int(case_data["W"]))
        grids = case_data["grids"].tolist()
        instances = Instances(size)
        instances.gt_masks = BitMasks(torch.from_numpy(unpack(case_data["masks"], (int(case_data["n"]), *size))))
        instances.gt_boxes = Boxes(torch.from_numpy(case_data["boxes"]).reshape(-1, 4))
        instances.gt_classes = torch.from_numpy(case_data["labels"]).long()
        targets = assign_grid_targets([instances], size, grids, STRIDES, case_data["ranges"].tolist(), 0.2, BACKGROUND)
        by_level = {p.level: p for p in targets.positives()}
        for level, s in enumerate(grids):
            first, last = targets.level_offsets[level : level + 2]
            classes = targets.classes[0, first:last].numpy()
            np.testing.assert_array_equal(classes.reshape(s, s), case_data[f"cate{level}"], err_msg=f"case {case}, level {level}")
            np.testing.assert_array_equal(classes != BACKGROUND, case_data[f"pos{level}"])
            masks = unpack(case_data[f"ins{level}"], tuple(case_data[f"ins{level}_shape"]))
            assert len(masks) == (classes != BACKGROUND).sum() == (len(by_level[level].cells) if level in by_level else 0)
            if level in by_level:
                np.testing.assert_array_equal(targets.mask_targets(by_level[level]), masks, err_msg=f"case {case}, level {level}")
            positives += len(masks)
    assert positives == 521


def test_matrix_nms(shared_dir: Path) -> None:
    data = load(shared_dir, "matrix_nms.npz")
    for case in range(int(data["n_cases"])):
        masks = torch.from_numpy(unpack(data[f"{case}/masks"], tuple(data[f"{case}/shape"])))
        labels, scores = torch.from_numpy(data[f"{case}/labels"]), torch.from_numpy(data[f"{case}/scores"])
        order = torch.argsort(scores, descending=True, stable=True)[:500]
        decayed = matrix_nms(masks[order], labels[order], scores[order], kernel=str(data[f"{case}/kernel"]), sigma=2.0)
        kept = torch.argsort(decayed, descending=True, stable=True)
        kept = kept[decayed[kept] >= 0.05][:100]
        np.testing.assert_array_equal(order[kept], data[f"{case}/keep"], err_msg=f"case {case}")
        np.testing.assert_array_equal(labels[order][kept], data[f"{case}/out_labels"])
        np.testing.assert_allclose(decayed[kept], data[f"{case}/out_scores"], rtol=1e-6)
