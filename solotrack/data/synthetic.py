"""Synthetic data in the real formats: labelled images (COCO), labelled and unlabelled videos (YouTube-VIS).

Layout of the folder that ``write_synthetic`` makes::

    train/*.jpg  train.json              labelled images, COCO instances
    val/*.jpg    val.json
    videos/test/<video>/*.jpg            test.json        YouTube-VIS with annotations
    videos/unlabelled/<video>/*.jpg      unlabelled.json  the same without annotations
    stats.json                           how many objects, and how hard the test videos are to track
    synthetic.json                       the parameters; written last

File names in the json files are relative to train, val, videos/test and videos/unlabelled. Every image and every video is drawn from
a seed of its own (the data set's seed, the split, the index), so its bytes depend neither on the number of workers nor on how many
others there are.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_api
from tqdm import tqdm

from ..ops.rle import rle_areas, rle_to_json
from .annotation_file import DatasetError
from .synthetic_motion import camera_path, draw_cast, draw_places, draw_trajectories
from .synthetic_objects import CATEGORIES
from .synthetic_scene import apply_look, draw_background, draw_light, draw_look, render_scene
from .synthetic_stats import video_difficulty

__all__ = ["SyntheticParameters", "write_synthetic"]

STAMP = "synthetic.json"
_GENERATOR = 1  # raise when the same seed makes other bytes
_SPLITS = {"train": 0, "val": 1, "test": 2, "unlabelled": 3}  # part of the seeds: never renumber
_IMAGE_QUALITY = 92
_MIN_AREA = 20  # pixels; an object with less in sight is absent
_MIN_VISIBLE = 0.2  # share of an object in a labelled image; one with less is taken out of the scene


@dataclass(frozen=True)
class SyntheticParameters:
    """Everything that decides the bytes of a synthetic data set; see :func:`write_synthetic`."""

    seed: int
    images: int
    val_images: int
    videos: int
    unlabelled_videos: int
    frames: int
    size: int
    aspect: float
    speed: float
    shift: float
    light: float

    def __post_init__(self) -> None:
        limits = {"frames": (2, np.inf), "size": (48, 1024), "aspect": (0.5, 2), "speed": (0.05, 3), "shift": (0, 2), "light": (0, 2)}
        for name, value in asdict(self).items():
            low, high = limits.get(name, (0, np.inf))
            if not low <= value <= high:
                wanted = f"{low} or more" if high == np.inf else f"from {low} to {high}"
                raise DatasetError(f"synthetic data: {name} must be {wanted}; got {value}")
        if not any(self._counts):
            raise DatasetError("synthetic data: images, val_images, videos and unlabelled_videos are all 0: nothing to write")

    @property
    def _counts(self) -> tuple[int, int, int, int]:
        return self.images, self.val_images, self.videos, self.unlabelled_videos

    def items(self) -> list[tuple[str, int]]:
        """(split, index) of every image and video."""
        return [(split, index) for split, count in zip(_SPLITS, self._counts, strict=True) for index in range(count)]

    @property
    def height(self) -> int:
        return self.size

    @property
    def width(self) -> int:
        return round(self.size * self.aspect)


def write_synthetic(
    output: str | Path,
    seed: int,
    *,
    images: int = 2000,
    val_images: int = 100,
    videos: int = 40,
    unlabelled_videos: int = 40,
    frames: int = 20,
    size: int = 128,
    aspect: float = 1.0,
    speed: float = 0.8,
    shift: float = 0.6,
    light: float = 0.0,
    workers: int = 1,
    progress: bool = False,
    overwrite: bool = False,
) -> bool:
    """Write a synthetic data set, or find that it is there already.

    The data are drawn in a folder beside ``output``, which takes its final name when everything is written; a run that was stopped
    leaves nothing under that name (one that was killed leaves a folder ``<output>.partial-...``, which may be deleted).

    Args:
        output: folder to make.
        seed: 0 or more; the same seed gives the same bytes.
        images, val_images: labelled images.
        videos, unlabelled_videos: videos with and without annotations.
        frames: frames a video, 2 or more.
        size: height of images and frames in pixels.
        aspect: width / height.
        speed: factor on the motion, at most 3; at 1, linking objects to the nearest centre is right a little more often than not.
        shift: how far the videos' look (exposure, white balance, blur, noise, background, JPEG quality) is from that of the images;
            0 = not at all, at most 2.
        light: how uneven the light in the videos is, in stops (standard deviation over the scene), at most 2. It is coloured and stays
            where it is, so an object changes its look as it moves, as it never does in the images.
        workers: processes; the bytes do not depend on it. With more than one, a script needs its ``if __name__ == "__main__"``.
        progress: show a progress bar.
        overwrite: replace synthetic data that were made with other parameters.

    Returns:
        True if the data were written, False if ``output`` held them already.

    Raises:
        DatasetError: a parameter is out of range.
        FileExistsError: ``output`` holds something else.
    """
    parameters = SyntheticParameters(seed, images, val_images, videos, unlabelled_videos, frames, size, aspect, speed, shift, light)
    if workers < 1:
        raise DatasetError(f"synthetic data: workers must be 1 or more; got {workers}")
    output = Path(output).resolve()
    stamp = {"generator": _GENERATOR, **asdict(parameters)}
    if _is_finished(output, stamp, overwrite):
        return False
    folder = output.with_name(f"{output.name}.partial-{socket.gethostname()}-{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        for split in dict.fromkeys(split for split, _ in parameters.items()):
            (folder / _media_folder(split)).mkdir(parents=True)
        records = _write_media(folder, parameters, workers, progress)
        _write_annotations(folder, parameters, records)
        _write_json(folder / STAMP, stamp)
        if _is_finished(output, stamp, overwrite):  # another process was faster
            return False
        _publish(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return True


def _is_finished(output: Path, stamp: dict[str, Any], overwrite: bool) -> bool:
    """True if ``output`` holds these data; False if it is free to be written."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        found = {"light": 0.0} | json.loads((output / STAMP).read_text())  # data older than the parameter are without it
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        raise FileExistsError(
            f"{output} exists and holds no synthetic data (no {STAMP} in it): name another folder or remove this one"
        ) from None
    if found == stamp:
        return True
    if not overwrite:
        changes = ", ".join(f"{key} {found.get(key)} -> {value}" for key, value in stamp.items() if found.get(key) != value)
        raise FileExistsError(
            f"{output} holds synthetic data with other parameters ({changes}): name another folder or ask to overwrite it"
        )
    return False


