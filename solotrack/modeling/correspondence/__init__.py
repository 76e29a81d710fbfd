"""Correspondence of instances over unlabelled clips."""

from .cycle import cycle_loss
from .nodes import instance_nodes, point_nodes
from .video_branch import VideoBranch

__all__ = ["VideoBranch", "cycle_loss", "instance_nodes", "point_nodes"]
