"""InfoNCE over cells, the form the paper starts from and leaves for center and contrast losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from solotrack.ops.similarity import pairwise_similarity

from .centers import mean_over_groups
from .comparison import MASKED_LOGIT

__all__ = ["info_nce_loss"]


def info_nce_loss(
    features: torch.Tensor,
    images: torch.Tensor,
    instances: torch.Tensor,
    *,
    num_images: int,
    metric: str = "dot",
    scale: float = 1.0,
) -> torch.Tensor:
    """Cells of an instance are more similar to one another than to cells of the image's other instances (paper eq 1, METHOD 2.9).

        L_pq = -log ( exp(f_p·f_q) / (exp(f_p·f_q) + Σ_{k in other instances} exp(f_k·f_q)) ),   p ≠ q of one instance

    The positive is in the denominator, which eq (1) omits: the loss is then a proper -log probability. Where the paper samples one p for a
    query cell q, this is the mean over all p. Then mean over the query cells of an image (large instances weigh more: the
    paper's reason to leave this form) and over all images with an instance. Cells that are their instance's only one have no
    positive and are negatives alone.

    Args:
        features: (P, D) embeddings of the cells that belong to an instance.
        images: (P,) long, image of each cell; with two views the picture, so that cells of both views are compared.
        instances: (P,) long >= 0, instance of each cell within the image or picture.
        num_images: number of images or pictures, those without cells included.
        metric, scale: see ``pairwise_similarity``.

    Returns:
        Scalar float32; a zero with a graph where no image has an instance.
    """
    # Cells side by side, image by image: (images, cells of the fullest image, D), so that no pair across images is computed.
    counts = torch.bincount(images, minlength=num_images)
    width = max(1, int(counts.max()))
    order = images.argsort(stable=True)
    images = images[order]
    slots = torch.arange(len(images), device=images.device) - (counts.cumsum(0) - counts)[images]
    places = images * width + slots
    padded = features.float().new_zeros(num_images * width, features.shape[1]).index_copy(0, places, features[order].float())
    ids = instances.new_full((num_images * width,), -1).index_copy(0, places, instances[order])
    padded, ids = padded.view(num_images, width, -1), ids.view(num_images, width)

    logits = pairwise_similarity(padded, padded, metric, scale)  # (images, q, p)
    real = ids >= 0
    pair = real[:, :, None] & real[:, None, :]
    same = ids[:, :, None] == ids[:, None, :]
    itself = torch.eye(width, dtype=torch.bool, device=ids.device)
    positives = pair & same & ~itself
    negatives = logits.masked_fill(~(pair & ~same), MASKED_LOGIT).logsumexp(dim=2, keepdim=True)
    values = F.softplus(negatives - logits) * positives  # -log(e^s / (e^s + e^n)) = log(1 + e^(n - s))
    partners = positives.sum(dim=2)
    values = values.sum(dim=2) / partners.clamp(min=1)  # (images, q)

    groups = torch.arange(num_images, device=ids.device).repeat_interleave(width)
    divisor = (counts > 0).sum().clamp(min=1)
    return mean_over_groups(values.flatten(), groups, num_images, divisor, rows=(partners > 0).flatten())
