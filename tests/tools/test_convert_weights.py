"""tools/convert_weights.py: other libraries' weights, loaded through the checkpointer, give the same numbers."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from solotrack.config import load_config
from solotrack.engine.checkpoint import AtomicCheckpointer

# A SOLO with narrow heads on ResNet-18; the recipe's own keys for everything else.
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.SOLO.NUM_CLASSES", "5", "MODEL.SOLO.NUM_GRIDS", "[6, 5, 4, 3, 2]", "MODEL.SOLO.NUM_CONVS", "2"),
    *("MODEL.SOLO.CHANNELS", "32", "MODEL.SOLO.NUM_GROUPS", "8"),
]
FIRST_GENERATION = ("bbox_head", "ins_convs", "solo_ins_list", "cate_convs", "solo_cate")
SECOND_GENERATION = ("mask_head", "mask_convs", "conv_mask_list", "cls_convs", "conv_cls")


@pytest.fixture(scope="module")
def tool(repo_root: Path):
    spec = importlib.util.spec_from_file_location("convert_weights_tool", repo_root / "tools" / "convert_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe(root: Path, *overrides: str) -> CfgNode:
    return load_config(str(root / "projects/solo_track/configs/solo_r50_1x.yaml"), ["MODEL.DEVICE", "cpu", *overrides])


def randomise(model: nn.Module) -> nn.Module:
    """Let every parameter and statistic matter and keep activations of order 1."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.rand(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            tensor.copy_((noise - 0.5) * (3 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(noise - 0.5 if name.endswith(("bias", "running_mean")) else noise + 0.5)
    return model.eval()


def torchvision_features(model: torchvision.models.ResNet, x: torch.Tensor) -> list[torch.Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    features = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
        features.append(x)
    return features


def converted(tool, command: str, state: dict[str, torch.Tensor], tmp_path: Path, root: Path, capsys: pytest.CaptureFixture) -> nn.Module:
    """The backbone below the FPN with the whole of a converted file, in a model of the config that the tool prints."""
    torch.save(state, tmp_path / "in.pth")
    output = tmp_path / "weights" / "out.pth"
    assert tool.main([command, "--input", str(tmp_path / "in.pth"), "--output", str(output)]) == 0
    printed = capsys.readouterr().out.split("need ")[1].split()
    small = ["MODEL.SOLO.NUM_CONVS", "1", "MODEL.SOLO.CHANNELS", "32", "MODEL.FPN.OUT_CHANNELS", "16"]
    model = build_model(recipe(root, *small, *printed)).eval()
    checkpointer = AtomicCheckpointer(model)
    checkpointer.load(str(output))
    incompatible = checkpointer._incompatible
    assert not incompatible.unexpected_keys and not incompatible.incorrect_shapes
    assert not [key for key in incompatible.missing_keys if key.startswith("backbone.bottom_up.")]
    return model.backbone.bottom_up


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_backbone_gives_torchvisions_features(tool, tmp_path: Path, repo_root: Path, depth: int, capsys) -> None:
    reference = randomise(getattr(torchvision.models, f"resnet{depth}")(num_classes=2))
    bottom_up = converted(tool, "torchvision", reference.state_dict(), tmp_path, repo_root, capsys)
    image = torch.rand((1, 3, 64, 96), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = bottom_up(image), torchvision_features(reference, image)
    for name, expected in zip(("res2", "res3", "res4", "res5"), theirs, strict=True):
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [34, 101])
def test_torchvision_names_are_complete(tool, depth: int) -> None:
    with torch.device("meta"):
        state = getattr(torchvision.models, f"resnet{depth}")().state_dict()
    assert tool.resnet_depth(state) == depth
    kept = {key for key in state if not key.startswith("fc.") and not key.endswith("num_batches_tracked")}
    names = tool.resnet_names(depth)
    assert set(names) == kept
    assert len(set(names.values())) == len(kept)


@pytest.mark.parametrize("layout", ["torchvision", "flat"])
def test_mobilenetv2_gives_torchvisions_features(tool, tmp_path: Path, repo_root: Path, layout: str, capsys) -> None:
    reference = randomise(torchvision.models.mobilenet_v2(num_classes=2))
    state = reference.state_dict()
    if layout == "flat":  # the layers of a block counted through
        flat = nn.ModuleDict({"features": nn.ModuleList()})
        for block in reference.features:
            layers = getattr(block, "conv", None)
            flat["features"].append(block if layers is None else nn.ModuleDict({"conv": nn.Sequential(*flattened(layers))}))
        state = flat.state_dict()
        assert "features.1.conv.3.weight" in state and "features.17.conv.7.running_var" in state
    bottom_up = converted(tool, "mobilenetv2", state, tmp_path, repo_root, capsys)
    image = torch.rand((1, 3, 64, 96), generator=torch.Generator().manual_seed(1))
    expected = image
    with torch.no_grad():
        ours = bottom_up(image)
        for index, block in enumerate(reference.features[:18]):
            expected = block(expected)
            if index in (3, 6, 13, 17):
                name = {3: "res2", 6: "res3", 13: "res4", 17: "res5"}[index]
                assert expected.std() > 1e-3
                torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-5)


