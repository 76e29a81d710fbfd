"""Online and offline trackers (registered in Detectron2's TRACKER_HEADS_REGISTRY) and the finalising of tracks."""

from .base import OnlineTracker, build_tracker, select_instances
from .distance_tracker import DistanceTracker
from .embedding_tracker import EmbeddingTracker
from .finalize import FinishedTrack, TrackRecorder
from .iou_tracker import IoUTracker
from .iou_tracker_plus import IoUTrackerPlus
from .memory import TrackMemory
from .offline import OfflineTracker
from .seq_tracker import SeqTracker

__all__ = [
    "DistanceTracker",
    "EmbeddingTracker",
    "FinishedTrack",
    "IoUTracker",
    "IoUTrackerPlus",
    "OfflineTracker",
    "OnlineTracker",
    "SeqTracker",
    "TrackMemory",
    "TrackRecorder",
    "build_tracker",
    "select_instances",
]
