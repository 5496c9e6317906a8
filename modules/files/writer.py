"""The program that wrote a file, and the facts about it that its tensors do not contain."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modules.documents import parse_json
from modules.files.patterns import Exceptions

PEFT_OPTIONS = "lora_adapter_metadata"
"""The metadata key of peft's options in files that diffusers writes."""

EARLY = "oft_factor"
"""A metadata key with the value "elements" marks files of OneTrainer's first scaled OFT, whose factor was 1 /
sqrt(values per block). The scripts set it; no file has it."""

ABOUT_TENSORS = ("sshs_", "gimbal.form", "gimbal.errors", "gimbal.approximations", PEFT_OPTIONS, "format",
                 "modelspec.hash_sha256", "ss_network_", EARLY)
"""Beginnings of metadata keys that are about a file's tensors, so that they must not be copied to a file made from
it."""

OURS = "Gimbal"
ONETRAINER = "OneTrainer"
PEFT = "peft"


@dataclass(frozen=True)
class About:
    """What the arithmetic of a layer may depend on besides its tensors."""

    writer: str = ""
    name: str = ""
    """The layer's, in the file."""
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    """peft's options."""
    exceptions: dict[str, Exceptions] = field(default_factory=dict, repr=False, compare=False)
    """Those of the options, by option, cached. Layers of one file share them."""

    def of(self, name: str) -> "About":
        """The same facts about another layer of the file."""
        return replace(self, name=name)

    def option(self, key: str, default: Any) -> Any:
        """One of peft's options; diffusers prefixes them with the network's name."""
        return self.config.get(self._key(key), default)

    def _key(self, key: str) -> str:
        """The name of the option `key` for this layer."""
        own = f"{self.name.partition('.')[0]}.{key}"
        return own if own in self.config else key

    def scale(self, rank: int) -> float:
        """`alpha / rank` from peft's options, 1 without them. For files without alphas among their tensors."""
        alpha = self.option("lora_alpha", self.option("alpha", None))
        if alpha is None:
            return 1.0
        alpha = self._pattern("alpha_pattern", alpha)
        return alpha / (math.sqrt(rank) if self.option("use_rslora", False) else rank)

    def rank(self) -> int | None:
        """That of peft's options, for kinds whose tensors do not show it."""
        return self._pattern("rank_pattern", self.option("r", None))

    def _pattern(self, key: str, default: Any) -> Any:
        """peft's exceptions: the first pattern that the end of the layer's name matches."""
        values = self.option(key, None)
        if not values:
            return default
        found = self._key(key)
        if found not in self.exceptions:
            self.exceptions[found] = Exceptions(values)
        return self.exceptions[found].of(self.name, default)


def writer(keys: Collection[str], metadata: dict[str, str], config: dict[str, Any]) -> str:
    """The program that wrote a file, in words; empty if unknown."""
    if any(key.startswith("gimbal.") for key in metadata):
        return OURS
    if any(key.startswith("ot_") for key in metadata):
        return ONETRAINER
    if "ai-toolkit" in _software(metadata):
        return "ai-toolkit"
    module = metadata.get("ss_network_module", "")
    if module.startswith("lycoris"):
        return "LyCORIS in sd-scripts"
    if module:
        return f"sd-scripts or a program based on it ({module})"
    if any(key.startswith("base_model.model.") for key in keys) or "peft_type" in config:
        return PEFT
    if config:
        return "diffusers with peft"
    if any(key.startswith("lycoris_") for key in keys):
        return "LyCORIS without sd-scripts, as in SimpleTuner"
    return ""


def refuse_own(path: Path, metadata: dict[str, str]) -> None:
    """ValueError for the internal adapter file of a run."""
    if "facts" in metadata and not any(key.startswith("gimbal.") for key in metadata):
        raise ValueError(f"{path} is a run's internal adapter file, which only Gimbal reads; scripts/export.py writes "
                         "a file for other programs")


def network(extended: bool) -> str:
    """kohya's `ss_network_module` for a plain low-rank file, or for one with other updates."""
    return "lycoris.kohya" if extended else "networks.lora"


def _software(metadata: dict[str, str]) -> str:
    try:
        found = parse_json(metadata.get("software", "{}"), "software")
    except ValueError:
        return metadata["software"]
    return str(found.get("name", "")) if isinstance(found, dict) else str(found)
