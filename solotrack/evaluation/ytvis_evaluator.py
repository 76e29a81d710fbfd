"""YouTube-VIS evaluation as a Detectron2 evaluator (METHOD 5.6, 8.2, 9.1)."""

from __future__ import annotations

import json
import logging
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from solotrack.files import atomic_write
from solotrack.ops.rle import rle_to_json

from .boxes import with_box_masks, with_box_truth
from .ytvis import YTVISResult, score_tracks, scored_videos
from .ytvis_format import load_json, read_ground_truth, read_predictions

__all__ = ["YTVISEvaluator"]

logger = logging.getLogger(__name__)


class YTVISEvaluator(DatasetEvaluator):
    """Gather tracks over all processes, write them for the data set's server, and score them where the annotations are at hand.

    Args:
        dataset_name: its metadata must have ``json_file``, the annotation file.
        output_dir: ``results.json`` and ``results.zip`` (what a server takes) are written here; nothing is written without it.
        category_ids: ids of the annotation file to score, all by default.
        video_subset: with ``category_ids``, score ``"any"`` video that has ground truth of these categories, or ``"all"`` videos.
        boxes: score the boxes of the masks in place of the masks, for a ground truth of boxes. What is written stays masks.

    Raises:
        ValueError: unknown ``video_subset``, or the data set has no annotation file.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        category_ids: Iterable[int] | None = None,
        video_subset: str = "any",
        boxes: bool = False,
    ) -> None:
        if video_subset not in ("any", "all"):
            raise ValueError(f"video_subset must be 'any' or 'all', not {video_subset!r}")
        self.json_file = MetadataCatalog.get(dataset_name).get("json_file")
        if not self.json_file:
            raise ValueError(f"the data set {dataset_name!r} has no json_file in its metadata; register it as a YouTube-VIS data set")
        self.dataset_name = dataset_name
        self.output_dir = Path(output_dir) if output_dir else None
        self.category_ids = None if category_ids is None else sorted(category_ids)
        self.video_subset = video_subset
        self.boxes = boxes
        self.reset()

    def reset(self) -> None:
        self._tracks: dict[int, list[dict[str, Any]]] = {}  # by video

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[list[dict[str, Any]]]) -> None:
        """Keep the tracks of some videos.

        Args:
            inputs: video dicts with ``video_id``.
            outputs: for each video its tracks, ``{"video_id", "category_id", "score", "segmentations": [RLE or None] * length}``.
        """
        for video, tracks in zip(inputs, outputs, strict=True):
            self._tracks.setdefault(video["video_id"], [_to_json(track) for track in tracks])

    def evaluate(self) -> OrderedDict:
        """Score everything processed so far.

        Returns:
            ``{"segm": {"AP": ..., "AR100": ..., "AP-<category>": ...}}`` in percent, nan where there is nothing to score. Empty in other
            than the main process, and where the annotation file has no annotations (then the zip is for the server).

        Raises:
            YTVISFormatError: the annotation file or the tracks are faulty.
        """
        parts = comm.gather(self._tracks, dst=0)
        if not comm.is_main_process():
            return OrderedDict()
        by_video: dict[int, list[dict[str, Any]]] = {}
        for part in parts:
            for video_id, tracks in part.items():
                by_video.setdefault(video_id, tracks)  # a sampler may give a video to two processes to even out their number
        # in the order of the ids, so that the result does not depend on the number of processes
        predictions = [track for video_id in sorted(by_video) for track in by_video[video_id]]
        if self.output_dir is not None:
            _write(predictions, self.output_dir)

        truth = read_ground_truth(load_json(self.json_file), self.json_file, require_annotations=False)
        tracks, warning = read_predictions(predictions, truth, f"tracks of {self.dataset_name}")
        if warning:
            logger.warning("%s", warning)
        if not truth.tracks:
            where = f"; upload {self.output_dir / 'results.zip'} to its server" if self.output_dir else ""
            logger.warning("%s has no annotations, so %s cannot be scored here%s", self.json_file, self.dataset_name, where)
            return OrderedDict()
        videos = scored_videos(truth, self.category_ids, self.video_subset)
        unseen = len(set(videos) - by_video.keys())
        if unseen:
            logger.warning("%d of the %d videos to score were not processed; their objects count as missed", unseen, len(videos))
        if self.boxes:
            truth, tracks = with_box_truth(truth), with_box_masks(tracks)
        result = score_tracks(truth, tracks, self.category_ids, videos)
        logger.info("YouTube-VIS results on %s%s, percent:\n%s", self.dataset_name, " by boxes" if self.boxes else "", result.summary())
        return OrderedDict(segm=_percent(result))


def _to_json(track: dict[str, Any]) -> dict[str, Any]:
    return {
        "video_id": int(track["video_id"]),
        "category_id": int(track["category_id"]),
        "score": float(track["score"]),
        "segmentations": [None if rle is None else rle_to_json(rle) for rle in track["segmentations"]],
    }


def _write(predictions: list[dict[str, Any]], folder: Path) -> None:
    content = json.dumps(predictions)
    with atomic_write(folder / "results.json") as file:
        file.write(content)
    with atomic_write(folder / "results.zip", "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("results.json", content)
    logger.info("%d tracks written to %s and results.zip", len(predictions), folder / "results.json")


def _percent(result: YTVISResult) -> dict[str, float]:
    scores = dict(result.stats)
    scores |= {f"AP-{name}": row["AP"] for name, row in result.per_category.items()}
    return {name: 100 * score if score >= 0 else float("nan") for name, score in scores.items()}
