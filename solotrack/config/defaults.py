"""Every SOLO-Track config key: its default, its unit and where it comes from.

Source tags: ``P`` = the paper, ``M`` = METHOD, the project's method notes (section number behind it), ``A`` = its ambiguity register.
Keys that Detectron2 already has keep Detectron2's meaning (``INPUT.*``, ``SOLVER.*``, ``DATASETS.*``, ...).
"""

from __future__ import annotations

from detectron2.config import CfgNode

__all__ = ["add_solotrack_config", "tracker_similarity"]


def add_solotrack_config(cfg: CfgNode) -> None:
    """Add SOLO-Track's keys to a Detectron2 config, in place."""
    cfg.MODEL.META_ARCHITECTURE = "SOLOTrack"  # or "MaskTrackRCNN", "SipMaskVIS": baselines that learn from labelled videos, M7.1, M7.2
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.FORMAT = "RGB"  # as torchvision's weights
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]  # RGB, M1.6
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]  # RGB, M1.6
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"  # any Detectron2 backbone whose outputs hold SOLO.IN_FEATURES
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False  # as torchvision's ResNets
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.CHANNELS_LAST = False  # memory format of the network; the quicker one for convolutions on CPUs and tensor cores

    # The small backbone for two CPU cores (build_small_resnet_fpn_backbone)
    cfg.MODEL.SMALL_RESNET = CfgNode()
    cfg.MODEL.SMALL_RESNET.STEM_CHANNELS = 32
    cfg.MODEL.SMALL_RESNET.CHANNELS = [32, 64, 128, 192]  # of res2 to res5
    cfg.MODEL.SMALL_RESNET.BLOCKS = [1, 1, 1, 1]  # basic blocks a stage
    cfg.MODEL.SMALL_RESNET.NORM = "BN"
    # MobileNetV2 with weights from ImageNet (build_mobilenetv2_fpn_backbone)
    cfg.MODEL.MOBILENETV2 = CfgNode()
    cfg.MODEL.MOBILENETV2.NORM = "FrozenBN"  # or "BN", "SyncBN", ... to train from scratch, then with MODEL.BACKBONE.FREEZE_AT 0

    # ---- SOLO (v1), M1
    solo = cfg.MODEL.SOLO = CfgNode()
    solo.TYPE = "solo"  # or "decoupled": masks as products of S column and S row maps; quicker to learn from little data, M1.8
    solo.NUM_CLASSES = 80
    solo.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    solo.STRIDES = [8, 8, 16, 32, 32]  # pixels; the stride each level's feature is resized to before the heads, M1.1
    solo.NUM_GRIDS = [40, 36, 24, 16, 12]  # S of each level, M1.1
    solo.SCALE_RANGES = [
        [1, 96],
        [48, 192],
        [96, 384],
        [192, 768],
        [384, 2048],
    ]  # pixels, sqrt(box area) a level takes, ends included, M1.1
    solo.SIGMA = 0.2  # epsilon: share of the box that is positive around the centre of mass, M1.3
    solo.NUM_CONVS = 7  # of the category and the mask tower, M1.2
    solo.CHANNELS = 256  # of both towers, M1.2
    solo.NORM = "GN"  # "GN" or "" (none)
    solo.NUM_GROUPS = 32  # of GroupNorm
    solo.PRIOR_PROB = 0.01  # pi of the output biases, M1.2
    solo.FOCAL_ALPHA = 0.25  # M1.4
    solo.FOCAL_GAMMA = 2.0  # M1.4
    solo.CATE_LOSS_WEIGHT = 1.0  # M1.4
    solo.MASK_LOSS_WEIGHT = 3.0  # M1.4
    solo.FREEZE = False  # train only the embedding head: backbone, FPN and SOLO heads fixed
    # inference, M1.5
    solo.SCORE_THRESH = 0.1  # category score a candidate cell needs
    solo.MASK_THRESH = 0.5
    solo.NMS_PRE = 500  # candidates kept before Matrix NMS
    solo.NMS_KERNEL = "gaussian"  # or "linear"
    solo.NMS_SIGMA = 2.0
    solo.UPDATE_THRESH = 0.05  # score kept after Matrix NMS
    solo.MAX_PER_IMAGE = 100
    solo.MIN_PART = 0.0  # share of a mask's largest connected part that its other parts need to stay; 0 = all stay

    # ---- SOLO-Track's embedding head and image losses, M2
    cfg.MODEL.SOLO_TRACK = CfgNode()
    emb = cfg.MODEL.SOLO_TRACK.EMB = CfgNode()
    emb.ENABLED = True  # False: plain SOLO
    emb.DIM = 256  # D, M2.2, A12
    emb.NUM_CONVS = 7  # M2.1
    emb.CHANNELS = 256  # of the tower, M2.1
    emb.OUT_NORM = "none"  # "none", "l2" or "layernorm", M2.1
    emb.COORD = False  # feed x, y as the mask tower does; the paper wants appearance, P3.2, M2.1
    emb.SEPARATE_PER_LEVEL = False  # one tower a level, M2.1
    emb.KERNEL_SIZE = 3  # of its convolutions; with 1 the head sees no further than its input does, M16
    emb.STAGE = ""  # read from this stage of the bottom-up network ("res3") in place of FPN's levels: it sees less of the image, M16
    emb.POOL_LEVELS = "all"  # centres over "all" levels or "per_level", M2.3, A10
    emb.LOSS = "center_contra"  # or "infonce" (eq 1), M2.9
    emb.LOSS_WEIGHT = 1.0  # M2.6
    emb.CENTER_REDUCTION = "mean"  # or "sum" (eq 2 as written), M2.4, A4
    emb.CENTER_TYPE = "l1"  # or "smooth_l1", M2.4
    emb.CENTER_DETACH = False  # M2.4
    emb.CENTER_WEIGHT = 1.0  # 0 switches eq 2 off; the paper has 1
    emb.LAMBDA = 1.0  # weight of the contrast term in eq 5, M2.6, A4
    emb.SIM = "dot"  # or "cosine", M2.5, A9
    emb.SCALE = 1.0  # factor on dot products, M2.5
    emb.TEMPERATURE = 1.0  # divisor of cosine similarities (0.07 to 0.1), M2.5
    emb.NULL_LOGIT = None  # or a number: an extra entry in every softmax of eq 3, M2.5, A16
    emb.LOO_NULL = 0.0  # weight of the leave-one-out null term, M2.5
    emb.SCOPE = "image"  # negatives from the "image", the "batch" or all processes ("gather"), M2.5, A17
    emb.QUEUE = 0  # instance centers of past steps that are negatives too, whatever the SCOPE; 0 = none, M2.5, A17
    emb.VIEWS = 1  # 1: the literal losses; 2: two strong views, the same instance in the other view is the positive, M15
    me = cfg.MODEL.SOLO_TRACK.ME = CfgNode()
    me.MODE = "paper"  # "none", "paper", "offdiag" or "minimize", M2.7, A3
    me.WEIGHT = 0.1  # M2.7; times EMB.LOSS_WEIGHT, as all terms of the embedding
    me.START_ITER = 1000  # M2.7
    # ---- correspondence over unlabelled clips, M3
    video = cfg.MODEL.SOLO_TRACK.VIDEO = CfgNode()
    video.ENABLED = False  # a head of its own for the correspondence loss; images and tracking keep EMB's, P3.4
    video.SHARE_HEAD = False  # True: the loss acts on EMB's head itself, M3.5
    video.INIT_FROM_IMAGE = True  # weights without a video head: copy the image head's, M3.4
    video.LOSS_WEIGHT = 1.0  # M3.5
    video.WARMUP_ITERS = 500  # iterations over which the weight rises from 0, M3.5
    video.NODES = "mask_nms"  # instances after all of SOLO's inference, or "point_nms": cells after point NMS, M3.2
    video.NODE_SCORE = 0.2  # score a node needs, M3.2
    video.NODE_NMS = 0.5  # mask IoU with a better node of any class above which a node goes: Matrix NMS leaves copies, M16; 1 = off
    video.MAX_NODES = 20  # a frame, M3.2
    video.SIM = "cosine"  # or "dot", M3.3
    video.TEMPERATURE = 0.07  # divisor of similarities, M3.3
    video.UNMATCHED = "none"  # objects without partner: "none" (eq 8 as written), "start_small", "null" or "mutual", M3.4
    # similarity of the dust bin of "null" and PSEUDO_WEIGHT; None: the calibrated null logit's, which NEW_SHARE lowers, or 0.3
    video.NULL_SIM = None
    video.PALINDROME = "full"  # there and back through the whole clip (eq 8), or "all" shorter ones too, M3.3
    video.EDGE_DROPOUT = 0.0  # share of affinities dropped in training, M3.3
    video.PSEUDO_WEIGHT = 0.0  # of pseudo identities: what the branch links with confidence is one object to EMB's head; 0 = off, M11
    video.PSEUDO_THRESH = 0.5  # probability of going there and back that a link needs, a dust bin at NULL_SIM beside the nodes
    cfg.MODEL.SOLO_TRACK.EMB_READ = "cell"  # where inference reads an embedding: "cell", "center_region" or "cluster", M5.2, A10

    # ---- MaskTrack R-CNN (MODEL.META_ARCHITECTURE MaskTrackRCNN): Detectron2's Mask R-CNN and a track head, M7.1
    track = cfg.MODEL.TRACK_HEAD = CfgNode()
    track.POOLER_RESOLUTION = 7
    track.POOLER_SAMPLING_RATIO = 2  # samples a side of each cell; 0 = as many as the box has pixels
    track.NUM_FC = 2
    track.FC_DIM = 1024  # D
    track.LOSS_WEIGHT = 1.0

    # ---- SipMask-VIS (MODEL.META_ARCHITECTURE SipMaskVIS): Detectron2's FCOS, basis masks and a tracking map, M7.2
    sip = cfg.MODEL.SIPMASK = CfgNode()
    sip.NUM_CLASSES = 80
    sip.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]  # finest first; the first three make basis masks and tracking map
    sip.NUM_CONVS = 4  # of the class and the box tower
    sip.CHANNELS = 256  # of all towers
    sip.NUM_GROUPS = 32  # of their GroupNorm
    sip.PRIOR_PROB = 0.01
    sip.NUM_BASES = 32
    sip.MASK_RESOLUTION = 28  # points a side of a box at which its mask is learned
    sip.MASK_LOSS_WEIGHT = 1.0
    sip.TRACK_CONVS = 2  # M2.2
    sip.TRACK_DIM = 512  # D, M2.2
    sip.TRACK_JITTER = 0.05  # largest shift of a reference box, share of its sides
    sip.TRACK_LOSS_WEIGHT = 1.0
    sip.SCORE_THRESH = 0.03
    sip.NMS_PRE = 1000  # (location, class) pairs of an image that NMS sees
    sip.NMS_THRESH = 0.5  # of fast NMS

    # ---- data
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TEST = 480  # M5.1, A8
    stretch = cfg.INPUT.STRETCH = CfgNode()  # of every image's grey levels, in training and tracking, for data of very different exposure
    stretch.ENABLED = False
    stretch.LOW = 0.5  # percentile that becomes 0
    stretch.HIGH = 99.8  # percentile that becomes 255
    stretch.GAMMA = 1.0  # exponent after that; below 1 lifts faint objects
    aug = cfg.INPUT.AUG = CfgNode()
    aug.COLOR = 0.0  # strength of the brightness, contrast and saturation jitter; 0 = off
    aug.SCALE_RANGE = [1.0, 1.0]  # extra random zoom of the one-view mapper about the image centre
    aug.STRONG = False  # augment a single view as INPUT.VIEWS does: literal and two-view training then see the same kind of pictures
    views = cfg.INPUT.VIEWS = CfgNode()  # strong views of EMB.VIEWS = 2, M15
    views.SHIFT = 0.35  # largest shift, share of the image side
    views.SCALE_RANGE = [0.6, 1.5]
    views.ROTATION = 25.0  # degrees, either way
    views.FLIP = 0.5  # probability of a horizontal flip, drawn for each view
    views.COLOR = 0.4  # strength of the colour jitter
    views.SCATTER = 0.0  # probability that a view's instances are first moved to random places, each on its own
    views.MIN_VISIBLE = 0.3  # an instance with a smaller share of its mask left in a view is dropped from that view
    paste = cfg.INPUT.COPY_PASTE = CfgNode()  # instances pasted into a labelled image, before its views are drawn, M11
    paste.SOURCE = "other"  # another training image; "same": another view of the image itself, whose instances keep their identity, M16
    paste.PROB = 0.0  # probability for an image; 0 = off
    paste.MAX_INSTANCES = 3  # 1 to this many are pasted
    paste.SCALE_RANGE = [0.6, 1.5]  # size of a pasted instance over its own
    paste.MIN_VISIBLE = 0.3  # an instance of which a smaller share is left unhidden loses its mask
    clips = cfg.INPUT.CLIPS = CfgNode()  # unlabelled clips, M3.5
    clips.FRAMES = 2  # 2 to 4, P4.4
    clips.MAX_GAP = 3  # frames of the list or file from one frame of a clip to the next, at most; more for files of full frame rate
    clips.MIN_SIZE_TRAIN = [360, 480]  # short sides, one drawn a clip
    clips.MAX_SIZE_TRAIN = 1333
    clips.COLOR = 0.0  # strength of a colour jitter drawn for each frame
    clips.VIEWS = False  # each frame moved, turned and scaled on its own, as INPUT.VIEWS says: place then tells nothing, M16
    cfg.DATASETS.TRAIN_CLIPS = []  # sets of videos; their annotations are never read
    # Own data sets: name, json and folder of frames or images; see README "Data sets"
    custom = cfg.DATASETS.CUSTOM = CfgNode()
    custom.IMAGES = []  # [[name, json, image folder], ...] COCO
    custom.VIDEOS = []  # [[name, json, frame folder], ...] YouTube-VIS
    custom.CLIPS = []  # [[name, video file, folder of videos or pattern], ...] without json, for TRAIN_CLIPS
    cfg.DATASETS.CLASS_NAMES = []  # of the model; training fills them in, so that config.yaml beside a checkpoint needs no training data
    cfg.DATASETS.VIDEO_CATEGORIES = "all"  # categories and videos scored: "all", "name20" or "sem19", M8.2, A2
    cfg.DATASETS.VIDEO_SUBSET = "any"  # with a category subset: videos with "any" of its objects, or "all" videos, M8.2
    cfg.SEED = 0  # of weights, batches and augmentation; -1 draws one
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True  # decided by (seed, epoch), so that a resumed run sees the same batches

    # ---- optimiser
    cfg.SOLVER.OPTIMIZER = "SGD"  # or "ADAMW"
    cfg.SOLVER.BASE_LR = 0.01  # for 16 images, M1.6
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0  # learning rate of the backbone below the FPN / BASE_LR; below 1 keeps pretrained weights
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    cfg.SOLVER.WEIGHT_DECAY_NORM = 1e-4  # norms too, as SOLO
    cfg.SOLVER.CLIPS_PER_BATCH = 0  # unlabelled clips a step, beside IMS_PER_BATCH labelled images
    cfg.SOLVER.MAX_ITER = 90000  # "1x", M1.6
    cfg.SOLVER.STEPS = (60000, 80000)  # M1.6
    cfg.SOLVER.WARMUP_ITERS = 500  # M1.6
    cfg.SOLVER.WARMUP_FACTOR = 1.0 / 3  # M1.6
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"  # norm of all gradients together, as SOLO; or Detectron2's "norm" and "value"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 35.0  # L2, M1.6
    cfg.SOLVER.AMP.DTYPE = "auto"  # "float16", "bfloat16", or "auto": float16 with loss scaling on a GPU, bfloat16 on a CPU

    # ---- tracking, M5
    trk = cfg.TRACKER_HEADS = CfgNode()
    trk.TRACKER_NAME = "EmbeddingTracker"  # or "DistanceTracker" (M7.3), "IoUTracker", "IoUTrackerPlus", "SeqTracker" (offline; both M7.4)
    trk.SCORE_THRESH = 0.05  # detections handed to the tracker, M5.1, A8
    trk.MAX_PER_FRAME = 10  # M5.1
    trk.PRE_NMS_THRESH = 1.0  # class-agnostic mask IoU above which the weaker detection goes; 1 = off (IDOL: 0.7), M5.1
    trk.SIM = "softmax_null"  # "softmax_null", "softmax", "bisoftmax" or "masa", M5.3, A1
    trk.METRIC = "auto"  # "dot", "cosine" or "auto" (as the embedding was trained)
    trk.SCALE = 0.0  # factor on the similarity before softmax; 0 = as trained (EMB.SCALE, or 1 / EMB.TEMPERATURE for cosine)
    trk.NULL_LOGIT = None  # b of softmax_null; None: the checkpoint's calibrated value, or 0 where there is none, M5.3
    trk.NEW_THRESH = 0.5  # of softmax, bisoftmax and masa: a weaker best match starts a track, M5.3
    trk.COS_MIN = 0.3  # softmax only: cosine a match needs while there is one track (softmax is 1 there), M5.3
    trk.ASSIGN = "greedy"  # or "hungarian", M5.3
    trk.LOSER = "drop"  # what becomes of a detection whose tracks all went to better ones: "drop", or "new" for a track of its own
    trk.PROTO_UPDATE = "ema"  # "last", "ema" or "mean", M5.3, A11
    trk.PROTO_MOMENTUM = 0.5  # share of the new embedding in "ema", M5.3
    trk.MEMORY = 0  # newest embeddings of a track that are kept in place of a prototype (IDOL, MASA: 10); 0 = the prototype, M5.7
    trk.MEMORY_READ = "max"  # similarity with a track: of its most similar embedding, or the "mean"; a null logit is calibrated without it
    trk.RETAIN = 0  # frames an unseen track is kept; 0 = for the whole video, M5.3
    trk.INIT_SCORE = 0.0  # a detection with a lower score cannot start a track (IDOL: 0.2), M5.7
    cues = trk.CUES = CfgNode()  # MaskTrack R-CNN's post-processing, M5.4; the weights are IoUTrackerPlus' too
    cues.ENABLED = False  # of EmbeddingTracker
    cues.SCORE = 1.0  # weight of the log detection score
    cues.IOU = 2.0
    cues.CLASS = 10.0
    cues.IOU_TYPE = "box"  # "box" (as published, +1 pixel convention) or "mask"
    dist = trk.DISTANCE = CfgNode()  # the SOLO baseline, M7.3, A13
    dist.MAX = 1.0  # centre distance / sqrt(mean box area) above which a track starts
    dist.SAME_CLASS = True
    dist.RETAIN = 5  # frames
    iou = trk.IOU = CfgNode()  # plain IoU linking
    iou.MIN = 0.3  # the smallest IoU of a link; IoUTrackerPlus' too, M7.4, A13
    iou.TYPE = "mask"  # or "box"
    iou.SAME_CLASS = True
    iou.RETAIN = 5  # frames
    seq = trk.SEQ = CfgNode()  # SeqTracker: offline, by dynamic programming, M7.4, A13
    seq.MIN_IOU = 0.3  # a link needs a larger IoU
    seq.IOU = 2.0  # weight of a link's IoU, as CUES.IOU
    seq.CLASS = 10.0  # gain of a link within a class, as CUES.CLASS
    seq.COST = 10.0  # of every link; as large as CLASS, so that a link within a class gains what its IoU gives
    seq.NMS = 0.5  # IoU with a track's detection above which others of its frame go with it; 1 = none
    seq.MAX_TRACKS = 0  # a video; 0 = no limit
    # finalising a track, M5.5
    trk.TRACK_SCORE = "mean"  # "mean", "max" or "mean_topk"
    trk.TRACK_SCORE_TOPK = 10
    trk.TRACK_CATEGORY = "majority"  # or "score_weighted"
    cal = trk.CALIBRATION = CfgNode()  # of the null logit, without video labels, M5.3
    cal.ENABLED = True
    cal.SOURCE = "images"  # pairs of views of training images; or "clips": pairs of frames of DATASETS.TRAIN_CLIPS, as videos look, M16
    cal.IMAGES = 200  # pairs
    cal.NEW_SHARE = 0.0  # share of objects that is new where mistakes are fewest; 0: both kinds are mistaken equally often, M5.3, M16
    cal.DROP = 0.5  # share of the instances hidden from the first view: they must read as new; "images" only
    cal.DISTRACTORS = 0  # objects of other images remembered as well, as tracks of objects that have left are; "images" only, M16

    # ---- test-time adaptation, M4
    tta = cfg.TTA = CfgNode()
    tta.ENABLED = False
    tta.MODE = "video"  # "video" (adapt, then track, then undo), "online" (on the first frames, while tracking) or "continual" (no undo)
    tta.ITERS = 5  # steps a video, P4.2
    tta.LR = 1e-4  # of plain SGD: the last one of training, A7
    tta.PARTS = ["backbone", "fpn", "video_head"]  # what moves, P4.4
    tta.UNMATCHED = ""  # objects without partner, as MODEL.SOLO_TRACK.VIDEO.UNMATCHED; "" = the same as there
    tta.PSEUDO_WEIGHT = 0.0  # of pseudo identities beside the cycle loss, for models whose links are mostly right; M16, item 13
    tta.MOVE_NULL = True  # the null logit goes with the similarities of objects that are each other's most similar; M16, item 13
    tta.CLIPS_PER_STEP = 4
    tta.MAX_GAP = 3  # frames from one frame of a clip to the next, at most
    tta.SEED = 0  # of the clips

    # ---- inference over videos
    cfg.TEST.FRAMES_PER_BATCH = 8  # frames a network call takes
    cfg.TEST.DECODE_WORKERS = 2  # threads that decode frames ahead
    cfg.TEST.BOX_TUBES = False  # score tubes by their boxes, for videos whose ground truth is boxes


def tracker_similarity(cfg: CfgNode) -> tuple[str, float]:
    """Metric ("dot" or "cosine") and scale of the tracker's similarity: as the embedding was trained, unless TRACKER_HEADS differs."""
    emb, trk = cfg.MODEL.SOLO_TRACK.EMB, cfg.TRACKER_HEADS
    metric = emb.SIM if trk.METRIC == "auto" else trk.METRIC
    return metric, trk.SCALE or (emb.SCALE if metric == "dot" else 1.0 / emb.TEMPERATURE)
