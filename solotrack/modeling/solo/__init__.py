"""SOLO (v1): instance masks from grid cells."""

from .head import DecoupledSOLOHead, SOLOHead, Tower
from .inference import SOLOInference, embedding_cells
from .losses import category_loss, dice_loss, mask_loss
from .targets import GridTargets, assign_grid_targets, count_unassigned

__all__ = [
    "DecoupledSOLOHead",
    "GridTargets",
    "SOLOHead",
    "SOLOInference",
    "Tower",
    "assign_grid_targets",
    "category_loss",
    "count_unassigned",
    "dice_loss",
    "embedding_cells",
    "mask_loss",
]
