"""The tables: every row of the paper's Tables 1 to 3, in miniature and at full size, what goes beyond it, and the quickstart's ablation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from .definition import Cell, Column, Row, Setting, Table
from .settings import EMBEDDING, FULL, QUICKSTART, SYNTHETIC, video_recipe

__all__ = ["TABLES"]

# ---- what the paper has: AP, AP50, AP75, AR1, AR10 on YouTube-VIS 2019 val, 20 categories (METHOD 0b)

_DISTANCE = (23.9, 43.3, 21.5, 26.7, 37.3)
_IC = (28.4, 50.0, 30.4, 27.6, 34.4)
_IC_ME = (29.7, 52.8, 29.9, 30.7, 34.9)
_VIDEO = {2: (32.9, 54.4, 35.0, 34.1, 40.8), 3: (31.8, 52.4, 31.7, 32.2, 39.1), 4: (30.9, 51.6, 30.9, 31.7, 38.4)}
_MASKTRACK = (29.0, 47.5, 32.2, 28.7, 32.4)
_SIPMASK = (24.1, 42.0, 26.0, 26.2, 28.6)
_CUES = {
    "IoUTracker+": (29.4, 48.5, 30.6, 32.1, 34.2),
    "SeqTracker": (31.8, 52.2, 35.8, 32.2, 34.4),
    "MaskTrack R-CNN": (36.0, 58.4, 40.2, 35.4, 38.9),
    "SipMask": (37.7, 57.8, 38.0, 37.4, 40.3),
    "IC + ME": (34.1, 58.0, 37.9, 33.0, 39.2),
    "video": (37.4, 59.7, 39.1, 36.4, 43.8),
    "adaptation": (38.3, 61.1, 39.8, 36.9, 44.5),
}

# ---- columns


def _score(metric: str, tracker: str | None = None, header: str = "") -> Column:
    return Column(header or metric, lambda row, cell: cell.score(tracker or row.tracker, metric))


def _association(where: str, measure: str, header: str) -> Column:
    def value(row: Row, cell: Cell) -> float:
        if row.tracker in EMBEDDING:
            return cell.association(where, measure)
        nearest = measure == "match" and row.tracker == "distance, no gate"
        return cell.association(where, "distance") if nearest else float("nan")  # the others are not about true instances

    return Column(header, value, 3)


_APS = tuple(_score(metric) for metric in ("AP", "AP50", "AP75", "AR1", "AR10"))
_IDENTITIES = (_score("IDF1"), _score("HOTA"))
_ASSOCIATION = (
    _association("videos", "new_object_auc", "new-object AUC"),
    _association("videos", "match", "match, videos"),
    _association("shift", "match", "match, shift test"),
)
_ASSOCIATION_NOTES = (
    "New-object AUC: how well the largest similarity to any track tells new objects from known ones.",
    "Match: share of true instances whose nearest prototype (distance without gate: nearest centre) is their own,"
    " in consecutive frames and after each was moved elsewhere.",
)
_IDENTITY_NOTE = "IDF1, HOTA: of identities by the boxes of masks, all categories and every track alike (TrackEval)."
_MINIATURE_NOTES = (
    "Image losses as the paper writes them: the embedding reads res3 through 1x1 convolutions; the paper's reads FPN's levels, which in"
    " images of 128 pixels see everything.",
)
_FULL_NOTES = (
    "GPU hours are those of one seed.",
    "Ours: 300 of the 2,238 labelled training videos, held out (labels of val are not public), so comparable with one another only.",
)

# ---- Tables 1 to 3

_BLOCKS = {
    "": "Image losses as the paper writes them",
    "_two_view": "Two views of each image, its instances moved singly between them",
    "_fpn": "Image losses as the paper writes them, embedding of FPN's levels",
}


def _views(setting: Setting, among: Iterable[str]) -> list[str]:
    """The ways to see an image, names of ``_BLOCKS``, that the setting has trainings for."""
    return [views for views in among if f"ic{views}" in setting.recipes]


def _table1(setting: Setting, detector: str) -> Table:
    rows = []
    for views in _views(setting, _BLOCKS):
        block, linked = _BLOCKS[views], detector + (views if detector != "solo" else "")
        distance, free = "distance + category", "distance + category, no gate"
        rows += [
            Row(distance, linked, "distance", block=block, paper=_DISTANCE),
            Row(free, linked, "distance, no gate", block=block),
            Row("IC", f"ic{views}", block=block, paper=_IC, over=free),
            Row("IC + ME", f"ic_me{views}", block=block, paper=_IC_ME, over="IC"),
            Row("IC + ME + video", f"ic_me_video{views}", block=block, paper=_VIDEO[2], over="IC + ME"),
            Row("IC + ME, as many more steps without video", f"ic_me_longer{views}", block=block, over="IC + ME"),
        ]
    notes = (
        "gain: over the line above it, seed by seed (IC: over distance without gate; the last line: over IC + ME).",
        "No gate: however far an object moves.",
        _IDENTITY_NOTE,
        *_ASSOCIATION_NOTES,
    )
    if detector != "solo":
        notes = ("Distance lines: on the detections of IC + ME.", *notes)
    return Table("table1", "Table 1: what each part adds", setting, tuple(rows), (*_APS, *_IDENTITIES, *_ASSOCIATION), True, notes)


def _table2(setting: Setting) -> Table:
    rows = []
    for views in _views(setting, ("", "_two_view")):
        for frames, paper in _VIDEO.items():
            over = "" if frames == 2 else "2 frames"
            rows.append(Row(f"{frames} frames", video_recipe(frames) + views, block=_BLOCKS[views], paper=paper, over=over))
    notes = ("gain: over 2 frames, seed by seed.", _IDENTITY_NOTE)
    return Table("table2", "Table 2: frames in the cycle", setting, tuple(rows), (*_APS, *_IDENTITIES), notes=notes)


def _table3(setting: Setting) -> Table:
    rows = []
    for block, own, cues in (("No post-processing", "SOLO-Track", False), ("MaskTrack R-CNN's post-processing", "SOLO-Track + cues", True)):
        if cues:
            for label, recipe in (("MaskTrack R-CNN", "masktrack_rcnn"), ("SOLO-Track", "ic_me_video")):
                for tracker in ("IoUTracker+", "SeqTracker"):
                    paper = _CUES[tracker] if recipe == "masktrack_rcnn" else ()
                    rows.append(Row(f"{tracker}, {label}'s detections", recipe, tracker, block=block, paper=paper))
        for label, recipe, paper in (("MaskTrack R-CNN", "masktrack_rcnn", _MASKTRACK), ("SipMask", "sipmask", _SIPMASK)):
            untrained = f"{label}, untrained"
            if f"{recipe}_untrained" in setting.recipes:
                rows.append(Row(untrained, f"{recipe}_untrained", own, block=block))
            over = untrained if f"{recipe}_untrained" in setting.recipes else ""
            rows.append(Row(label, recipe, own, block=block, paper=_CUES[label] if cues else paper, over=over))
        for views in _views(setting, ("", "_two_view")):
            name = "SOLO-Track" + (", two views" if views else "")
            video = f"{name} + video"
            papers = [_CUES[key] for key in ("IC + ME", "video", "adaptation")] if cues else [_IC_ME, _VIDEO[2], ()]
            rows += [
                Row(name, f"ic_me{views}", own, block=block, paper=papers[0]),
                Row(video, f"ic_me_video{views}", own, block=block, paper=papers[1], over=name),
                Row(f"{video} + adaptation", f"ic_me_video{views}", own, "adapted", block, papers[2], video),
            ]
    notes = (
        "SOLO-Track: trained with IC + ME. MaskTrack R-CNN and SipMask learn from labelled videos.",
        "gain: over the line above it, seed by seed.",
        _IDENTITY_NOTE,
    )
    return Table("table3", "Table 3: comparison with other systems", setting, tuple(rows), (*_APS, *_IDENTITIES), notes=notes)


def _paper_tables(setting: Setting, detector: str) -> tuple[Table, ...]:
    return _table1(setting, detector), _table2(setting), _table3(setting)


# ---- beyond the paper

_PLUS_ROWS = (
    ("+ copy-paste of instances between images", "plus_copy_paste"),
    ("+ queue of 512 negatives", "plus_queue"),
    ("+ leave-one-out null", "plus_loo_null"),
    ("+ temperature 0.07 in place of 0.1", "plus_temperature"),
    ("+ twice the colour jitter of views", "plus_color"),
    ("+ a view for each frame of a clip", "plus_frame_views"),
    ("+ null logit calibrated on clips", "plus_clip_calibration"),
    ("+ pseudo identities from cycle-consistent links", "plus_pseudo"),
    ("+ copy-paste and pseudo identities at once", "plus_copy_paste_pseudo"),
)


def _plus(setting: Setting) -> Table:
    base, recipe = "IC + ME + video, two views", f"{video_recipe(2)}_two_view"
    longer = "IC + ME, two views, as many more steps without video"
    rows = (
        Row(base, recipe),
        Row("+ memory of 10 embeddings a track", recipe, scoring="memory", over=base),
        *(Row(label, name, over=base) for label, name in _PLUS_ROWS),
        Row(longer, "ic_me_longer_two_view", over=base),
        Row("the same + null logit calibrated on clips", "longer_clip_calibration", over=longer),
    )
    notes = (
        "gain: over the first line (the last: over the one above it), seed by seed.",
        "Each line changes one knob, or two at once where it says so, in the video stage or in tracking alone.",
        _IDENTITY_NOTE,
    )
    return Table("plus", "Beyond the paper: one knob at a time", setting, rows, (*_APS, *_IDENTITIES, *_ASSOCIATION[:2]), True, notes)


# ---- the quickstart's ablation of the image losses

_ABLATION_ROWS = (
    ("IC, literal", "ic"),
    ("IC + ME, literal", "ic_me"),
    ("IC, one view, cosine and batch (control)", "ic_one_view_control"),
    ("IC, two views", "ic_two_view"),
    ("IC + ME, two views", "ic_me_two_view"),
)


def _ablation() -> Table:
    baselines = ("distance", "distance, no gate")

    def gain(row: Row, cell: Cell) -> float:
        return cell.score(row.tracker, "AP") - float(np.max([cell.score(tracker, "AP") for tracker in baselines]))  # NaN without both

    columns = (
        *(_score("AP", tracker, f"AP {tracker}") for tracker in (*baselines, "IoU")),
        _score("AP", header="AP embedding"),
        _score("AP", "SOLO-Track + cues", "AP + cues"),
        Column("gain over distance", gain),
        _score("AP50"),
        _score("AR10"),
        *_ASSOCIATION,
        _association("shift", "distance", "nearest centre, shift test"),
    )
    rows = tuple(Row(label, name) for label, name in _ABLATION_ROWS)
    notes = (
        "Gain over distance: the embedding's AP over the better of the two distance columns, seed by seed.",
        *_ASSOCIATION_NOTES,
    )
    return Table("ablation", "Image losses on synthetic data", QUICKSTART, rows, columns, True, notes)


TABLES: dict[tuple[str, str], Table] = {
    **{("synthetic", t.name): replace(t, notes=(*t.notes, *_MINIATURE_NOTES)) for t in _paper_tables(SYNTHETIC, "ic_me")},
    **{("synthetic", t.name): t for t in (_ablation(), _plus(SYNTHETIC))},
    **{("coco-ytvis", t.name): replace(t, notes=(*t.notes, *_FULL_NOTES)) for t in _paper_tables(FULL, "solo")},
}
