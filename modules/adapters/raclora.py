"""RAC-LoRA: a chain of low-rank updates, `W' = W + (alpha / rank) sum_t up_t down_t` (arXiv 2410.08305, algorithm 1).

Each link has a random `down_t` that is never trained; its `up_t` is trained from zero while the links before it are
frozen. So a chain of links reaches what no single one can, and converges like training the full weight: the mean of
down^T down over the random choice is a multiple of the identity. The paper says "convergence", not "better": its own
tables have it near LoRA.

The paper adds finished links to the weight. Here they are kept as factors in float32, so a half-precision or quantized
base has no rounding loss, and the file is exactly a LoRA of rank `links * rank`. The cost is a forward pass of that
rank. The links have equal numbers of steps [I].
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modules.adapters import base
from modules.adapters.active_rank import ActiveRankConfig
from modules.adapters.dropout import DropoutConfig, DroppingAdapter
from modules.adapters.layers import Layer
from modules.adapters.low_rank import LowRankConfig, low_rank_pair, set_pair
from modules.preset.section import option


class Config(LowRankConfig, DropoutConfig, ActiveRankConfig):
    """RAC-LoRA: a sequence of low-rank updates."""

    method: Literal["raclora"] = "raclora"
    """Low-rank updates trained one after the other, each in new random directions."""

    links: int = option(4, why="the file has four times the trained rank", ge=1, le=256)
    """Number of updates that are trained one after the other. The file has rank links * rank."""


class Adapter(DroppingAdapter):
    """Parameter `up (out, r)` of the current link; buffers `down (links * r, fan_in)` of all links, drawn at the start,
    `done (out, links * r)`, the finished links, `link ()`, the number of the current one, and `factor ()`."""

    sets_parameters = True

    def __init__(self, config: Config, layer: Layer):
        super().__init__(config, layer)
        pairs = [low_rank_pair(config, layer) for _ in range(config.links)]
        self.up, _, factor = pairs[0]
        self.down: Tensor
        self.done: Tensor
        self.link: Tensor
        self.factor: Tensor
        self.register_buffer("down", torch.cat([down.detach() for _, down, _ in pairs]))
        self.register_buffer("done", torch.zeros(layer.out_features, config.links * config.rank))
        self.register_buffer("link", torch.tensor(0.0))
        self.register_buffer("factor", factor)

    def chain(self) -> Tensor:
        """All links side by side, `(out, links * r)`; zero for links that are not trained yet."""
        here = torch.arange(self.config.links, device=self.link.device) == self.link
        return self.done + (self.up.unsqueeze(1) * here.unsqueeze(1)).flatten(1)

    def weight(self, W: Tensor) -> Tensor:
        return W + self.factor * (self.chain() @ self.down)

    def derive(self, layer: Layer) -> dict[str, Tensor]:
        return {"up": self.factor * self.chain()}

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        return self.branch(x, layer, derived["up"], self.down)

    @classmethod
    def after_step(cls, adapters: Sequence["Adapter"], step: int, steps: int) -> list[nn.Parameter]:
        """Change to the link of the next step, also where steps in between were skipped."""
        links, link = adapters[0].config.links, int(adapters[0].link)
        wanted = max(link, link_after(step, steps, links))  # a longer training never returns to a finished link
        if link == wanted:
            return []
        for adapter in adapters:
            adapter.done.copy_(adapter.chain())
            adapter.up.zero_()
            adapter.link.fill_(wanted)
        return [adapter.up for adapter in adapters]

    @classmethod
    def replanned(cls, adapters: Sequence["Adapter"], step: int, before: int, now: int) -> str:
        """A finished link is kept: the chain has `links` of them."""
        links = adapters[0].config.links
        if all(link_after(s, before, links) == link_after(s, now, links) for s in range(1, step + 1)):
            return ""
        link = link_after(step, before, links)
        until = next((s for s in range(step + 1, now + 1) if link_after(s, now, links) > link), now)
        return f"link {link + 1} of the chain of {links} is being trained, until step {until}"

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        """As the first link, whose `down` is then the file's."""
        self.refuse_all_but(terms, "up")
        set_pair(self.config, self.up, self.down[: self.config.rank], terms, self.factor)

    def export_terms(self, W: Tensor) -> base.Terms:
        return base.Terms(up=self.factor * self.chain(), down=self.down)

    def curves(self) -> dict[str, Tensor]:
        return {"link": 1 + self.link}


def link_after(step: int, steps: int, links: int) -> int:
    """The link, from 0, that is trained after `step` of `steps` steps."""
    return min(step * links // steps, links - 1)
