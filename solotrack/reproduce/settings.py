"""Data and trainings behind the tables, in miniature and at full size. The configs are named here and nowhere else."""

from __future__ import annotations

from dataclasses import replace

from .definition import DataSet, Recipe, Scoring, Setting

__all__ = ["EMBEDDING", "FRAMES", "FULL", "QUICKSTART", "SYNTHETIC", "video_recipe"]

FRAMES = (2, 3, 4)  # in the cycle, P4.3
EMBEDDING = ("SOLO-Track", "SOLO-Track + cues")  # rows of compare_trackers that read the embedding
_WITH_DISTANCE = ("distance", "distance, no gate", *EMBEDDING)
_WITH_TRACKLETS = ("IoUTracker+", "SeqTracker", *EMBEDDING)

# ---- trainings

_NO_VIDEO = ("MODEL.SOLO_TRACK.VIDEO.ENABLED", "False", "SOLVER.CLIPS_PER_BATCH", "0")
_UNTRAINED = (  # a step that changes no weight
    *("SOLVER.MAX_ITER", "1", "SOLVER.BASE_LR", "0.0"),
    *("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"),  # the cosine divides by the rate
)
_ADAPTED = ("TTA.ENABLED", "True")
_PLUS = {  # beyond the paper, on top of two views and video, each alone and what helps at once: recipe -> its words
    "plus_copy_paste": ("INPUT.COPY_PASTE.PROB", "0.5"),
    "plus_queue": ("MODEL.SOLO_TRACK.EMB.QUEUE", "512"),
    "plus_loo_null": ("MODEL.SOLO_TRACK.EMB.LOO_NULL", "0.1"),
    "plus_temperature": ("MODEL.SOLO_TRACK.EMB.TEMPERATURE", "0.07"),
    "plus_color": ("INPUT.VIEWS.COLOR", "0.6"),
    "plus_frame_views": ("INPUT.CLIPS.VIEWS", "True"),
    "plus_pseudo": ("MODEL.SOLO_TRACK.VIDEO.PSEUDO_WEIGHT", "0.5"),
    "plus_copy_paste_pseudo": ("INPUT.COPY_PASTE.PROB", "0.5", "MODEL.SOLO_TRACK.VIDEO.PSEUDO_WEIGHT", "0.5"),
}


_FPN = ("MODEL.SOLO_TRACK.EMB.STAGE", "''", "MODEL.SOLO_TRACK.EMB.KERNEL_SIZE", "3")  # an embedding that sees all of so small an image


def _synthetic_recipes() -> dict[str, Recipe]:
    """Each is scored with the trackers that some table has on its detections; all seven take several times as long."""
    configs, images = "projects/solo_track/configs/synthetic", {"data": ("synthetic",), "trackers": EMBEDDING}
    recipes = {}
    for views, yamls, words in (("", "", ()), ("_two_view", "_two_view", ()), ("_fpn", "", _FPN)):
        start, video = f"ic_me{views}", f"{configs}/ic_me_video{yamls}.yaml"
        recipes[f"ic{views}"] = Recipe(f"{configs}/ic{yamls}.yaml", overrides=words, **images, hours=0.2)
        recipes[start] = replace(recipes[f"ic{views}"], config=f"{configs}/ic_me{yamls}.yaml", trackers=_WITH_DISTANCE)
        recipes[f"ic_me_longer{views}"] = Recipe(video, start, (*words, *_NO_VIDEO), **images, hours=0.1)
        for frames in FRAMES[:1] if words == _FPN else FRAMES:
            recipes[video_recipe(frames) + views] = Recipe(video, start, (*words, "INPUT.CLIPS.FRAMES", str(frames)), **images, hours=0.1)
    recipes[video_recipe(2)] = replace(recipes[video_recipe(2)], trackers=_WITH_TRACKLETS)
    video = f"{configs}/ic_me_video_two_view.yaml"
    for name, words in _PLUS.items():
        recipes[name] = Recipe(video, "ic_me_two_view", words, **images, hours=0.1)
    calibrated = (*_UNTRAINED, "TRACKER_HEADS.CALIBRATION.SOURCE", "clips")
    recipes["plus_clip_calibration"] = Recipe(video, "ic_me_video_two_view", calibrated, **images, hours=0.01)
    recipes["longer_clip_calibration"] = Recipe(video, "ic_me_longer_two_view", (*_NO_VIDEO, *calibrated), **images, hours=0.01)
    labelled = (
        "DATASETS.CUSTOM.VIDEOS",
        "[['synthetic_labelled', '{made}/synthetic_labelled/test.json', '{made}/synthetic_labelled/videos/test']]",
    )
    for name, trackers in (("masktrack_rcnn", _WITH_TRACKLETS), ("sipmask", EMBEDDING)):
        config = f"projects/baselines/configs/{name}_synthetic.yaml"
        recipes[name] = Recipe(config, "", labelled, ("synthetic_labelled",), trackers=trackers, shift_test=False, hours=0.3)
        recipes[f"{name}_untrained"] = replace(recipes[name], overrides=(*labelled, *_UNTRAINED), trackers=EMBEDDING, hours=0.01)
    return recipes


