"""The tracker of the method: similarity modes, prototypes, and what happens to new, lost, returning and conflicting detections."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances

from solotrack.config import load_config
from solotrack.tracking import EmbeddingTracker
from solotrack.tracking.embedding_tracker import match_scores

A, B, C = [4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]  # three objects that look nothing alike


def frame(embeddings: list[list[float]], scores: list[float] | None = None) -> Instances:
    n = len(embeddings)
    instances = Instances((8, 8))
    instances.pred_masks = torch.ones(n, 8, 8, dtype=torch.bool)
    instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(n, 1))
    instances.scores = torch.tensor(scores or [0.9 - 0.01 * i for i in range(n)])[:n]
    instances.pred_classes = torch.zeros(n, dtype=torch.int64)
    instances.embeddings = torch.tensor(embeddings, dtype=torch.float32).reshape(n, 3)
    return instances


def run(tracker: EmbeddingTracker, *frames: list[list[float]]) -> list[list[int]]:
    return [tracker.update(frame(f)).ID.tolist() for f in frames]


def tracker(**arguments) -> EmbeddingTracker:
    return EmbeddingTracker(**({"null_logit": 8.0} | arguments))  # own similarity 16, of others 0


# ---- the similarity modes by hand

LOGITS = torch.tensor([[1.0, 2.0, 0.0], [0.5, -1.0, 3.0]])
COSINE = torch.tensor([[0.1, 0.9, 0.0], [0.2, -0.5, 0.7]])


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def rows(values: torch.Tensor) -> list:
    return [pytest.approx(row, abs=1e-6) for row in values.tolist()]


def test_softmax_null() -> None:
    values = match_scores(LOGITS, None, "softmax_null", null_logit=0.7)
    assert rows(values) == [[math.log(p) for p in softmax([0.7, *row])] for row in LOGITS.tolist()]


def test_softmax() -> None:
    values = match_scores(LOGITS, COSINE, "softmax", new_thresh=0.6, cos_min=0.3)
    assert rows(values) == [[0.6, *softmax(row)] for row in LOGITS.tolist()]


def test_softmax_with_one_track_reads_the_cosine() -> None:
    values = match_scores(LOGITS[:, :1], COSINE[:, :1], "softmax", new_thresh=0.6, cos_min=0.3)
    assert rows(values) == [[0.3, 0.1], [0.3, 0.2]]


@pytest.mark.parametrize("sim", ["bisoftmax", "masa"])
def test_bisoftmax_and_masa(sim: str) -> None:
    over_tracks = [softmax(row) for row in LOGITS.tolist()]
    over_detections = list(zip(*[softmax(column) for column in LOGITS.t().tolist()], strict=True))
    expected = [[0.5, *[(a + b) / 2 for a, b in zip(*pair, strict=True)]] for pair in zip(over_tracks, over_detections, strict=True)]
    if sim == "masa":
        expected = [
            [0.5, *[(v + c) / 2 for v, c in zip(row[1:], cos, strict=True)]] for row, cos in zip(expected, COSINE.tolist(), strict=True)
        ]
    assert rows(match_scores(LOGITS, COSINE, sim, new_thresh=0.5)) == expected


def test_large_logits_stay_finite() -> None:
    values = match_scores(torch.tensor([[500.0, 400.0]]), None, "softmax_null", null_logit=0.0)
    assert values.isfinite().all()
    assert values.argmax() == 1


# ---- T12

SIMS = pytest.mark.parametrize("sim", ["softmax_null", "softmax", "bisoftmax", "masa"])
ASSIGNMENTS = pytest.mark.parametrize("assignment", ["greedy", "hungarian"])


@SIMS
@ASSIGNMENTS
def test_swap_lost_and_found_again(sim: str, assignment: str) -> None:
    ids = run(tracker(sim=sim, assignment=assignment), [A, B], [B, A], [B], [], [A, B])
    assert ids == [[0, 1], [1, 0], [1], [], [0, 1]]


@ASSIGNMENTS
def test_new_object(assignment: str) -> None:
    assert run(tracker(assignment=assignment), [A, B], [C, A, B], [A, B, C]) == [[0, 1], [2, 0, 1], [0, 1, 2]]


@ASSIGNMENTS
def test_one_track_and_a_new_object(assignment: str) -> None:
    """With one track a softmax over the tracks is 1 for everything: the null logit, or the cosine, must tell (METHOD 5.3)."""
    for sim in ("softmax_null", "softmax"):
        assert run(tracker(sim=sim, assignment=assignment), [A], [B], [B, A]) == [[0], [1], [1, 0]]
    assert run(tracker(sim="softmax", cos_min=-1.0, assignment=assignment), [A], [B]) == [[0], [0]]
    half = [20.0, 34.641, 0.0]  # cosine 1/2 with A, whatever its length
    assert run(tracker(sim="softmax", cos_min=0.51, assignment=assignment), [A], [half]) == [[0], [1]]
    assert run(tracker(sim="softmax", cos_min=0.49, assignment=assignment), [A], [half]) == [[0], [0]]


def test_softmax_with_one_track_gives_it_to_the_more_similar() -> None:
    assert run(tracker(sim="softmax"), [A], [[2.0, 3.0, 0.0], A]) == [[0], [-1, 0]]


def test_softmax_threshold() -> None:
    between = [2.0, 2.0, 0.0]  # probability 1/2 for both tracks
    assert run(tracker(sim="softmax", new_thresh=0.6), [A, B], [between]) == [[0, 1], [2]]
    assert run(tracker(sim="softmax", new_thresh=0.4), [A, B], [between]) == [[0, 1], [0]]  # a tie goes to the older track


def test_a_second_detection_of_an_object_is_dropped() -> None:
    assert run(tracker(), [A, B], [A, A, B], [A, B]) == [[0, 1], [0, -1, 1], [0, 1]]  # the tie goes to the higher score
    assert run(tracker(), [A, B], [[3.0, 0.0, 0.0], A, B]) == [[0, 1], [-1, 0, 1]]  # else to the more similar
    assert run(tracker(loser="new"), [A, B], [A, A, B]) == [[0, 1], [0, 2, 1]]


def test_a_loser_takes_its_next_best_track() -> None:
    loser = [2.5, 2.2, 0.0]  # similarity 10 with A's track, 8.8 with B's, null 8
    assert run(tracker(), [A, B], [A, loser]) == [[0, 1], [0, 1]]
    assert run(tracker(null_logit=9.0), [A, B], [A, loser]) == [[0, 1], [0, -1]]


def test_greedy_and_hungarian_differ() -> None:
    first, second = [6.0, 5.0, 0.0], [1.5, 0.0, 1.25]  # similarities (24, 20, 0) and (6, 0, 5) with the tracks of A, B and C
    # The first is surer of A (.98 against .73), so greedy gives it A. The best total has it in B: 20 + 6 + 16 > 24 + null + 16.
    assert run(tracker(null_logit=1.0), [A, B, C], [first, second, C]) == [[0, 1, 2], [0, -1, 2]]
    assert run(tracker(null_logit=1.0, assignment="hungarian"), [A, B, C], [first, second, C]) == [[0, 1, 2], [1, 0, 2]]


def test_hungarian_prefers_the_null_to_a_costly_swap() -> None:
    first, second = [6.0, 5.0, 0.0], [1.5, 0.0, 0.0]
    # Swapping costs 24 - 20 = 4 and wins 6 - null for the second.
    assert run(tracker(null_logit=1.0, assignment="hungarian"), [A, B], [first, second]) == [[0, 1], [1, 0]]
    assert run(tracker(null_logit=3.0, assignment="hungarian"), [A, B], [first, second]) == [[0, 1], [0, -1]]


# ---- memory


def prototype(tracker: EmbeddingTracker) -> list[float]:
    return tracker._memory["embeddings"][0].tolist()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"proto_update": "last"}, [8.0, 2.0, 0.0]),
        ({"proto_update": "ema", "proto_momentum": 0.5}, [6.5, 1.5, 0.0]),  # (4, 0) -> (5, 1) -> (6.5, 1.5)
        ({"proto_update": "ema", "proto_momentum": 0.25}, [0.75 * 4.5 + 2, 0.75 * 0.5 + 0.5, 0.0]),
        ({"proto_update": "mean"}, [6.0, 4 / 3, 0.0]),
    ],
)
def test_prototypes(arguments: dict, expected: list[float]) -> None:
    for cues in (False, True):
        t = tracker(cues=cues, **arguments)
        assert run(t, [A], [[6.0, 2.0, 0.0]], [], [[8.0, 2.0, 0.0]]) == [[0], [0], [], [0]]
        assert prototype(t) == pytest.approx(expected)


def test_a_dropped_detection_leaves_no_trace() -> None:
    t = tracker(proto_update="mean")
    run(t, [A], [A, [3.0, 1.0, 0.0]])
    assert prototype(t) == A
    assert len(t._memory) == 1


def random_video(seed: int, frames: int = 12) -> list[Instances]:
    """Up to five of six objects a frame, whose looks wander."""
    rng = torch.Generator().manual_seed(seed)
    looks = torch.randn(6, 3, generator=rng) * 3
    video = []
    for _ in range(frames):
        looks = looks + torch.randn(6, 3, generator=rng)
        shown = torch.randperm(6, generator=rng)[: int(torch.randint(0, 6, (1,), generator=rng))]
        instances = frame(looks[shown].tolist())
        instances.pred_classes = shown % 2
        video.append(instances)
    return video


@SIMS
@pytest.mark.parametrize("cues", [False, True])
def test_a_memory_of_one_is_the_last_embedding(sim: str, cues: bool) -> None:
    links = set()
    for seed in range(6):
        common = {"sim": sim, "cues": cues, "metric": "cosine", "scale": 5.0, "null_logit": 3.0, "new_thresh": 0.4}
        trackers = [tracker(**common, memory=1, memory_read=read) for read in ("max", "mean")]
        trackers.append(tracker(**common, proto_update="last"))
        ids = [[t.update(instances).ID.tolist() for instances in random_video(seed)] for t in trackers]
        assert ids[0] == ids[1] == ids[2]
        links.add(str(ids[0]))
        longer = tracker(**common, memory=4)
        links.add(str([longer.update(instances).ID.tolist() for instances in random_video(seed)]))
    assert len(links) > 8, "a longer memory makes other links"


@SIMS
@pytest.mark.parametrize("read", ["max", "mean"])
def test_similarities_with_a_memory_against_lists(sim: str, read: str) -> None:
    """Every frame's values, from the embeddings that each track was given."""
    t = tracker(sim=sim, memory=3, memory_read=read, metric="cosine", scale=5.0, null_logit=3.0, new_thresh=0.4, cos_min=0.4, retain=4)
    tracks: dict[int, list[torch.Tensor]] = {}
    lengths, frames = set(), 0
    for instances in random_video(3, 20):
        t._memory.expire(t._frame + 1, 4)
        known = t._memory.ids.tolist()
        if known and len(instances):
            for metric, scale in (("cosine", 5.0), ("dot", 1.0)):
                unit = torch.nn.functional.normalize(instances.embeddings, dim=1)
                values = [[[scale * float(e @ old) for old in tracks[i]] for i in known] for e in unit]
                expected = [[max(v) if read == "max" else sum(v) / len(v) for v in row] for row in values]
                torch.testing.assert_close(t._similarity(unit, metric, scale), torch.tensor(expected))
            frames += 1
        result = t.update(instances)
        for i, embedding in zip(result.ID.tolist(), result.embeddings, strict=True):
            if i >= 0:
                tracks[i] = [*tracks.get(i, []), torch.nn.functional.normalize(embedding, dim=0)][-3:]
                lengths.add(len(tracks[i]))
    assert frames > 10 and lengths == {1, 2, 3}


