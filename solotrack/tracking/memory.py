"""What an online tracker remembers between frames: one row for each track."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["TrackMemory", "read_recent", "remember"]


class TrackMemory:
    """K remembered tracks as columns of tensors; row k of every column belongs to the same track, the oldest track first.

    IDs and ages live on the host, where the links are decided; whatever is compared with detections lives on the detections' device.
    Columns named ``boxes`` (K, 4), ``centers`` (K, 2) and ``masks`` (K, H, W) are positions in pixels and follow :meth:`fit`.

    Attributes:
        ids: (K,) int64, the tracks' IDs.
        last_seen: (K,) int64, the frame in which a track last had a detection.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every track."""
        self.ids = np.empty(0, dtype=np.int64)
        self.last_seen = np.empty(0, dtype=np.int64)
        self._columns: dict[str, torch.Tensor] = {}
        self._image_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._columns[name]

    def expire(self, frame: int, retain: int) -> None:
        """Forget the tracks last seen more than ``retain`` frames before ``frame``; 0 keeps every track."""
        if not retain:
            return
        kept = np.flatnonzero(frame - self.last_seen <= retain)
        if len(kept) == len(self):
            return
        self.ids, self.last_seen = self.ids[kept], self.last_seen[kept]
        index = self._index(kept)
        self._columns = {name: column[index] for name, column in self._columns.items()}

    def fit(self, image_size: tuple[int, int]) -> None:
        """Carry remembered positions over to a frame of (height, width) ``image_size``.

        A stream may change its resolution; the new frame is taken to show the same view, so boxes and centres are scaled and masks are
        resized (nearest pixel).
        """
        old, self._image_size = self._image_size, image_size
        if old is None or old == image_size or not len(self):
            return
        scale_xy = [image_size[1] / old[1], image_size[0] / old[0]]
        if "boxes" in self._columns:
            self._columns["boxes"] = self["boxes"] * self["boxes"].new_tensor(scale_xy * 2)
        if "centers" in self._columns:  # means of pixel indices: the centre of pixel 0 lies half a pixel inside the image
            self._columns["centers"] = (self["centers"] + 0.5) * self["centers"].new_tensor(scale_xy) - 0.5
        if "masks" in self._columns:
            resized = F.interpolate(self["masks"][:, None].to(torch.uint8), size=image_size, mode="nearest-exact")
            self._columns["masks"] = resized[:, 0].to(self["masks"].dtype)

    @torch.inference_mode()  # columns are written in place, also those made inside a caller's inference mode
    def write(self, rows: np.ndarray, frame: int, columns: Mapping[str, torch.Tensor]) -> None:
        """Replace rows (n,) of the given columns and mark their tracks as seen in ``frame``."""
        if not len(rows):
            return
        self.last_seen[rows] = frame
        index = self._index(rows)
        for name, values in columns.items():
            self._columns[name][index] = values

    @torch.inference_mode()
    def append(self, ids: np.ndarray, frame: int, columns: Mapping[str, torch.Tensor]) -> None:
        """Add the tracks ``ids`` (n,), first seen in ``frame``, with their values of every column; the memory owns these tensors from
        then on."""
        if not len(ids):
            return
        if len(self):
            self._columns = {name: torch.cat((self._columns[name], values)) for name, values in columns.items()}
        else:
            self._columns = dict(columns)
        self.ids = np.concatenate((self.ids, ids))
        self.last_seen = np.concatenate((self.last_seen, np.full(len(ids), frame, dtype=np.int64)))

    def _index(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows).to(next(iter(self._columns.values())).device)


def remember(recent: torch.Tensor, counts: torch.Tensor, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Put each track's new embedding in the place of its oldest.

    Args:
        recent: (m, M, D), the last M embeddings of m tracks; a track's embedding number c, from 0, is in slot c % M. Not changed.
        counts: (m,) int64, embeddings each track has had.
        embeddings: (m, D), the new ones.

    Returns:
        ``recent`` and ``counts`` with them.
    """
    slots = torch.arange(recent.shape[1], device=recent.device)
    new = slots == (counts % recent.shape[1])[:, None]  # (m, M)
    return torch.where(new[..., None], embeddings[:, None], recent), counts + 1


def read_recent(similarity: torch.Tensor, counts: torch.Tensor, read: str) -> torch.Tensor:
    """Similarity (n, K) of detections with tracks, from that with each remembered embedding.

    Args:
        similarity: (n, K, M), M slots a track, see :func:`remember`.
        counts: (K,) int64, embeddings each track has had, at least 1; slots from there on are empty.
        read: "max", the most similar embedding speaks for its track, or "mean".
    """
    filled = torch.arange(similarity.shape[2], device=counts.device) < counts[:, None]  # (K, M)
    if read == "max":
        return similarity.masked_fill(~filled, -torch.inf).amax(dim=2)
    return (similarity * filled).sum(dim=2) / filled.sum(dim=1)
