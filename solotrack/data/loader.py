"""Loaders: an endless, resumable stream of training batches, and the videos of a test set.

Batch t of the training is decided by (seed, t) alone, not by the number of workers or processes, nor by whether the run was interrupted.
"""

from __future__ import annotations

import bisect
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.build import filter_images_with_only_crowd_annotations, trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from solotrack.config import ConfigError, trains_on_videos

from .annotation_file import DatasetError
from .catalog import check_num_classes, dataset_metadata, load_dataset
from .clip_mapper import ClipMapper
from .clip_sets import load_clip_videos
from .mappers import ImageMapper
from .pairs import load_pairs

__all__ = [
    "MixedBatchSampler",
    "MixedDataset",
    "SeededDataset",
    "TrainBatchSampler",
    "build_train_loader",
    "build_video_loader",
    "training_records",
    "training_samples",
]

logger = logging.getLogger(__name__)


class TrainBatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (image index, position); the position numbers the samples of the whole run and seeds their augmentation.

    Every epoch shuffles the images by (seed, epoch) and deals them out to one stream a group. A batch is cut from a stream once it has
    enough images, so a batch is of one group; what is left over waits for the next epoch, and no image is skipped. Videos, from which
    clips are drawn, are dealt out like images.
    """

    def __init__(self, groups: Sequence[int], batch_size: int, seed: int, start_iter: int = 0, rank: int = 0, world_size: int = 1) -> None:
        """
        Args:
            groups: (N,) group of each image; all equal for no grouping.
            batch_size: images in a batch of all processes together.
            seed: at least 0, the same in all processes.
            start_iter: number of the first batch.
            rank, world_size: this process takes the rank-th of world_size equal pieces of every batch.

        Raises:
            ValueError: no images, or a batch that cannot be split equally.
        """
        if not len(groups):
            raise ValueError("There are no images to draw batches from.")
        if batch_size % world_size:
            raise ValueError(f"A batch of {batch_size} images cannot be split equally over {world_size} processes.")
        self.groups = np.asarray(groups)
        self.members = {int(group): int(count) for group, count in zip(*np.unique(self.groups, return_counts=True), strict=True)}
        self.batch_size, self.seed, self.start_iter = batch_size, seed, start_iter
        share = batch_size // world_size
        self.piece = slice(rank * share, (rank + 1) * share)

    def _batches_before(self, epoch: int) -> int:
        """Number of batches that are complete before an epoch begins."""
        return sum(epoch * count // self.batch_size for count in self.members.values())

    def _deal(self, epoch: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Group -> its images in the epoch's order, and their ranks in the epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.groups))
        shuffled = self.groups[order]
        ranks = {group: np.flatnonzero(shuffled == group) for group in self.members}
        return {group: (order[r], r) for group, r in ranks.items()}

    def _left_over(self, epoch: int) -> dict[int, np.ndarray]:
        """Group -> its images that wait for a batch when an epoch begins; they may come from several epochs back if the group is small."""
        waiting = {group: epoch * count % self.batch_size for group, count in self.members.items()}
        stock = {group: np.empty(0, dtype=np.int64) for group in self.members}
        while any(len(stock[group]) < number for group, number in waiting.items()):
            epoch -= 1
            stock = {group: np.concatenate([images, stock[group]]) for group, (images, _) in self._deal(epoch).items()}
        return {group: stock[group][len(stock[group]) - number :] for group, number in waiting.items()}

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self.batch_size
        # at least epoch * N / size - groups batches precede an epoch, hence the bound
        bound = (self.start_iter + len(self.members) + 1) * size // len(self.groups) + 2
        epoch = bisect.bisect_right(range(bound), self.start_iter, key=self._batches_before) - 1
        number = self._batches_before(epoch)
        stock = self._left_over(epoch)
        while True:
            complete = []  # (rank of the image that completes the batch, batch)
            for group, (images, ranks) in self._deal(epoch).items():
                waiting = len(stock[group])
                stream = np.concatenate([stock[group], images])
                count = len(stream) // size
                last_ranks = ranks[np.arange(1, count + 1) * size - 1 - waiting]
                complete += zip(last_ranks.tolist(), stream[: count * size].reshape(count, size).tolist(), strict=True)
                stock[group] = stream[count * size :]
            for _, batch in sorted(complete):
                if number >= self.start_iter:
                    yield [(index, number * size + slot) for slot, index in enumerate(batch)][self.piece]
                number += 1
            epoch += 1


class MixedBatchSampler(Sampler[list[tuple[int, int, int]]]):
    """Batches of several samplers side by side: (number of the sampler, index, position), in the samplers' order."""

    def __init__(self, samplers: Sequence[TrainBatchSampler]) -> None:
        self.samplers = samplers

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for batches in zip(*self.samplers, strict=True):
            yield [(part, *key) for part, batch in enumerate(batches) for key in batch]