@pytest.mark.parametrize("cues", [False, True])
@ASSIGNMENTS
def test_a_longer_memory_finds_again_what_changed_its_looks(assignment: str, cues: bool) -> None:
    side = [[3.0, 3.0, 0.0], [1.0, 4.0, 0.0], [0.0, 5.0, 0.0]]  # it turns: from A's looks to others, and then is gone for a while
    common = {"assignment": assignment, "cues": cues, "null_logit": 7.5, "cue_class": 0.0, "cue_iou": 0.0}
    turning = [[A], *([look] for look in side), [], [A]]
    assert run(tracker(**common, proto_update="last"), *turning)[-1] == [1]
    assert run(tracker(**common), *turning)[-1] == [1]
    assert run(tracker(**common, memory=4), *turning)[-1] == [0]
    assert run(tracker(**common, memory=2), *turning)[-1] == [1], "what is older than the memory is forgotten"
    assert run(tracker(**common, memory=4, memory_read="mean"), *turning)[-1] == [0]  # (16 + 12 + 4 + 0) / 4


def test_wrong_ways_to_read_a_memory() -> None:
    with pytest.raises(ValueError, match="memory_read is 'median'"):
        tracker(memory=3, memory_read="median")


@pytest.mark.parametrize(("retain", "expected"), [(0, 0), (1, 1), (2, 1), (3, 0)])
def test_retain(retain: int, expected: int) -> None:
    ids = run(tracker(retain=retain), [A], [], [], [A])  # seen again three frames after the last time
    assert ids == [[0], [], [], [expected]]


