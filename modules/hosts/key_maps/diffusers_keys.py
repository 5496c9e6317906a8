"""What diffusers (0.42.1, with peft) reads of a file: `load_lora_weights`.

The installed diffusers itself converts the file's names to its own, on stand-ins for the tensors that record which keys
of the file they were made from. What it then finds in the pipeline's networks follows from the published layers.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from modules.families.parts import published
from modules.files import keys
from modules.hosts.key_maps import diffusers_source
from modules.hosts.key_maps.loading import Loading

TITLE = "diffusers"

MIXINS = {
    "sd15": "StableDiffusionLoraLoaderMixin", "sdxl": "StableDiffusionXLLoraLoaderMixin", "sd3": "SD3LoraLoaderMixin",
    "flux": "FluxLoraLoaderMixin", "chroma": "FluxLoraLoaderMixin", "zimage": "ZImageLoraLoaderMixin",
    "flux2": "Flux2LoraLoaderMixin", "qwenimage": "QwenImageLoraLoaderMixin", "krea2": "Krea2LoraLoaderMixin",
    "anima": "AnimaLoraLoaderMixin", "qwenimage21": "QwenImageLoraLoaderMixin",
}
ENCODERS = {"sd15": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2"),
            "sd3": ("text_encoder", "text_encoder_2"), "flux": ("text_encoder",), "chroma": ("text_encoder",),
            "zimage": (), "flux2": (), "qwenimage": (), "krea2": (), "anima": (), "qwenimage21": ()}
"""Text encoders that a pipeline's loader searches."""
FLAT = {("sd15", "text_encoder"), ("sdxl", "text_encoder"), ("flux", "text_encoder")}
"""Of them, those that have no `text_model` level with transformers 5."""
READS_LOKR = ("flux2",)
"""Families whose loader converts other products than low-rank ones."""
NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
"""Parts of keys that FLUX's loader treats as whole norms."""

RANKED = (".q_proj", ".k_proj", ".v_proj", ".out_proj", ".fc1", ".fc2")
"""Text encoders' layers whose ranks it looks up; without one it fails."""
CONVERTIBLE = ("Linear", "Conv2d")

DOWN = (".lora_down.weight", ".lora_A.weight", ".down.weight", ".lora_A.default.weight")
UP = (".lora_up.weight", ".lora_B.weight", ".up.weight", ".lora_B.default.weight")


class Tracked(torch.Tensor):
    """A stand-in that records the keys of the file that it was made from."""

    origins: frozenset[str] = frozenset()

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        leaves = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tracked))
        origins = frozenset[str]().union(*(leaf.origins for leaf in leaves))
        return tree_map(lambda leaf: _with(leaf, origins), found)


def loading(tensors: Mapping[str, Tensor], family: str) -> Loading:
    """What it reads of the file in a pipeline of the family."""
    if any(".lokr_" in key and ("lora" in key or family in READS_LOKR) for key in tensors):
        return Loading(unjudged="how diffusers reads this kind of file (LoKr) is not modelled")
    mixin = _mixin(family)
    with torch.no_grad():
        try:
            read = {key for _, tensor in _found(mixin, tensors, family) for key in tensor.origins}
        except Exception as error:  # any exception of diffusers is what its user would see
            return Loading(raises=f"{type(error).__name__}: {_first_words(str(error))}")
    is_flux = mixin.__name__ == MIXINS["flux"]
    if not is_flux or not _passes_alphas_over(tensors):
        names = {key.rpartition(".lora")[0] or key.partition(".")[0] for key in read}
        read |= {key for key in tensors if key.removesuffix(keys.KOHYA.alpha) in names}
    return Loading(frozenset(read), own_alphas=is_flux)


def _passes_alphas_over(tensors: Mapping[str, Tensor]) -> bool:
    """Whether FLUX's loader reads the pairs of the file but not their alphas."""
    return any(keys.KOHYA.down in key for key in tensors) and any(key.startswith("transformer.") for key in tensors)


def targets(tensors: Mapping[str, Tensor], family: str) -> set[str]:
    """The pairs of the pipeline, as "network.path", that it sets. Raises what diffusers raises."""
    with torch.no_grad():
        return {target for target, _ in _found(_mixin(family), tensors, family)}


def _mixin(family: str) -> Any:
    return vars(diffusers_source.lora_pipeline())[MIXINS[family]]


def _found(mixin: Any, tensors: Mapping[str, Tensor], family: str) -> list[tuple[str, Tracked]]:
    """The layers of the pipeline that receive tensors, and which."""
    given: dict[str, Any] = {key: _stand_in(key, tensor) for key, tensor in tensors.items()}
    more = {"unet_config": SimpleNamespace(layers_per_block=2)} if len(ENCODERS[family]) == 2 else {}
    is_flux = mixin.__name__ == MIXINS["flux"]
    state = mixin.lora_state_dict(given, **(more if "unet" in mixin._lora_loadable_modules else {}),
                                  **({"return_alphas": True} if is_flux else {}))
    state = state[0] if isinstance(state, tuple) else state
    fits = any("lora" in key or any(norm in key for norm in NORMS) for key in state) if is_flux else all(
        "lora" in key for key in state)
    if not fits:
        raise ValueError("Invalid LoRA checkpoint")
    network, *others = (name for name in mixin._lora_loadable_modules if not name.startswith("text_encoder"))
    found = _whole_norms(state, network, family) if is_flux else []
    for one in (network, *others):
        found += _in_denoiser(_part(state, one), one, family, is_flux)
    for encoder in ENCODERS[family]:
        found += _in_text_encoder(_part(state, encoder), encoder, family)
    return found


