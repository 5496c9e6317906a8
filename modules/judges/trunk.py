"""The feature network of the judge of subjects: EfficientNet-Lite0 up to its last block, in plain torch.

Its normalizations are folded into the convolutions; `scripts/demo_trunk.py` reads pretrained weights.
"""

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
