"""Random views of a labelled image: a similarity transform and colour jitter, the same for image and masks.

Two strong views of one image give the embedding head cross-view positives that position alone cannot tell apart (METHOD 15, reading 1).
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from detectron2.data import transforms as T

from .scatter import scatter_instances

__all__ = ["ColorJitter", "ColorTransform", "RandomSimilarity", "RandomView", "SimilarityTransform"]

_GREY_WEIGHTS = {"RGB": (0.299, 0.587, 0.114), "BGR": (0.114, 0.587, 0.299)}  # ITU-R BT.601


class SimilarityTransform(T.Transform):
    """Shift, scale, rotation and flip onto a canvas of the same size.

    What comes from outside the image has one colour. Reflected or repeated pixels would put copies of instances there that have no label.
    """

    def __init__(self, matrix: np.ndarray, fill: tuple[float, ...]) -> None:
        """
        Args:
            matrix: (2, 3) float64, maps a source (x, y, 1) to a destination (x, y); pixel indices, a pixel's centre is an integer.
            fill: colour outside the image, one value a channel.
        """
        super().__init__()
        self.matrix = matrix
        self.fill = fill

    @property
    def scale(self) -> float:
        """Length in the view / length in the image."""
        return math.sqrt(abs(np.linalg.det(self.matrix[:, :2])))

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> the same, bilinear."""
        height, width = img.shape[:2]
        return cv2.warpAffine(
            img, self.matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=self.fill
        )

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(H, W) uint8 -> the same, nearest neighbour, 0 outside the image."""
        height, width = segmentation.shape
        # OpenCV rounds source positions exactly with up to 4 channels only; one channel a call is as quick as 4
        return cv2.warpAffine(segmentation, self.matrix, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) points (x, y) in Detectron2's convention, where a pixel's centre is at + 0.5."""
        return (coords - 0.5) @ self.matrix[:, :2].T + self.matrix[:, 2] + 0.5


class RandomSimilarity(T.Augmentation):
    """A random similarity transform about the image's centre; uniform in everything but the scale, which is log-uniform."""

    def __init__(self, shift: float, scale_range: tuple[float, float], rotation: float, flip: float) -> None:
        """
        Args:
            shift: largest shift either way, share of the image's side.
            scale_range: (smallest, largest) scale.
            rotation: largest rotation either way, degrees.
            flip: probability of a horizontal flip.
        """
        super().__init__()
        self.shift, self.scale_range, self.rotation, self.flip = shift, tuple(scale_range), rotation, flip

    def get_transform(self, image: np.ndarray) -> SimilarityTransform:
        height, width = image.shape[:2]
        scale = math.exp(self._rand_range(*np.log(self.scale_range)))
        angle = math.radians(self._rand_range(-self.rotation, self.rotation))
        mirror = -1.0 if self._rand_range() < self.flip else 1.0
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        linear = np.array([[mirror * cos, -sin], [mirror * sin, cos]])
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        moved = self._rand_range(-self.shift, self.shift, 2) * (width, height)
        matrix = np.column_stack([linear, centre + moved - linear @ centre])
        return SimilarityTransform(matrix, cv2.mean(image)[: image.shape[2]])


class ColorTransform(T.Transform):
    """An affine map of the colours, clipped to 0 .. 255; pixels stay where they are."""

    def __init__(self, matrix: np.ndarray) -> None:
        """
        Args:
            matrix: (3, 4) float64, maps a source (c0, c1, c2, 1) to a destination colour.
        """
        super().__init__()
        self.matrix = matrix

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> the same."""
        return cv2.transform(img, self.matrix)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords


class ColorJitter(T.Augmentation):
    """Random saturation, then contrast about the image's mean grey, then brightness; each a factor in [1 - strength, 1 + strength]."""

    def __init__(self, strength: float, image_format: str) -> None:
        """
        Args:
            strength: 0 to 1.
            image_format: "RGB" or "BGR".
        """
        super().__init__()
        self.strength, self.weights = strength, np.array(_GREY_WEIGHTS[image_format])

    def get_transform(self, image: np.ndarray) -> ColorTransform:
        saturation, contrast, brightness = self._rand_range(1 - self.strength, 1 + self.strength, 3)
        mean = float(np.dot(self.weights, cv2.mean(image)[:3]))
        linear = saturation * np.eye(3) + (1 - saturation) * self.weights  # every row mixes in the pixel's grey level
        offset = np.full((3, 1), (1 - contrast) * mean)
        return ColorTransform(brightness * np.hstack([contrast * linear, offset]))


class RandomView:
    """Draws a view of an image and of its masks."""

    def __init__(self, augmentations: list[T.Augmentation], min_visible: float = 0.0, scatter: float = 0.0) -> None:
        """
        Args:
            augmentations: applied in order; the image keeps its size.
            min_visible: share of an instance's mask, 0 to 1, that must remain inside the view; with less it is dropped from the view.
            scatter: probability that the instances are first moved to random other places, each on its own. A transform of the whole
                image keeps what surrounds an instance, and an embedding can live on that.
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.min_visible = min_visible
        self.scatter = scatter

    def __call__(self, image: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Args:
            image: (H, W, 3) uint8.
            masks: (M, H, W) uint8, 0 or 1.

        Returns:
            The view's image (H, W, 3), masks (K, H, W) and the indices (K,) int64 of these among the M; no mask is empty.
        """
        pixels = _areas(masks)
        if self.scatter > 0 and np.random.random() < self.scatter:  # noqa: NPY002  (the loader seeds the global state)
            image, scattered = scatter_instances(image, masks.astype(bool), np.random.default_rng(np.random.randint(2**31)))  # noqa: NPY002
            masks = scattered.astype(np.uint8)
        view = T.AugInput(image)
        transforms = self.augmentations(view)
        warped = np.empty_like(masks)
        for index, mask in enumerate(masks):
            warped[index] = transforms.apply_segmentation(mask)
        scale = math.prod(t.scale for t in transforms.transforms if isinstance(t, SimilarityTransform))
        areas = _areas(warped)
        whole = pixels * scale**2  # pixels each mask would have on an endless canvas, unhidden
        kept = np.flatnonzero((areas > 0) & (areas >= self.min_visible * whole))
        return view.image, warped[kept], kept


def _areas(masks: np.ndarray) -> np.ndarray:
    """(M, H, W) uint8 -> (M,) int64 numbers of pixels."""
    return np.array([cv2.countNonZero(mask) for mask in masks], dtype=np.int64)