def flattened(block: nn.Sequential) -> list[nn.Module]:
    """Convolutions, norms and activations of a block in one row."""
    return [layer for part in block for layer in (part if isinstance(part, nn.Sequential) else [part])]


def mmdet_state(model: nn.Module, generation: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """A SOLO of this package under mmdetection's names, module by module."""
    head, mask_convs, mask_list, category_convs, category = generation
    state = {}

    def put(source: nn.Module, target: str) -> None:
        state.update({f"{target}.{key}": value.clone() for key, value in source.state_dict(keep_vars=False).items() if "." not in key})

    backbone = model.backbone.bottom_up
    put(backbone.stem.conv1, "backbone.conv1")
    put(backbone.stem.conv1.norm, "backbone.bn1")
    for stage in range(1, 5):
        for index, block in enumerate(getattr(backbone, f"res{stage + 1}")):
            target = f"backbone.layer{stage}.{index}"
            for number in (1, 2):
                put(getattr(block, f"conv{number}"), f"{target}.conv{number}")
                put(getattr(block, f"conv{number}").norm, f"{target}.bn{number}")
                state[f"{target}.bn{number}.num_batches_tracked"] = torch.tensor(7)
            if block.shortcut is not None:
                put(block.shortcut, f"{target}.downsample.0")
                put(block.shortcut.norm, f"{target}.downsample.1")
    for level in range(4):
        put(getattr(model.backbone, f"fpn_lateral{level + 2}"), f"neck.lateral_convs.{level}.conv")
        put(getattr(model.backbone, f"fpn_output{level + 2}"), f"neck.fpn_convs.{level}.conv")
    for tower, target in ((model.head.mask_tower, mask_convs), (model.head.category_tower, category_convs)):
        for index, conv in enumerate(tower):
            put(conv, f"{head}.{target}.{index}.conv")
            put(conv.norm, f"{head}.{target}.{index}.gn")
    for level, conv in enumerate(model.head.mask_out):
        put(conv, f"{head}.{mask_list}.{level}")
    put(model.head.category_out, f"{head}.{category}")
    return state


@pytest.fixture(scope="module")
def solo(repo_root: Path) -> nn.Module:
    return randomise(build_model(recipe(repo_root, *SMALL)))


@pytest.mark.parametrize("generation", [FIRST_GENERATION, SECOND_GENERATION], ids=["mmdet 1", "mmdet 2"])
def test_mmdet_solo_loads_whole_and_predicts_the_same(tool, solo: nn.Module, tmp_path: Path, repo_root: Path, generation, capsys) -> None:
    checkpoint = {"meta": {"epoch": 12, "CLASSES": ("a", "b")}, "state_dict": mmdet_state(solo, generation), "optimizer": {"state": {}}}
    torch.save(checkpoint, tmp_path / "solo.pth")
    output = tmp_path / "converted.pth"
    assert tool.main(["mmdet-solo", "--input", str(tmp_path / "solo.pth"), "--output", str(output)]) == 0
    printed = capsys.readouterr().out.split("need ")[1].split()

    # what is printed, and the widths that a real SOLO has by default, make a config that the weights fit
    model = build_model(recipe(repo_root, "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.SOLO.NUM_GROUPS", "8", *printed)).eval()
    AtomicCheckpointer(model).load_for_inference(str(output))
    for name, value in solo.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    image = [{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))}]
    with torch.no_grad():
        ours, theirs = (m.head.category_logits(m.features(m.preprocess(image)).levels) for m in (model, solo))
    assert torch.equal(ours, theirs)
    assert ours.std(dim=(0, 1)).min() > 1e-3  # each category has an order to lose


