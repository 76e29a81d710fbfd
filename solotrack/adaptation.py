"""Test-time adaptation: a few steps of the video branch's loss on one video, always undone (paper §3.5, METHOD 4)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from torch import nn

from .config import ConfigError, tracker_similarity
from .data.clip_mapper import sample_clips
from .data.frames import FrameSource, InOrderOnlyError
from .modeling.correspondence.pseudo_identity import mutual_links
from .ops.similarity import pairwise_similarity

__all__ = ["AdaptationReport", "TestTimeAdaptation"]

logger = logging.getLogger(__name__)


@dataclass
class AdaptationReport:
    """What adapting to one video did.

    Attributes:
        losses: of each step, before it was taken; a step whose clips say nothing has the loss 0 and moves nothing.
        nodes: mean number of instances a frame that each step compared.
        change: L2 norm of the change of the weights over that of the weights, at the end.
        null_change: what was added to the null logit, at the end; NaN where it is not calibrated.
        seconds: spent on reading clips and on steps.
        failed: the loss, or what the model makes of the clips after the last step, became infinite or NaN; the weights went back to where
            they were before the video.
    """

    losses: list[float] = field(default_factory=list)
    nodes: list[float] = field(default_factory=list)
    change: float = 0.0
    null_change: float = 0.0
    seconds: float = 0.0
    failed: bool = False


class TestTimeAdaptation:
    """Adapts backbone, FPN and video branch to a video before or while it is tracked, by gradient steps on its frames alone.

    The other heads stay as they are (the video branch may share the image head, which moves then), and so do the statistics of BatchNorm.
    Modes:

    * "video": all steps first, on clips drawn from the whole video; needs frames that can be read in any order.
    * "online": before each of the first frames but the very first, a step on it and the one before; also for cameras.
    * "continual": as "video", but the weights are put back after an error only: each video goes on from the one before.
    """

    __test__ = False  # no test case, whatever its name

    @configurable
    def __init__(
        self,
        *,
        iters: int = 5,
        lr: float = 1e-4,
        mode: str = "video",
        parts: Sequence[str] = ("backbone", "fpn", "video_head"),
        unmatched: str = "",
        pseudo_weight: float = 0.0,
        move_null: bool = True,
        metric: str = "dot",
        scale: float = 1.0,
        clips_per_step: int = 4,
        frames: int = 2,
        max_gap: int = 3,
        seed: int = 0,
    ) -> None:
        """
        Args:
            iters: steps a video.
            lr: of plain SGD.
            mode: see the class.
            parts: of the model that move, of "backbone", "fpn" and "video_head"; parameters that training froze stay fixed.
            unmatched: what becomes of objects without a partner, see :func:`cycle_loss`; "" = as in training. No image loss holds different
                objects apart here, so "mutual" may suit adaptation where training did well with another (docs/METHOD.md 16, item 13).
            pseudo_weight: of the pseudo identities beside the cycle loss, see :func:`pseudo_identity_loss`: what the clips show together
                is held apart; 0 = off.
            move_null: add to the model's calibrated null logit what the steps add, in the mean, to the similarity of objects that are each
                other's most similar (docs/METHOD.md 16, item 13); undone with the weights.
            metric, scale: of the tracker's similarity, "dot" or "cosine".
            clips_per_step: "video" and "continual" only.
            frames, max_gap: of a clip, see :func:`sample_clips`.
            seed: of the clips; every video starts from it.
        """
        self.iters = iters
        self.lr = lr
        self.mode = mode
        self.parts = tuple(parts)
        self.unmatched = unmatched
        self.pseudo_weight = pseudo_weight
        self.move_null = move_null
        self.metric = metric
        self.scale = scale
        self.clips_per_step = clips_per_step
        self.frames = frames
        self.max_gap = max_gap
        self.seed = seed
        self.report = AdaptationReport()
        self._open = False  # a video's
        self._moving: list[nn.Parameter] = []
        self._before: list[torch.Tensor] = []  # their values before the video
        self._null_logit = self._null_before = torch.zeros(())  # the model's buffer, and its value before the video

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        tta, tracker, (metric, scale) = cfg.TTA, cfg.TRACKER_HEADS, tracker_similarity(cfg)
        return {
            "iters": tta.ITERS,
            "lr": tta.LR,
            "mode": tta.MODE,
            "parts": tta.PARTS,
            "unmatched": tta.UNMATCHED,
            "pseudo_weight": tta.PSEUDO_WEIGHT,
            "move_null": tta.MOVE_NULL and tracker.SIM == "softmax_null" and tracker.NULL_LOGIT is None,  # else nobody reads it
            "metric": metric,
            "scale": scale,
            "clips_per_step": tta.CLIPS_PER_STEP,
            "frames": cfg.INPUT.CLIPS.FRAMES,
            "max_gap": tta.MAX_GAP,
            "seed": tta.SEED,
        }

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """The model's parameters that move."""
        bottom_up = list(getattr(model.backbone, "bottom_up", model.backbone).parameters())
        inside = set(map(id, bottom_up))
        head = model.video_branch.head or model.embedding_head
        parts = {
            "backbone": bottom_up,
            "fpn": [p for p in model.backbone.parameters() if id(p) not in inside],
            "video_head": list(head.parameters()),
        }
        return [p for part in self.parts for p in parts[part] if p.requires_grad]

    @contextmanager
    def adapting(self, model: nn.Module, source: FrameSource, prepare: Callable[..., dict]) -> Iterator[None]:
        """While it is open, the model is one video's; afterwards its weights are what they were, bit for bit, also after an error.

        Args:
            model: a SOLOTrack with a video branch, in evaluation.
            source: the video.
            prepare: a frame of it -> network input with ``image``.

        Raises:
            ConfigError: a source that cannot be read in any order, unless ``mode`` is "online"; or nothing that could move.
            RuntimeError: the model is another video's still, or nothing can learn in ``torch.inference_mode``.
        """
        if self._open:
            raise RuntimeError("The model is adapted to another video, which is not finished: read its frames to the end, or close() them.")
        if torch.is_inference_mode_enabled():
            raise RuntimeError("Adaptation learns, which torch.inference_mode() does not allow; use torch.no_grad() around it, or nothing.")
        self._moving = self.parameters(model)
        if not self._moving:
            raise ConfigError(f"TTA.PARTS {list(self.parts)} hold no parameter that may move: training froze them, or the model has none.")
        self.report = AdaptationReport()
        self._before = [p.detach().clone() for p in self._moving]
        self._null_logit = model.embedding_head.null_logit
        self._null_before = self._null_logit.clone()
        self._open = True
        try:
            if self.mode != "online":
                self._adapt_to_clips(model, source, prepare)
            yield
            self._measure()
            if self.mode != "continual":
                self._put_back()
        except BaseException:
            self._put_back()
            raise
        finally:
            self._open, self._moving, self._before = False, [], []
        self._log()

    def before_frame(self, model: nn.Module, previous: dict | None, current: dict) -> None:
        """Take a step on two frames that follow each other ("online"; nothing otherwise, or once all steps are taken)."""
        if self.mode != "online" or previous is None or self.report.failed or len(self.report.losses) >= self.iters:
            return
        start = time.perf_counter()
        clips = [{"frames": [previous["image"], current["image"]]}]
        with self._followed(model, clips):
            self._step(model, clips)
        self.report.seconds += time.perf_counter() - start

    @property
    def waiting(self) -> bool:
        """Whether the next frame has to be seen by itself, for a step comes before it."""
        return self.mode == "online" and not self.report.failed and len(self.report.losses) < self.iters

    def _adapt_to_clips(self, model: nn.Module, source: FrameSource, prepare: Callable[..., dict]) -> None:
        start = time.perf_counter()
        try:
            count = source.count()
        except InOrderOnlyError as error:
            raise ConfigError(
                f"TTA.MODE {self.mode} needs a video whose frames can be read in any order; use TTA.MODE online. {error}"
            ) from None
        if count >= self.frames and self.iters > 0:
            steps = self._clips_of_steps(count, source, prepare)
            first = next(steps)
            with self._followed(model, first):
                for clips in chain([first], steps):
                    self._step(model, clips)
                    if self.report.failed:
                        break
        self.report.seconds = time.perf_counter() - start

    def _clips_of_steps(self, count: int, source: FrameSource, prepare: Callable[..., dict]) -> Iterator[list[dict]]:
        rng = np.random.default_rng(self.seed)
        for _ in range(self.iters):
            indices = sample_clips(count, self.clips_per_step, self.frames, self.max_gap, rng)
            wanted = sorted({index for clip in indices for index in clip})
            images = {frame.index: prepare(frame)["image"] for frame in source.read(wanted)}
            yield [{"frames": [images[index] for index in clip]} for clip in indices]

    @contextmanager
    def _followed(self, model: nn.Module, clips: list[dict]) -> Iterator[None]:
        """See what the steps inside do to the embeddings in ``clips``: a forward pass after them, one before if the null logit moves.

        Embeddings that are not finite are given up. Otherwise the null logit moves by what the steps do to the similarity of objects that
        are each other's most similar: it was calibrated before them, and they change similarities as a whole (a dot product shrinks with
        the embeddings' length).
        """
        before = nodes = None
        if self.move_null and not self._null_logit.isnan():  # NaN: not calibrated, nothing to move
            embeddings, nodes = model.clip_embeddings(clips)
            before = self._similarity(embeddings)
        yield
        if self.report.failed:  # all is back where it was
            return
        embeddings, _ = model.clip_embeddings(clips, nodes)
        if not embeddings.isfinite().all():
            self._give_up()
        elif before is not None:
            links = mutual_links(before, nodes.valid)
            change = self._similarity(embeddings) - before
            self._null_logit += torch.where(links, change, 0).sum() / links.sum().clamp(min=1)

    def _similarity(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Of nodes (B, F, N, D) of a clip's successive frames, as the tracker has it: (B, F - 1, N, N)."""
        return pairwise_similarity(embeddings[:, :-1], embeddings[:, 1:], self.metric, self.scale)

    def _step(self, model: nn.Module, clips: list[dict]) -> None:
        with torch.enable_grad():
            one_video = [0] * len(clips) if self.pseudo_weight > 0 else None
            found = model.clip_losses(clips, one_video, self.unmatched)
            loss = found.cycle if found.identity is None else found.cycle + self.pseudo_weight * found.identity
            gradients = torch.autograd.grad(loss, self._moving, allow_unused=True)
        # gradients too where the loss is 0: features that are not finite have no nodes, and so no loss
        finite = torch.stack([loss.isfinite(), *(g.isfinite().all() for g in gradients if g is not None)]).all()
        value, nodes, finite = torch.stack([loss.detach(), found.nodes, finite.float()]).tolist()  # the step's one transfer
        self.report.losses.append(value)
        self.report.nodes.append(nodes)
        if not finite:
            self._give_up()
            return
        with torch.no_grad():
            for parameter, gradient in zip(self._moving, gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(gradient, alpha=self.lr)

    def _give_up(self) -> None:
        self.report.failed = True
        self._put_back()

    @torch.no_grad()
    def _put_back(self) -> None:
        for parameter, value in zip(self._moving, self._before, strict=True):
            parameter.copy_(value)
        self._null_logit.copy_(self._null_before)

    @torch.no_grad()
    def _measure(self) -> None:
        change = sum((p - value).square().sum() for p, value in zip(self._moving, self._before, strict=True))
        size = sum(value.square().sum() for value in self._before)
        self.report.change = float((change / size).sqrt())
        self.report.null_change = float(self._null_logit - self._null_before)

    def _log(self) -> None:
        report = self.report
        if report.failed:
            logger.warning(
                "The adaptation's loss or outcome is not finite; the video is tracked with the weights of before it. Lower TTA.LR."
            )
        elif self.iters == 0:
            logger.info("Not adapted: TTA.ITERS is 0.")
        elif not report.losses:
            frames = 2 if self.mode == "online" else self.frames
            logger.info(f"Not adapted: the video has fewer than the {frames} frames of a clip.")
        elif not any(report.losses):
            logger.info("Not adapted: no clip has an object in each frame, several in one, and a walk that counts (TTA.UNMATCHED).")
        else:
            logger.info(
                f"Adapted in {report.seconds:.2f} s: loss {report.losses[0]:.3f} to {report.losses[-1]:.3f}, "
                f"{report.nodes[0]:.1f} to {report.nodes[-1]:.1f} instances a frame, weights changed by {report.change:.1e}"
                + (f", null logit by {report.null_change:+.2f}." if self.move_null and not np.isnan(report.null_change) else ".")
            )