def _full_recipes() -> dict[str, Recipe]:
    """Hours: projects/solo_track/README.md and projects/baselines/README.md have the arithmetic."""
    configs, scores, backbone = "projects/solo_track/configs", "projects/solo_track/configs/ytvis", "weights/R-50.pth"
    video, clips = f"{configs}/solo_track_r50_video.yaml", (*_HALVES, "DATASETS.TRAIN_CLIPS", "['ytvis_learn']")
    image = {"data": ("coco",), "weights": backbone, "gpus": 8}
    recipes = {
        "solo": Recipe(
            f"{configs}/solo_r50_1x.yaml",
            **image,
            hours=72 / 8,
            score_config=f"{scores}/distance.yaml",
            trackers=("distance", "distance, no gate"),
            shift_test=False,
        ),
        "ic": Recipe(f"{configs}/solo_track_r50_1x_ic.yaml", **image, hours=76 / 8, score_config=f"{scores}/ic.yaml"),
        "ic_me": Recipe(f"{configs}/solo_track_r50_1x.yaml", **image, hours=76 / 8, score_config=f"{scores}/ic_me.yaml"),
        "ic_me_longer": Recipe(video, "ic_me", _NO_VIDEO, ("coco",), score_config=f"{scores}/ic_me_video.yaml", gpus=4, hours=8.5 / 4),
    }
    for frames, hours in ((2, 10.7), (3, 11.8), (4, 12.9)):
        recipes[video_recipe(frames)] = Recipe(
            video,
            "ic_me",
            (*clips, "INPUT.CLIPS.FRAMES", str(frames)),
            ("coco", "ytvis_split"),
            score_config=f"{scores}/ic_me_video.yaml",
            gpus=4,
            hours=hours / 4,
        )
    labelled = (*_HALVES, "DATASETS.TRAIN", "['ytvis_learn']", "DATASETS.VIDEO_CATEGORIES", "name20")
    for name, weights, hours in (("masktrack_rcnn", "mask_rcnn", 9.5), ("sipmask", "retinanet", 10.7)):
        recipes[name] = Recipe(
            f"projects/baselines/configs/{name}_r50.yaml",
            overrides=labelled,
            data=("ytvis_split",),
            weights=f"weights/{weights}_R_50_FPN_1x.pkl",
            shift_test=False,
            gpus=1,
            hours=hours,
        )
    return recipes


def video_recipe(frames: int) -> str:
    """Name of the training with so many frames in the cycle."""
    return "ic_me_video" if frames == 2 else f"ic_me_video_{frames}_frames"


# ---- settings

_HALVES = (  # of the labelled videos: to learn from, and held out
    "DATASETS.CUSTOM.VIDEOS",
    "[['ytvis_learn', '{made}/ytvis_split/learn.json', '{datasets}'],"
    " ['ytvis_held_out', '{made}/ytvis_split/held_out.json', '{datasets}']]",
)
_NO_IMAGES = ("--images", "0", "--val-images", "0", "--unlabelled-videos", "0")
_VIDEOS = ("--light", "0.35")  # stills do not show how an object looks in other light: what is left to learn from video
_TEST_VIDEOS = ("--videos", "200")  # on 40 the AP of one and the same model is up to 5.9 points off (METHOD 16, item 14)
_LABELLED = ("--videos", "200", "--frames", "10")  # as many frames as SOLO-Track has images; fewer videos are learned by heart
_STILLS = DataSet("synthetic data", ("{made}/synthetic/stats.json",), ("synthetic",), seed=0)
_SYNTHETIC_DATA = {
    "synthetic": replace(_STILLS, amounts=(*_VIDEOS, *_TEST_VIDEOS, "--unlabelled-videos", "120")),
    "synthetic_labelled": DataSet(
        "labelled synthetic videos",
        ("{made}/synthetic_labelled/stats.json",),
        ("synthetic", *_NO_IMAGES),
        seed=100,
        amounts=(*_VIDEOS, *_LABELLED),
    ),
}


def _synthetic_setting(data: dict[str, DataSet], recipes: dict[str, Recipe], folder: str = "") -> Setting:
    """Synthetic data, with trainings on them."""
    return Setting(
        "synthetic data",
        data,
        recipes,
        {
            "": Scoring(hours=0.05),
            "adapted": Scoring(_ADAPTED, EMBEDDING, hours=0.1),
            "memory": Scoring(("TRACKER_HEADS.MEMORY", "10"), EMBEDDING, hours=0.05),
        },
        videos="synthetic_test",
        images="synthetic_val",
        score_data=("synthetic",),
        folder=folder,
    )


SYNTHETIC = _synthetic_setting(_SYNTHETIC_DATA, _synthetic_recipes())
QUICKSTART = _synthetic_setting(
    {"synthetic": _STILLS},
    {
        name: Recipe(f"projects/quickstart/configs/ablation/{name}.yaml", data=("synthetic",), hours=0.2)
        for name in ("ic", "ic_me", "ic_one_view_control", "ic_two_view", "ic_me_two_view")
    },
    folder="ablation",
)
FULL = Setting(
    "COCO and YouTube-VIS 2019",
    {
        "coco": DataSet("COCO", ("{datasets}/coco/annotations/instances_train2017.json",)),
        "coco_val": DataSet("COCO", ("{datasets}/coco/annotations/instances_val2017.json",)),
        "ytvis": DataSet(
            "YouTube-VIS 2019",
            ("{datasets}/ytvis_2019/train.json", "{datasets}/ytvis_2019/annotations/instances_train_sub.json"),
        ),
        "ytvis_split": DataSet("YouTube-VIS 2019", ("{made}/ytvis_split/held_out.json",), ("ytvis-split",), needs=("ytvis",)),
    },
    _full_recipes(),
    {"": Scoring(hours=0.2), "adapted": Scoring(_ADAPTED, EMBEDDING, hours=0.5)},
    videos="ytvis_held_out",
    images="coco_2017_val_name20",
    score_data=("ytvis_split",),
    image_data=("coco_val",),
    score_overrides=_HALVES,
    gpus=1,
    folder="coco-ytvis",
    in_datasets=True,
)
