"""Correspondence of instances over unlabelled clips."""

from .cycle import cycle_loss
from .nodes import instance_nodes, point_nodes
from .pseudo_identity import confident_links, pseudo_identity_loss, track_labels
from .video_branch import ClipLosses, VideoBranch

__all__ = [
    "ClipLosses",
    "VideoBranch",
    "confident_links",
    "cycle_loss",
    "instance_nodes",
    "point_nodes",
    "pseudo_identity_loss",
    "track_labels",
]
