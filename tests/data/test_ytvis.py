from __future__ import annotations

import json
import os

import pytest

from solotrack.data.annotation_file import DatasetError
from solotrack.data.ytvis import load_ytvis


@pytest.fixture
def content() -> dict:
    return {
        "videos": [
            {"id": 5, "height": 8, "width": 10, "length": 3, "file_names": ["v5/0.jpg", "v5/1.jpg", "v5/2.jpg"]},
            {"id": 2, "height": 6, "width": 4, "length": 1, "file_names": ["v2/0.jpg"]},
        ],
        "categories": [{"id": 1, "name": "ant"}],
        "annotations": "never looked at",
    }


@pytest.fixture
def write(tmp_path):
    for name in ("v5/0.jpg", "v5/1.jpg", "v5/2.jpg", "v2/0.jpg"):
        path = tmp_path / "frames" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def _write(content: dict | str) -> str:
        path = tmp_path / "set.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return _write


def test_reads_videos_in_order_without_labels(write, content, tmp_path, monkeypatch):
    path = write(content)
    monkeypatch.chdir(tmp_path)
    videos = load_ytvis(path, "frames")  # a relative folder gives absolute paths
    assert [(v["video_id"], v["height"], v["width"], v["length"]) for v in videos] == [(5, 8, 10, 3), (2, 6, 4, 1)]
    assert videos[0]["file_names"] == [str(tmp_path / "frames" / "v5" / f"{i}.jpg") for i in range(3)]
    assert all("annotations" not in v for v in videos)
    for key in ("annotations", "categories"):
        del content[key]
        assert load_ytvis(write(content), str(tmp_path / "frames")) == videos


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["videos"][0].update(length=4), "video 5 has the length 4 but 3 file_names"),
        (lambda c: c["videos"][1].pop("file_names"), "video 2 has no file_names"),
        (lambda c: c["videos"][1].update(id=5), "video 5: this id occurs twice"),
        (lambda c: c["videos"][1].pop("width"), r"video number 1 \(from 0\) has no 'width'"),
        (lambda c: c.update(images=c.pop("videos")), "has no list 'videos' .*CUSTOM.IMAGES"),
        (lambda c: c.update(videos=None), "has no list 'videos'"),
        (lambda c: c["videos"].append(None), r"video number 2 \(from 0\) is null; it must be an object"),
        (lambda c: c["videos"][1].update(height="6"), r"video number 1 .* has text \('6'\) for 'height'; it must be a whole number"),
        (lambda c: c["videos"][1].update(height=-6), "video 2 is 4 x -6 pixels"),
        (lambda c: c["videos"][1].update(id="2"), r"video number 1 .* for 'id'; it must be a whole number"),
        (lambda c: c["videos"][1].update(file_names=[None]), "video 2 has file_names that are not a list of texts"),
        (lambda c: c["videos"][1].update(file_names="v2/0.jpg"), "video 2 has file_names that are not a list of texts"),
    ],
)
def test_faulty_content_is_named(write, content, tmp_path, change, message):
    change(content)
    with pytest.raises(DatasetError, match=message):
        load_ytvis(write(content), str(tmp_path / "frames"))


def test_truncated_json_names_file_and_byte(write, content, tmp_path):
    with pytest.raises(DatasetError, match=r"set\.json is not valid json: it breaks at byte 100 of 100"):
        load_ytvis(write(json.dumps(content)[:100]), str(tmp_path / "frames"))


def test_missing_folder_and_frames(write, content, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*elsewhere"):
        load_ytvis(write(content), str(tmp_path / "elsewhere"))
    os.remove(tmp_path / "frames" / "v5" / "2.jpg")
    with pytest.raises(FileNotFoundError, match=r"v5/2\.jpg, listed in .*set\.json"):
        load_ytvis(write(content), str(tmp_path / "frames"))


def test_reads_the_nuclei_videos(shared_dir):
    folder = shared_dir / "data" / "nuclei"
    if not folder.is_dir():
        pytest.skip("the nuclei videos are not on this machine")
    (labelled,) = load_ytvis(str(folder / "test_every8.json"), str(folder))
    assert labelled["length"] == 6 and (labelled["height"], labelled["width"]) == (512, 512)
    (unlabelled,) = load_ytvis(str(folder / "unlabelled.json"), str(folder))
    assert unlabelled["length"] == 92 and all(os.path.isfile(f) for f in unlabelled["file_names"])