def run_error(tool, command: str, state: object, tmp_path: Path, capsys, output: str = "out.pth") -> str:
    torch.save(state, tmp_path / "in.pth")
    assert tool.main([command, "--input", str(tmp_path / "in.pth"), "--output", str(tmp_path / output)]) == 2
    assert sorted(os.listdir(tmp_path)) == ["in.pth"]
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def meta_resnet() -> dict[str, torch.Tensor]:
    """Keys of a ResNet-18, tensors of one element."""
    with torch.device("meta"):
        state = torchvision.models.resnet18().state_dict()
    state = {key: torch.zeros(1) for key in state}
    state["layer1.0.conv2.weight"] = torch.zeros(64, 64, 3, 3)
    return state


def test_incomplete_and_foreign_networks_are_refused(tool, meta_resnet, tmp_path: Path, capsys) -> None:
    whole = dict(meta_resnet)
    cut = {key: value for key, value in whole.items() if key != "layer3.1.bn2.running_var"}
    message = run_error(tool, "torchvision", cut, tmp_path, capsys)
    assert "1 parameters are missing, e.g. layer3.1.bn2.running_var" in message and "in.pth" in message
    message = run_error(tool, "torchvision", whole | {"layer1.0.se.weight": torch.zeros(1)}, tmp_path, capsys)
    assert "layer1.0.se.weight" in message and "not supported" in message
    message = run_error(tool, "torchvision", whole | {"layer1.0.conv2.weight": torch.zeros(128, 4, 3, 3)}, tmp_path, capsys)
    assert "(128, 4, 3, 3)" in message and "ResNeXt" in message
    message = run_error(tool, "torchvision", {"features.0.weight": torch.zeros(1)}, tmp_path, capsys)
    assert "no ResNet" in message and "(0, 0, 0, 0)" in message


def test_other_heads_are_refused(tool, solo: nn.Module, tmp_path: Path, capsys) -> None:
    state = mmdet_state(solo, FIRST_GENERATION)
    retina = {key: value for key, value in state.items() if not key.startswith("bbox_head")} | {
        "bbox_head.retina_cls.weight": torch.zeros(1)
    }
    assert "bbox_head.retina_cls" in run_error(tool, "mmdet-solo", retina, tmp_path, capsys)
    decoupled = {key: value for key, value in state.items() if "solo_ins_list" not in key}
    assert "decoupled" in run_error(tool, "mmdet-solo", decoupled, tmp_path, capsys)
    wider_fpn = state | {"neck.fpn_convs.4.conv.weight": torch.zeros(1)}
    assert "neck.fpn_convs.4.conv.weight" in run_error(tool, "mmdet-solo", wider_fpn, tmp_path, capsys)


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("harm",))


def test_unreadable_files_are_named_and_nothing_is_run(tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    message = run_error(tool, "torchvision", {"state_dict": Harmful()}, tmp_path, capsys)
    assert "in.pth" in message and "safely" in message and "weights_only=False" in message
    (tmp_path / "in.pth").write_bytes(b"<html>not found</html>")
    assert tool.main(["torchvision", "--input", "in.pth", "--output", "out.pth"]) == 2
    assert "Download it again" in capsys.readouterr().err
    assert tool.main(["torchvision", "--input", "none.pth", "--output", "out.pth"]) == 2
    assert "none.pth: cannot be read: No such file" in capsys.readouterr().err
    assert "holds no parameters" in run_error(tool, "torchvision", {"epoch": 3}, tmp_path, capsys)


def test_output_must_be_a_pth(tool, meta_resnet, tmp_path: Path, capsys) -> None:
    assert "ends in .pth" in run_error(tool, "torchvision", dict(meta_resnet), tmp_path, capsys, output="out.pkl")


def test_wrapped_parameters_are_found(tool, tmp_path: Path) -> None:
    torch.save({"model": {"module.conv1.weight": torch.ones(2)}, "epoch": 90}, tmp_path / "in.pth")
    assert list(tool.read_state_dict(str(tmp_path / "in.pth"))) == ["conv1.weight"]