class SeededDataset(Dataset):
    """Maps the records of images or videos; the random numbers of a sample are decided by (seed, position) alone."""

    def __init__(self, records: Sequence[dict[str, Any]], mapper: Callable[[dict[str, Any]], Any], seed: int) -> None:
        """
        Args:
            records: Detectron2's standard dicts, or those of videos; a DatasetFromList, which holds them serialised, is taken as it is.
            mapper: record -> sample; may draw from the global states of random, NumPy and torch (CPU).
            seed: at least 0.
        """
        # workers share the memory
        self.records = records if isinstance(records, DatasetFromList) else DatasetFromList(list(records), copy=False)
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """The sample of (record index, position)."""
        index, position = key
        with _seeded(self.seed, position):
            return self.mapper(self.records[index])


class MixedDataset(Dataset):
    """Several data sets behind one kind of key, so that all of them share a loader's workers."""

    def __init__(self, parts: Sequence[SeededDataset]) -> None:
        self.parts = parts

    def __getitem__(self, key: tuple[int, int, int]) -> Any:
        """The sample of (number of the data set, record index, position)."""
        part, index, position = key
        return self.parts[part][index, position]


def training_records(cfg: CfgNode, count: int, seed: int) -> list[tuple[int, dict[str, Any]]]:
    """(index, record) of up to ``count`` different images of DATASETS.TRAIN, drawn by the seed. It reads the sets' whole files."""
    records = [record for name in cfg.DATASETS.TRAIN for record in load_dataset(name)]
    return [(index, records[index]) for index in np.random.default_rng(seed).permutation(len(records))[:count].tolist()]


def training_samples(cfg: CfgNode, records: Iterable[tuple[int, dict[str, Any]]], seed: int) -> Iterator[dict[str, Any]]:
    """The images of ``training_records``, augmented as in training; how is decided by the seed."""
    mapper = ImageMapper(cfg, is_train=True)
    for index, record in records:
        with _seeded(seed, index):
            sample = mapper(record)
        yield sample


