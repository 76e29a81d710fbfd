"""Labelled frames: YouTube-VIS json with annotations -> a record for each frame. For fully supervised baselines alone."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from .annotation_file import DatasetError, class_ids, read_annotation_file, require_keys, sorted_categories
from .coco import check_runs, clean_segmentation
from .ytvis import check_frames_exist, read_videos

__all__ = ["load_labelled_frames"]

logger = logging.getLogger(__name__)


def load_labelled_frames(json_file: str, frame_root: str) -> list[dict[str, Any]]:
    """Read every frame that shows an object, with its objects.

    Args:
        json_file: YouTube-VIS json with annotations (METHOD 8.1); ``segmentations`` holds, for each frame, null, polygons, or compressed
            or uncompressed RLE.
        frame_root: folder that the frames' names are relative to.

    Returns:
        Detectron2's standard dicts, video by video in the file's order, frames in theirs: file_name, video_id, frame (position in the
        video, from 0), height, width, annotations [{id (the track, equal in all frames of a video), iscrowd, category_id (the class,
        0 .. C - 1 in the order of the categories' ids), segmentation}]. Frames that show crowds only are left out.

    Raises:
        FileNotFoundError: the json, the folder, or one of the first or last frames of a video is missing.
        DatasetError: the json is broken, has no annotations, or one of them does not fit its video or has no category.
    """
    data = read_annotation_file(json_file, required=("videos", "annotations"))
    videos = read_videos(data, json_file, frame_root)
    classes = class_ids(sorted_categories(data, json_file))
    tracks: dict[int, list[dict[str, Any]]] = defaultdict(list)  # video id -> its annotations
    known, seen = {video["video_id"] for video in videos}, set()
    for number, annotation in enumerate(data["annotations"]):
        keys = {"id": int, "video_id": int, "category_id": int, "segmentations": list}
        require_keys(annotation, keys, f"{json_file}: annotation number {number} (from 0)")
        where = f"{json_file}: annotation {annotation['id']}"
        if annotation["id"] in seen:
            raise DatasetError(f"{where}: this id occurs twice; give each annotation its own.")
        if annotation["video_id"] not in known:
            raise DatasetError(f"{where} belongs to video {annotation['video_id']}, which the file does not have; correct or remove it.")
        if annotation["category_id"] not in classes:
            raise DatasetError(
                f"{where} has the category_id {annotation['category_id']}, which is not among the file's categories {sorted(classes)}; "
                "add the category or correct the annotation."
            )
        seen.add(annotation["id"])
        tracks[annotation["video_id"]].append(annotation)

    records, unmeasured = [], []
    for video in videos:
        frames = [[] for _ in range(video["length"])]
        for track in tracks[video["video_id"]]:
            where = f"{json_file}: annotation {track['id']}"
            if len(track["segmentations"]) != video["length"]:
                raise DatasetError(
                    f"{where} has {len(track['segmentations'])} segmentations but video {video['video_id']} has {video['length']} frames; "
                    "give one for each, null where the object is absent."
                )
            for index, segmentation in enumerate(track["segmentations"]):
                read = _read(track, segmentation, classes, video, f"{where}, frame {index},")
                if read is not None:
                    frames[index].append(read)
                    if isinstance(read["segmentation"], dict) and isinstance(read["segmentation"]["counts"], str):
                        unmeasured.append((read, f"{where}, frame {index},"))
        for index, shown in enumerate(frames):
            if any(not annotation["iscrowd"] for annotation in shown):
                record = {"file_name": video["file_names"][index], "video_id": video["video_id"], "frame": index}
                records.append(record | {"height": video["height"], "width": video["width"], "annotations": shown})
    check_runs(unmeasured)
    if not records:
        raise DatasetError(f"{json_file} has no frame with an object; videos to learn from need annotations.")
    check_frames_exist(videos, json_file, frame_root)
    logger.info(f"{json_file}: {len(videos)} videos, {len(seen)} objects, {len(records)} frames that show one")
    return records


def _read(
    track: Mapping[str, Any], segmentation: Any, classes: Mapping[int, int], video: Mapping[str, Any], where: str
) -> dict[str, Any] | None:
    """The annotation of one frame, None where the object is absent."""
    mask = clean_segmentation(segmentation, video["height"], video["width"], where)
    if mask is None:
        return None
    crowd = int(bool(track.get("iscrowd", 0)))
    return {"id": track["id"], "iscrowd": crowd, "category_id": classes[track["category_id"]], "segmentation": mask}
