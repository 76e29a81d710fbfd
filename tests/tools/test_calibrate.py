"""Calibration of a checkpoint from elsewhere."""

from __future__ import annotations

from pathlib import Path

import torch

from solotrack.engine.checkpoint import AtomicCheckpointer
from tests import tiny
from tests.toolserver import tool_server


def test_writes_the_same_weights_with_the_null_logit_it_prints(tmp_path: Path) -> None:
    cfg, model = tiny.trained()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    AtomicCheckpointer(model, str(tmp_path)).save("start")
    words = ["--config-file", "config.yaml", "--weights", "start.pth", "--output", "made/calibrated.pth"]
    done = tool_server().tool("calibrate", *words, "TRACKER_HEADS.SCALE", "3.0", cwd=tmp_path)
    assert done.code == 0, done.err
    before, after = (torch.load(tmp_path / name, weights_only=True)["model"] for name in ("start.pth", "made/calibrated.pth"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"embedding_head.null_logit"}
    value = after["embedding_head.null_logit"].item()
    assert f"null logit {value:.3f} " in done.out and 0 < value < 3, "in units of SCALE times the cosine"