def _publish(folder: Path, output: Path) -> None:
    """Give ``folder`` its final name; what bore that name goes only when it is done."""
    old = folder.with_name(f"{folder.name}.replaced")
    if output.exists():
        output.rename(old)
    folder.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def _write_media(folder: Path, parameters: SyntheticParameters, workers: int, progress: bool) -> dict[str, list[dict[str, Any]]]:
    """Draw every image and video; returns the records of each split in order."""
    items = parameters.items()
    write = partial(_write_item, folder, parameters)
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in _SPLITS}

    def collect(results: Iterable[dict[str, Any]]) -> None:
        for (split, _), record in zip(items, tqdm(results, "synthetic data", len(items), unit="item", disable=not progress), strict=True):
            records[split].append(record)

    if workers == 1:
        collect(map(write, items))
    else:
        with ProcessPoolExecutor(min(workers, len(items)), _process_context(), cv2.setNumThreads, (1,)) as pool:
            collect(pool.map(write, items, chunksize=max(1, min(16, len(items) // (4 * workers)))))
    return records


def _process_context() -> multiprocessing.context.BaseContext:
    """Fresh processes: a plain fork could wait for ever on threads that OpenCV started before it."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once, not once a worker
    return context


def _write_item(folder: Path, parameters: SyntheticParameters, item: tuple[str, int]) -> dict[str, Any]:
    split, index = item
    rng = np.random.default_rng(np.random.SeedSequence(parameters.seed, spawn_key=(_SPLITS[split], index)))
    write = _write_image if split in ("train", "val") else _write_video
    return write(rng, folder / _media_folder(split), index, parameters)


def _write_image(rng: np.random.Generator, folder: Path, index: int, parameters: SyntheticParameters) -> dict[str, Any]:
    """Draw a labelled image; returns its COCO record with its annotations, ids left out, under "objects"."""
    height, width = parameters.height, parameters.width
    objects = draw_cast(rng, min(height, width), (3, 8), paired=False)
    poses = draw_places(rng, objects, height, width)
    background = draw_background(rng, height, width)
    while True:
        image, masks, _ = render_scene(background, objects, poses)
        areas = masks.sum(axis=(1, 2))
        # Taking one out may uncover another, so only the least visible goes at a time.
        shares = np.where(areas < _MIN_AREA, 0.0, areas / [item.area for item in objects])
        if shares.min(initial=1.0) >= _MIN_VISIBLE:
            break
        worst = int(shares.argmin())
        objects, poses = objects[:worst] + objects[worst + 1 :], np.delete(poses, worst, axis=0)
    name = f"{index + 1:06d}.jpg"
    _write_jpeg(folder / name, image, _IMAGE_QUALITY)
    labels = [
        {"category_id": item.category + 1, "iscrowd": 0, "segmentation": rle, "area": area, "bbox": box}
        for item, (rle, area, box) in zip(objects, _encode(masks), strict=True)
    ]
    return {"id": index + 1, "file_name": name, "height": height, "width": width, "objects": labels}


def _write_video(rng: np.random.Generator, folder: Path, index: int, parameters: SyntheticParameters) -> dict[str, Any]:
    """Draw a video; returns its YouTube-VIS record with its annotations, ids left out, under "objects"."""
    height, width, frames, shift = parameters.height, parameters.width, parameters.frames, parameters.shift
    objects = draw_cast(rng, min(height, width), (4, 8), paired=True)
    poses, on_stage = draw_trajectories(rng, np.array([item.extent for item in objects]), frames, height, width, parameters.speed)
    reach = max(1, round(0.06 * parameters.size))
    background = draw_background(rng, height + 2 * reach, width + 2 * reach, weave=min(1.0, shift))
    offsets = camera_path(rng, frames, reach)
    look = draw_look(rng, frames, parameters.size / 128, shift)
    light = draw_light(rng.spawn(1)[0], height, width, parameters.light)

    video = f"{index + 1:04d}"
    (folder / video).mkdir()
    names = [f"{video}/{t:05d}.jpg" for t in range(frames)]
    tracks = [
        {"category_id": item.category + 1, "iscrowd": 0, "height": height, "width": width, "length": frames}
        | {key: [None] * frames for key in ("segmentations", "areas", "bboxes", "occlusions")}
        for item in objects
    ]
    for t, name in enumerate(names):
        there = np.flatnonzero(on_stage[t])
        top, left = offsets[t]
        scene = background[top : top + height, left : left + width]
        image, masks, whole = render_scene(scene, [objects[i] for i in there], poses[t, there])
        _write_jpeg(folder / name, apply_look(image * light, look, t, rng), look.jpeg_quality)
        areas, whole_areas = masks.sum(axis=(1, 2)), whole.sum(axis=(1, 2))
        seen = areas >= _MIN_AREA
        shares = areas[seen] / whole_areas[seen]
        for i, (rle, area, box), share in zip(there[seen], _encode(masks[seen]), shares, strict=True):
            tracks[i]["segmentations"][t], tracks[i]["areas"][t], tracks[i]["bboxes"][t] = rle, area, box
            tracks[i]["occlusions"][t] = round(1 - float(share), 3)
    lasting = [track for track in tracks if frames - track["areas"].count(None) >= 2]
    return {"id": index + 1, "file_names": names, "height": height, "width": width, "length": frames, "objects": lasting}


def _write_annotations(folder: Path, parameters: SyntheticParameters, records: dict[str, list[dict[str, Any]]]) -> None:
    info = {"description": "SoloTrack synthetic data", "version": str(_GENERATOR), "seed": parameters.seed}
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CATEGORIES)]
    stats: dict[str, Any] = {}
    for split, found in records.items():
        if not found:
            continue
        kind, owner = ("images", "image_id") if split in ("train", "val") else ("videos", "video_id")
        media = [{key: value for key, value in record.items() if key != "objects"} for record in found]
        content = {"info": info, kind: media, "categories": categories}
        if split != "unlabelled":
            objects = [{owner: record["id"], **item} for record in found for item in record["objects"]]
            content["annotations"] = [{"id": number, **item} for number, item in enumerate(objects, start=1)]
            stats[split] = {kind: len(media), "objects": len(objects)}
        if split == "test":
            stats[split] |= {"frames": len(media) * parameters.frames, **video_difficulty(content["annotations"])}
        _write_json(folder / f"{split}.json", content)
    _write_json(folder / "stats.json", stats, indent=2)


def _media_folder(split: str) -> str:
    """Folder of a split's images or videos inside the data set."""
    return split if split in ("train", "val") else f"videos/{split}"


def _encode(masks: np.ndarray) -> list[tuple[dict[str, Any], float, list[float]]]:
    """Compressed RLE, area and xywh box of each of (N, H, W) bool masks."""
    if len(masks) == 0:
        return []
    # Straight from the arrays: a detour over tensors costs more than the encoding, in threads.
    rles = [rle_to_json(rle) for rle in mask_api.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))]
    boxes = mask_api.toBbox(rles).tolist()
    return list(zip(rles, rle_areas(rles).astype(float).tolist(), boxes, strict=True))


def _write_jpeg(path: Path, image: np.ndarray, quality: int) -> None:
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    path.write_bytes(encoded.tobytes())


def _write_json(path: Path, content: Any, indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent, separators=None if indent else (",", ":")) + "\n")
