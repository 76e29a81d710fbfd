"""SoloTrack: learn to track instances from labelled images. Importing it registers its models, trackers and data sets with Detectron2."""

import os
import warnings

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "SoloTrack needs Detectron2, which has no release on PyPI. README.md, 'Install', says how: `make env`, or upstream's source."
    ) from error

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)  # fvcore's and Detectron2's, on being imported
    from . import tracking  # noqa: F401
    from .data.catalog import register_all
    from .modeling import backbone  # noqa: F401
    from .modeling.meta_arch import masktrack_rcnn, sipmask_vis, solo_track  # noqa: F401

__all__ = ["VideoPredictor"]

register_all(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def __getattr__(name: str):
    if name == "VideoPredictor":  # loaded when asked for: it brings in everything
        from .engine.predictor import VideoPredictor

        return VideoPredictor
    raise AttributeError(f"module 'solotrack' has no attribute {name!r}")