@contextlib.contextmanager
def _seeded(seed: int, position: int) -> Iterator[None]:
    """Seed the global random states from (seed, position), and put them back as they were."""
    # Detectron2's transforms draw from NumPy's global state, so a Generator cannot be handed to them
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    words = np.random.SeedSequence([seed, position]).generate_state(4)
    np.random.seed(words)  # noqa: NPY002
    random.seed(words.tobytes())
    torch.default_generator.manual_seed(int(words[:2].view(np.uint64)[0] >> np.uint64(1)))  # torch.manual_seed would touch GPUs too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def build_train_loader(cfg: CfgNode, mapper: Callable[[dict[str, Any]], Any] | None = None, start_iter: int = 0) -> DataLoader:
    """Endless loader of batches: a list of IMS_PER_BATCH mapped images of ``DATASETS.TRAIN``, then CLIPS_PER_BATCH clips of the videos of
    ``DATASETS.TRAIN_CLIPS``, both divided by the number of processes. Whether there are clips has no influence on the images.

    For a model that learns from labelled videos an image is a frame and brings another one along, see ``PairMapper``.

    Args:
        cfg: config.
        mapper: record -> sample; ImageMapper, or PairMapper, by default.
        start_iter: number of the first batch; the batches from there are those that an uninterrupted run gets (given SEED >= 0).

    Raises:
        ConfigError: no training set, another SAMPLER_TRAIN than TrainingSampler, NUM_CLASSES or a batch size does not fit, clips from
            something else than videos, or no video is long enough.
        FileNotFoundError, DatasetError: a data set cannot be read, or no image has an instance.
        FrameError: a video file that cannot be opened.
    """
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN is empty; name at least one data set.")
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ConfigError(f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}; the only one here is 'TrainingSampler'.")
    world_size = comm.get_world_size()
    images, clips = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.CLIPS_PER_BATCH
    for key, number in (("IMS_PER_BATCH", images), ("CLIPS_PER_BATCH", clips)):
        if number % world_size:
            raise ConfigError(f"SOLVER.{key} ({number}) must be a multiple of the number of processes ({world_size}).")
    check_num_classes(cfg)
    if trains_on_videos(cfg):
        records, default_mapper = load_pairs(cfg)
    else:
        records = _labelled_images(cfg)
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    groups = [int(cfg.DATALOADER.ASPECT_RATIO_GROUPING and record["width"] > record["height"]) for record in records]
    sampler = TrainBatchSampler(groups, images, seed, start_iter, comm.get_rank(), world_size)
    records = DatasetFromList(records, copy=False)
    if not trains_on_videos(cfg):
        default_mapper = ImageMapper(cfg, is_train=True, donors=records)
    dataset = SeededDataset(records, mapper or default_mapper, seed)
    if clips:
        videos = load_clip_videos(cfg)
        # of their own, else image and clip of one position would be flipped alike
        other_seed = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
        clip_sampler = TrainBatchSampler([0] * len(videos), clips, other_seed, start_iter, comm.get_rank(), world_size)
        sampler = MixedBatchSampler([sampler, clip_sampler])
        dataset = MixedDataset([dataset, SeededDataset(videos, ClipMapper(cfg), other_seed)])
    logger.info(f"Training on {len(records)} images, from batch {start_iter}, seed {seed}")
    workers = cfg.DATALOADER.NUM_WORKERS
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=trivial_batch_collator,
        pin_memory=torch.cuda.is_available() and cfg.MODEL.DEVICE.startswith("cuda"),
        worker_init_fn=_limit_threads,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed % 2**63),  # else the loader would draw from the global state
    )


def _labelled_images(cfg: CfgNode) -> list[dict[str, Any]]:
    records = [record for name in cfg.DATASETS.TRAIN for record in load_dataset(name)]
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
        if not records:
            raise DatasetError(
                f"No image of {', '.join(cfg.DATASETS.TRAIN)} has an instance that is not a crowd; check the annotations, "
                "or set DATALOADER.FILTER_EMPTY_ANNOTATIONS False to train on images without instances."
            )
    return records


def _limit_threads(worker: int) -> None:
    del worker
    cv2.setNumThreads(0)  # workers are the parallelism; OpenCV's threads do not survive a fork either


def build_video_loader(dataset_name: str) -> DataLoader:
    """Loader of the videos of a test set, [video dict] a batch; each process gets its own part. Frames are not read here.

    Raises:
        ConfigError: the set holds images.
        FileNotFoundError, DatasetError: the set cannot be read.
    """
    if dataset_metadata(dataset_name).evaluator_type != "ytvis":
        raise ConfigError(f"{dataset_name} is a set of images; tracking needs videos.")
    videos = load_dataset(dataset_name)
    return DataLoader(
        DatasetFromList(videos, copy=False), batch_size=1, sampler=InferenceSampler(len(videos)), collate_fn=trivial_batch_collator
    )
