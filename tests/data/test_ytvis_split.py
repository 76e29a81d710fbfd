"""Held-out videos: none is in both halves, nothing is lost, and frames are found from the new folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from solotrack.data.annotation_file import DatasetError
from solotrack.data.ytvis import load_ytvis
from solotrack.data.ytvis_split import split_ytvis

COUNT = 12


@pytest.fixture
def json_file(tmp_path: Path) -> Path:
    """Videos 1 to 12; every third shows an owl alone, which COCO does not have, the others a dog, and video 5 a hand besides."""
    videos = []
    for number in range(1, COUNT + 1):
        frame = tmp_path / "data/ytvis/train/JPEGImages" / f"v{number}" / "0.jpg"
        frame.parent.mkdir(parents=True)
        frame.touch()
        videos.append({"id": number, "height": 4, "width": 6, "length": 1, "file_names": [f"v{number}/0.jpg"]})
    categories = [{"id": 8, "name": "dog"}, {"id": 26, "name": "owl"}, {"id": 11, "name": "hand"}]
    shown = [(number, 26 if number % 3 == 0 else 8) for number in range(1, COUNT + 1)] + [(5, 11)]
    annotations = [{"id": i, "video_id": video, "category_id": category} for i, (video, category) in enumerate(shown, 1)]
    path = tmp_path / "data/ytvis/train.json"
    path.write_text(json.dumps({"info": {"x": 1}, "videos": videos, "categories": categories, "annotations": annotations}))
    return path


def split(json_file: Path, output: Path, **options: int) -> dict[str, dict]:
    counts = split_ytvis(json_file, json_file.parent / "train/JPEGImages", output, json_file.parent.parent, **{"held_out": 3, **options})
    parts = {name: json.loads((output / f"{name}.json").read_text()) for name in ("learn", "held_out")}
    assert counts == tuple(len(part["videos"]) for part in parts.values())
    return parts


def test_halves(json_file: Path, tmp_path: Path) -> None:
    parts = split(json_file, tmp_path / "new")
    ids = {name: [video["id"] for video in part["videos"]] for name, part in parts.items()}
    assert len(ids["held_out"]) == 3 and sorted(ids["learn"] + ids["held_out"]) == list(range(1, COUNT + 1))
    assert all(number % 3 for number in ids["held_out"]), "only videos that will be scored are held out"
    whole = json.loads(json_file.read_text())
    assert sum(len(part["annotations"]) for part in parts.values()) == len(whole["annotations"])
    for name, part in parts.items():
        assert {annotation["video_id"] for annotation in part["annotations"]} == set(ids[name])
        assert part["categories"] == whole["categories"] and part["info"] == whole["info"]
        assert all(video["file_names"] == [f"ytvis/train/JPEGImages/v{video['id']}/0.jpg"] for video in part["videos"])
        assert len(load_ytvis(str(tmp_path / "new" / f"{name}.json"), str(tmp_path / "data"))) == len(ids[name])


def test_the_seed_decides(json_file: Path, tmp_path: Path) -> None:
    first, again, other = (split(json_file, tmp_path / str(n), seed=seed) for n, seed in enumerate((0, 0, 1)))
    assert first == again != other
    data = json.loads(json_file.read_text())
    data["videos"].reverse()
    data["annotations"].reverse()
    json_file.write_text(json.dumps(data))
    reordered = split(json_file, tmp_path / "reordered")
    assert {v["id"] for v in reordered["held_out"]["videos"]} == {v["id"] for v in first["held_out"]["videos"]}


def test_too_many(json_file: Path, tmp_path: Path) -> None:
    for number in (0, 8):
        with pytest.raises(DatasetError, match=rf"train\.json has 8 videos with objects of name20; from 1 to 7 .* not {number}\."):
            split(json_file, tmp_path / "new", held_out=number)
    assert not (tmp_path / "new").exists()