def test_an_expired_id_is_not_given_again() -> None:
    assert run(tracker(retain=1), [A, B], [B], [A], [A, B]) == [[0, 1], [1], [2], [2, 3]]


def test_reset() -> None:
    t = tracker()
    run(t, [A, B])
    t.reset()
    assert run(t, [], [B]) == [[], [0]]


# ---- null logit, metric and scale


def test_null_logit_precedence() -> None:
    t = EmbeddingTracker()
    assert t.null_logit == 0.0
    t.set_null_logit(20.0)
    assert run(t, [A], [A]) == [[0], [1]]
    t.reset()
    assert t.null_logit == 20.0
    t.set_null_logit(None)
    assert run(t, [A], [A]) == [[0], [0]]
    fixed = EmbeddingTracker(null_logit=0.0)
    fixed.set_null_logit(20.0)
    assert fixed.null_logit == 0.0


def test_a_null_logit_that_moves_is_followed() -> None:
    t, moving = EmbeddingTracker(), torch.tensor(20.0)
    t.set_null_logit(moving)
    assert run(t, [A], [A]) == [[0], [1]]
    moving.fill_(0.0)
    assert run(t, [A]) in ([[0]], [[1]])


def test_null_logit_is_in_units_of_the_scaled_similarity() -> None:
    half = [2.0, 3.4641, 0.0]  # cosine 1/2 with A
    assert run(EmbeddingTracker(metric="cosine", scale=10.0, null_logit=4.9), [A], [half]) == [[0], [0]]
    assert run(EmbeddingTracker(metric="cosine", scale=10.0, null_logit=5.1), [A], [half]) == [[0], [1]]
    assert run(EmbeddingTracker(metric="dot", scale=0.5, null_logit=3.9), [A], [half]) == [[0], [0]]
    assert run(EmbeddingTracker(metric="dot", scale=0.5, null_logit=4.1), [A], [half]) == [[0], [1]]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ("dot", 1.0)),
        (["MODEL.SOLO_TRACK.EMB.SCALE", "0.25"], ("dot", 0.25)),
        (["MODEL.SOLO_TRACK.EMB.SIM", "cosine", "MODEL.SOLO_TRACK.EMB.TEMPERATURE", "0.1"], ("cosine", 10.0)),
        (["TRACKER_HEADS.METRIC", "cosine", "TRACKER_HEADS.SCALE", "5.0"], ("cosine", 5.0)),
        (["MODEL.SOLO_TRACK.EMB.SIM", "cosine", "TRACKER_HEADS.METRIC", "dot"], ("dot", 1.0)),
    ],
)
def test_metric_and_scale_as_trained(overrides: list[str], expected: tuple[str, float]) -> None:
    arguments = EmbeddingTracker.from_config(load_config("", overrides))
    assert (arguments["metric"], pytest.approx(arguments["scale"])) == expected