def _part(state: dict[str, Tracked], network: str) -> dict[str, Tracked]:
    return {key.removeprefix(f"{network}."): tensor for key, tensor in state.items() if key.startswith(f"{network}.")}


def _whole_norms(state: dict[str, Tracked], network: str, family: str) -> list[tuple[str, Tracked]]:
    """Norms that replace the transformer's; they are removed from `state`."""
    known = {f"{network}.{path}.weight" for path in _kinds(family, network)}
    norms = {key: state.pop(key) for key in list(state) if key.startswith(f"{network}.")
             and any(norm in key for norm in NORMS)}
    return [(key.removesuffix(".weight"), tensor) for key, tensor in norms.items() if key in known]


def _in_denoiser(
    state: dict[str, Tracked], network: str, family: str, is_flux: bool
) -> list[tuple[str, Tracked]]:
    if not state:
        return []
    kinds = _kinds(family, network)
    if is_flux:  # its shapes are compared before
        for name in (key.removesuffix(keys.PEFT.down) for key in state if key.endswith(keys.PEFT.down)):
            if name in kinds and name + keys.PEFT.up not in state:
                raise KeyError(name + keys.PEFT.up)
            if name not in kinds and any(path.startswith(f"{name}.") for path in kinds):  # a block is not a layer
                raise KeyError(f"{name}.weight")
    if "lora_A" not in next(iter(state)):
        state = diffusers_source.state_dicts().convert_unet_state_dict_to_peft(state)
    if not any("lora_B" in key and tensor.ndim > 1 for key, tensor in state.items()):
        raise IndexError("list index out of range")
    modules = {key.rsplit(".lora_", 1)[0] for key in state} & kinds.keys()
    return _placed(state, modules, kinds, network)


def _in_text_encoder(state: dict[str, Tracked], network: str, family: str) -> list[tuple[str, Tracked]]:
    if not state:
        return []
    level, own = "text_model.", diffusers_source.state_dicts()
    state = own.convert_state_dict_to_peft(own.convert_state_dict_to_diffusers(state))
    kinds = _kinds(family, network)
    if (family, network) in FLAT:
        state = {key.removeprefix(level): tensor for key, tensor in state.items()}
        kinds = {path.removeprefix(level): kind for path, kind in kinds.items()}
    if not any(f"{path}{keys.PEFT.up}" in state for path in kinds if path.endswith(RANKED)):
        raise IndexError("list index out of range")
    asked = {key.split(".lora")[0] for key in state}
    ends = tuple(f".{name}" for name in asked)
    modules = {path for path in kinds if path in asked or path.endswith(ends)}
    return _placed(state, modules, kinds, network)


def _placed(
    state: dict[str, Tracked], modules: set[str], kinds: dict[str, str], network: str
) -> list[tuple[str, Tracked]]:
    """What peft puts into the pairs that it makes for these modules."""
    if not modules:
        raise ValueError("Target modules not found in the base model")
    for path in sorted(modules):
        if kinds[path] not in (*CONVERTIBLE, "Embedding"):
            raise ValueError(f"Target module {kinds[path]}() is not supported")
    suffixes = [keys.PEFT.down, keys.PEFT.up]
    suffixes += [".lora_B.bias"] if any("lora_B" in key and key.endswith(".bias") for key in state) else []
    if any("lora_magnitude_vector" in key for key in state):
        suffixes += [keys.PEFT.magnitude, keys.PEFT.magnitude.removesuffix(".weight")]
    return [(f"{network}.{path}", state[path + suffix]) for path in sorted(modules) if kinds[path] in CONVERTIBLE
            for suffix in suffixes if path + suffix in state]


def _kinds(family: str, network: str) -> dict[str, str]:
    """The classes of a network's modules by path."""
    return {layer.path: layer.kind for layer in published.layers(family) if layer.network == network}


def _stand_in(key: str, tensor: Tensor) -> Tracked:
    """With the tensor's shape, but of rank 1, and its value where it has only one."""
    shape = list(tensor.shape)
    if len(shape) > 1 and key.endswith(DOWN):
        shape[0] = 1
    if len(shape) > 1 and key.endswith(UP):
        shape[1] = 1
    is_pair = key.endswith((*DOWN, *UP))
    zeros = torch.zeros(shape if is_pair else (), dtype=tensor.dtype)  # whole matrices are not written to
    value = tensor.detach().clone() if tensor.numel() == 1 else zeros if is_pair else zeros.expand(shape)
    return _with(value.as_subclass(Tracked), frozenset((key,)))


def _with(leaf: Any, origins: frozenset[str]) -> Any:
    if isinstance(leaf, Tracked):
        leaf.origins = origins
    return leaf


def _first_words(text: str) -> str:
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= 120 else f"{line[:117]}..."
