from __future__ import annotations

from solotrack.config import classes_key, load_config, num_classes, trains_on_videos

COMMON = ["MODEL.SOLO.NUM_CLASSES", "3", "MODEL.ROI_HEADS.NUM_CLASSES", "7", "MODEL.SIPMASK.NUM_CLASSES", "9"]


def test_what_follows_from_the_meta_architecture() -> None:
    solo = load_config("", COMMON)
    assert (num_classes(solo), classes_key(solo), trains_on_videos(solo)) == (3, "MODEL.SOLO.NUM_CLASSES", False)
    names = ["MODEL.RPN.IN_FEATURES", "['p2']", "MODEL.ROI_HEADS.IN_FEATURES", "['p2']"]
    masktrack = load_config("", [*COMMON, *names, "MODEL.META_ARCHITECTURE", "MaskTrackRCNN"])
    assert (num_classes(masktrack), classes_key(masktrack), trains_on_videos(masktrack)) == (7, "MODEL.ROI_HEADS.NUM_CLASSES", True)
    sipmask = load_config("", [*COMMON, "MODEL.META_ARCHITECTURE", "SipMaskVIS"])
    assert (num_classes(sipmask), classes_key(sipmask), trains_on_videos(sipmask)) == (9, "MODEL.SIPMASK.NUM_CLASSES", True)
