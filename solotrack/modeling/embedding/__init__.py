"""The embedding head and the losses that train it from labelled images."""

from .center_loss import center_loss
from .centers import InstanceCenters, instance_centers
from .comparison import Comparison, compare_centers
from .contrast_loss import contrast_loss
from .head import EmbeddingHead
from .infonce import info_nce_loss
from .instance_contrastive import InstanceContrastiveLoss
from .loo_null_loss import loo_null_loss
from .max_entropy import max_entropy_term
from .queue import CenterQueue

__all__ = [
    "CenterQueue",
    "Comparison",
    "EmbeddingHead",
    "InstanceCenters",
    "InstanceContrastiveLoss",
    "center_loss",
    "compare_centers",
    "contrast_loss",
    "info_nce_loss",
    "instance_centers",
    "loo_null_loss",
    "max_entropy_term",
]
