"""The twelve numbers of youtubevos/cocoapi's ytvoseval, digit for digit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from solotrack.evaluation.ytvis import evaluate_ytvis
from solotrack.evaluation.ytvis_format import load_json


@pytest.mark.parametrize("case", ["few", "many", "long"])
def test_scores_of_the_official_evaluator(shared_dir: Path, case: str):
    folder = shared_dir / "parity" / "ytvis" / case
    result = evaluate_ytvis(load_json(folder / "gt.json"), load_json(folder / "results.json"), strict=True)
    official = json.loads((folder / "official.json").read_text())["stats"]
    assert list(result.stats) == list(official)
    assert result.stats == pytest.approx(official, abs=1e-9, rel=0)