def test_every_key_of_the_config_arrives() -> None:
    keys = {
        "SIM": ("softmax", "sim"), "NULL_LOGIT": (3.0, "null_logit"), "NEW_THRESH": (0.7, "new_thresh"), "COS_MIN": (0.2, "cos_min"),
        "ASSIGN": ("hungarian", "assignment"), "PROTO_UPDATE": ("mean", "proto_update"), "PROTO_MOMENTUM": (0.9, "proto_momentum"),
        "RETAIN": (7, "retain"), "INIT_SCORE": (0.3, "init_score"), "PRE_NMS_THRESH": (0.8, "pre_nms_thresh"),
        "CUES.ENABLED": (True, "cues"), "CUES.SCORE": (2.0, "cue_score"), "CUES.IOU": (3.0, "cue_iou"), "CUES.CLASS": (4.0, "cue_class"),
        "CUES.IOU_TYPE": ("mask", "cue_iou_type"), "MEMORY": (4, "memory"), "MEMORY_READ": ("mean", "memory_read"),
    }  # fmt: skip
    cfg = load_config("", [str(x) for key, (value, _) in keys.items() for x in (f"TRACKER_HEADS.{key}", value)])
    arguments = EmbeddingTracker.from_config(cfg)
    assert {name: arguments[name] for _, name in keys.values()} == {name: value for value, name in keys.values()}
    EmbeddingTracker(cfg)


def test_missing_embeddings_are_named() -> None:
    detections = frame([A])
    detections.remove("embeddings")
    with pytest.raises(ValueError, match=r"EMB\.ENABLED"):
        tracker().update(detections)


def test_half_precision_embeddings() -> None:
    t = tracker()
    for _ in range(2):
        detections = frame([A, B])
        detections.embeddings, detections.scores = detections.embeddings.bfloat16(), detections.scores.bfloat16()
        assert t.update(detections).ID.tolist() == [0, 1]
