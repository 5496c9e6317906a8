"""Samples by the denoiser of another base, in a pipeline with the other parts of a loaded model (`samples.base`)."""

import re
from pathlib import Path
from typing import Any

import torch

from modules.documents import is_folder
from modules.families.parts import files, given_base
from modules.families.parts.components import component_class, pickle_problems
from modules.families.parts.loading import component, with_buffers
from modules.families.parts.names import DENOISER
from modules.families.parts.original import misfit, packed_problems, read_weights
from modules.families.parts.split import DENOISERS, described, kind_of
from modules.preset.base_options import Base
from modules.tensorfile import read_header

OPTION = "samples.base"


def problems(model: Any, path: str) -> list[str]:
    """Why `model`, which may be on the meta device and has no adapters yet, cannot draw with the denoiser of the base
    at `path`, in sentences that begin with the option."""
    kind = type(model)
    found = given_base.problems(Base(path=path), files.INDEX, kind.HUB_ID)
    if not found:
        try:
            found = _of_file(model, Path(path)) if Path(path).is_file() else _of_folder(model, path)
        except ValueError as error:
            found = [f"{OPTION}: {error}"]
        except OSError:
            found = []  # of the hub; drawing reports it
    return [re.sub(r"^base\.path(?=:)", OPTION, one).replace("--base ", f"--{OPTION} ") for one in found]


def _of_file(model: Any, path: Path) -> list[str]:
    header, network = read_header(path), model.networks[model.DENOISER]
    own = {name for name in header.tensors if name.startswith(DENOISER)} or set(header.tensors)
    if kind_of(header.tensors) not in (DENOISERS, "") or not model.recognises(own):
        return [f"{OPTION}: {path} is not {model.TITLE} but {described(header.tensors)}; give a {model.DENOISER} of "
                "the family that is trained"]
    if found := packed_problems(OPTION, path):
        return found
    source = model.denoiser_source(path, header.tensors)
    said = misfit(network, header, source.places, source.whole, source.unused)
    return [f"{OPTION}: {path} is another model than base.path: {said}"] if said else []


def _of_folder(model: Any, path: str) -> list[str]:
    name = model.DENOISER
    found = model.index_problems("base.path", path)
    found = found or (pickle_problems(Path(path), (name,)) if is_folder(Path(path)) else [])
    if found:
        return found
    kind = component_class(model.index(path)[name], name, path)
    theirs, ours = (network.state_dict() for network in (component(kind, name, path), model.networks[name]))
    odd = next((one for one in {**ours, **theirs} if one not in ours or one not in theirs
                or ours[one].shape != theirs[one].shape), None)
    if odd is None:
        return []
    there, here = (f"{tuple(state[odd].shape)}" if odd in state else "none" for state in (theirs, ours))
    return [f"{OPTION}: {path} is another model than base.path: its {name} has {odd} as {there}, and that of base.path "
            f"as {here}"]


def with_denoiser(model: Any, base: Base, path: str, dtype: torch.dtype) -> Any:
    """A model that draws with the denoiser of the base at `path`, which is loaded into main memory, frozen, and that
    shares its other parts with `model`, whose own base is `base`. Steps are taken as `path` says: a folder in its
    index and scheduler, a file in its name. Raises ValueError naming the option."""
    kind, name = type(model), model.DENOISER
    is_file = Path(path).is_file()
    source = kind.source(base) if is_file else path

    def part(found: Any, one: str) -> Any:
        if one == name:
            return _emptied(model.networks[name]) if is_file else found.from_pretrained(
                path, subfolder=name, dtype=dtype, use_safetensors=True)
        return found.from_pretrained(source, subfolder=one) if one == "scheduler" else model.pipeline.components[one]

    try:
        pipeline = kind.assembled(source, part)
        kind.as_named(pipeline, path)
        drawn = kind(pipeline, model.device)
        if is_file:
            places = drawn.denoiser_source(Path(path), read_header(Path(path)).tensors)
            read_weights(drawn.networks[name], Path(path), places.places, dtype, places.whole, places.unused)
        files.refuse_gaps({name: drawn.networks[name]})
    except Exception as error:  # noqa: BLE001  diffusers raises anything for values of wrong kinds in its files
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{OPTION}: {path} could not be loaded as {model.TITLE}: {said}") from error
    pipeline.set_progress_bar_config(disable=True)
    drawn.networks[name].requires_grad_(False).eval()
    drawn.share_released(model)
    return drawn


def _emptied(network: Any) -> Any:
    """A network of the same configuration without weights."""
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        empty = type(network).from_config(network.config)
    return with_buffers(empty)
