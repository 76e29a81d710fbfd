"""Which samples come when, and with which random numbers: the samplers and data sets that loaders are made of."""

from __future__ import annotations

import random
from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
import torch

from solotrack.data.loader import MixedBatchSampler, MixedDataset, SeededDataset, TrainBatchSampler


def slow_batches(groups: list[int], batch_size: int, seed: int, count: int) -> list[list[tuple[int, int]]]:
    """One image at a time: into its group's bucket, out when the bucket is full."""
    buckets, batches, epoch = {group: [] for group in groups}, [], 0
    while len(batches) < count:
        for index in np.random.default_rng([seed, epoch]).permutation(len(groups)).tolist():
            bucket = buckets[groups[index]]
            bucket.append(index)
            if len(bucket) == batch_size:
                batches.append([(image, len(batches) * batch_size + slot) for slot, image in enumerate(bucket)])
                bucket.clear()
        epoch += 1
    return batches[:count]


GROUPINGS = {
    "one group": [0] * 11,
    "two groups": [0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 0, 1],
    "a group of one": [0, 0, 0, 1, 0, 0, 0, 0],
    "one image": [0],
    "as many as a batch": [0] * 4,
}


@pytest.mark.parametrize("name", GROUPINGS)
@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_batches_are_those_of_buckets_filled_one_by_one(name, batch_size):
    groups = GROUPINGS[name]
    expected = slow_batches(groups, batch_size, seed=5, count=60)
    for start in (*range(25), 47):
        sampler = TrainBatchSampler(groups, batch_size, seed=5, start_iter=start)
        assert list(islice(sampler, 60 - start)) == expected[start:]
    assert list(islice(TrainBatchSampler(groups, batch_size, seed=5), 60)) == expected


def test_starting_late_is_quick():
    """Batch one billion comes without walking through those before it."""
    groups = [0, 1, 0, 0, 1] * 200
    batch = next(iter(TrainBatchSampler(groups, 16, seed=0, start_iter=10**9)))
    assert [position for _, position in batch] == list(range(16 * 10**9, 16 * 10**9 + 16))
    assert len({groups[index] for index, _ in batch}) == 1


def test_every_image_comes_once_an_epoch_and_groups_do_not_mix():
    groups = GROUPINGS["two groups"]
    seen = Counter()
    for batch in islice(TrainBatchSampler(groups, 4, seed=1), 130):  # 40 epochs
        assert len({groups[index] for index, _ in batch}) == 1
        seen.update(index for index, _ in batch)
    assert set(seen) == set(range(13)) and max(seen.values()) - min(seen.values()) <= 1


def test_epochs_and_seeds_differ():
    first, second = islice(TrainBatchSampler([0] * 50, 50, seed=0), 2)
    other = next(iter(TrainBatchSampler([0] * 50, 50, seed=1)))
    orders = [[index for index, _ in batch] for batch in (first, second, other)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] and orders[0] != orders[2]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_global_batch(world_size):
    groups = GROUPINGS["two groups"]
    pieces = [
        list(islice(TrainBatchSampler(groups, 6, 5, start_iter=3, rank=rank, world_size=world_size), 20)) for rank in range(world_size)
    ]
    assert [list(chain(*parts)) for parts in zip(*pieces, strict=True)] == slow_batches(groups, 6, 5, 23)[3:]
    assert all(len(batch) == 6 // world_size for piece in pieces for batch in piece)


def test_impossible_batches():
    with pytest.raises(ValueError, match="no images"):
        TrainBatchSampler([], 2, 0)
    with pytest.raises(ValueError, match="3 images cannot be split equally over 2"):
        TrainBatchSampler([0, 0], 3, 0, world_size=2)


def draw(record: dict) -> tuple:
    return record["i"], random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002


def test_samples_depend_on_seed_and_position_alone():
    dataset = SeededDataset([{"i": i} for i in range(5)], draw, seed=3)
    assert len(dataset) == 5
    sample = dataset[2, 40]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert dataset[2, 40] == sample
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # noqa: NPY002
    others = [dataset[2, 41], dataset[2, 2**33], SeededDataset([{"i": 2}], draw, seed=4)[0, 40]]
    for other in others:
        assert all(a != b for a, b in zip(other[1:], sample[1:], strict=True))


def test_the_states_are_put_back_after_an_error():
    def fail(record):
        np.random.random()  # noqa: NPY002
        raise ValueError("broken image")

    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    with pytest.raises(ValueError, match="broken image"):
        SeededDataset([{}], fail, seed=0)[0, 0]
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_mixed_batches_are_the_parts_side_by_side():
    parts = [TrainBatchSampler([0] * 7, 4, 5, start_iter=3), TrainBatchSampler([0] * 3, 2, 6, start_iter=3)]
    batches = list(islice(MixedBatchSampler(parts), 9))
    for batch, images, clips in zip(batches, *parts, strict=False):
        assert batch == [(0, *key) for key in images] + [(1, *key) for key in clips]
    datasets = [SeededDataset([{"i": 10 * part + i} for i in range(7)], draw, seed=part) for part in range(2)]
    for part, index, position in batches[0]:
        assert MixedDataset(datasets)[part, index, position] == datasets[part][index, position]
