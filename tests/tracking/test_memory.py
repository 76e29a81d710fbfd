"""The table of remembered tracks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from solotrack.tracking.memory import TrackMemory, read_recent, remember


def filled() -> TrackMemory:
    memory = TrackMemory()
    memory.fit((10, 20))
    memory.append(np.array([0, 1]), 0, {"embeddings": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "classes": torch.tensor([5, 6])})
    memory.append(np.array([4]), 2, {"embeddings": torch.tensor([[5.0, 6.0]]), "classes": torch.tensor([7])})
    return memory


def test_append_and_write() -> None:
    memory = filled()
    memory.append(np.empty(0, dtype=np.int64), 2, {})
    memory.write(np.array([2, 0]), 3, {"embeddings": torch.tensor([[9.0, 9.0], [8.0, 8.0]])})
    assert memory.ids.tolist() == [0, 1, 4]
    assert memory.last_seen.tolist() == [3, 0, 3]
    assert memory["embeddings"].tolist() == [[8.0, 8.0], [3.0, 4.0], [9.0, 9.0]]
    assert memory["classes"].tolist() == [5, 6, 7]


def test_expire() -> None:
    memory = filled()
    memory.expire(100, retain=0)
    assert len(memory) == 3
    memory.expire(2, retain=2)  # last seen in frame 0: found again in frame 2 at the latest
    assert len(memory) == 3
    memory.expire(3, retain=2)
    assert memory.ids.tolist() == [4]
    assert memory["embeddings"].tolist() == [[5.0, 6.0]]
    memory.expire(10, retain=2)
    assert len(memory) == 0
    memory.append(np.array([7]), 11, {"embeddings": torch.zeros(1, 2), "classes": torch.tensor([1])})
    assert memory["embeddings"].tolist() == [[0.0, 0.0]]


def test_reset() -> None:
    memory = filled()
    memory.reset()
    assert len(memory) == 0
    memory.append(np.array([0]), 0, {"boxes": torch.ones(1, 4)})  # other columns than before
    assert memory["boxes"].tolist() == [[1.0] * 4]


def test_positions_follow_the_frame_size() -> None:
    memory = TrackMemory()
    memory.fit((4, 8))
    masks = torch.zeros(1, 4, 8, dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    center = torch.tensor([[3.5, 1.5]])
    memory.append(np.array([0]), 0, {"boxes": torch.tensor([[2.0, 1.0, 6.0, 3.0]]), "centers": center, "masks": masks})
    memory.fit((8, 24))
    expected = torch.zeros(1, 8, 24, dtype=torch.bool)
    expected[0, 2:6, 6:18] = True
    assert torch.equal(memory["masks"], expected)
    assert memory["boxes"].tolist() == [[6.0, 2.0, 18.0, 6.0]]
    assert memory["centers"].tolist() == [[11.5, 3.5]]  # the mean index of columns 6 to 17 and rows 2 to 5
    memory.fit((4, 8))
    assert torch.equal(memory["masks"], masks)


def test_inference_mode_may_come_and_go() -> None:
    with torch.inference_mode():
        memory = filled()
    memory.write(np.array([1]), 3, {"embeddings": torch.zeros(1, 2)})
    memory.expire(3, retain=2)
    memory.write(np.array([0]), 4, {"embeddings": torch.ones(1, 2)})
    with torch.inference_mode():
        memory.write(np.array([1]), 4, {"embeddings": torch.ones(1, 2)})
    assert memory["embeddings"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("size", [1, 3])
def test_recent_embeddings_against_lists(size: int) -> None:
    rng = torch.Generator().manual_seed(0)
    recent, counts = torch.zeros(4, size, 2), torch.zeros(4, dtype=torch.int64)
    lists: list[list[torch.Tensor]] = [[] for _ in range(4)]
    for step in range(9):
        rows = torch.randperm(4, generator=rng)[: 4 if step == 0 else step % 4]
        new = torch.randn(len(rows), 2, generator=rng)
        before = recent.clone()
        written, counts[rows] = remember(recent[rows], counts[rows], new)
        assert torch.equal(recent, before)
        recent[rows] = written
        for row, embedding in zip(rows.tolist(), new, strict=True):
            lists[row] = [*lists[row], embedding][-size:]
        for row, known in enumerate(lists):
            found = recent[row, : min(int(counts[row]), size)]
            assert sorted(found.tolist()) == sorted(torch.stack(known).tolist())
        queries = torch.randn(5, 2, generator=rng)
        similarity = torch.einsum("nd,kmd->nkm", queries, recent)
        for read, reduce in (("max", max), ("mean", lambda values: sum(values) / len(values))):
            expected = [[reduce([float(query @ embedding) for embedding in known]) for known in lists] for query in queries]
            torch.testing.assert_close(read_recent(similarity, counts, read), torch.tensor(expected))
