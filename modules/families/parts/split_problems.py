"""What can be wrong with a base in files: a file and its parts, text encoders and VAEs in files of their own."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from modules.families.parts import files, given_base
from modules.families.parts.names import DENOISER
from modules.families.parts.original import packed_problems
from modules.families.parts.split import DENOISERS, described, kind_of
from modules.preset.base_options import Base
from modules.tensorfile import A_PICKLE, PICKLES, read_header

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "diffusion_pytorch_model.safetensors",
           "diffusion_pytorch_model.safetensors.index.json")
"""Files of which a part's folder has one if it has weights."""


def of_given(base: Base) -> list[str]:
    """Whether the files of text encoders and the VAE can be read."""
    given = [*(("base.texts", name) for name in base.texts), *([("base.vae", base.vae)] if base.vae else [])]
    for option, name in given:
        path = Path(name)
        if path.suffix in PICKLES:
            return [f"{option}: {path} is not a .safetensors file but {A_PICKLE}; convert it to .safetensors in a "
                    "sandbox"]
        if not path.is_file():
            return [f"{option}: {path} {'is a folder' if path.is_dir() else 'does not exist'}; give a .safetensors "
                    "file"]
        if found := given_base.unread_problems(option, path):
            return found
        try:
            names = read_header(path).tensors
        except ValueError as error:
            return [f"{option}: {error}"]
        if found := packed_problems(option, path):
            return found
        if len(names) == 0:
            return [f"{option}: {path} has no tensors"]
    return []


def not_a_vae(model: Any, base: Base, names: Collection[str]) -> str:
    """The sentence about a file without a VAE of the family's kind."""
    found = described(names)
    is_other = found.startswith("a VAE")
    said = f"has {found}, which is not that of {model.TITLE}" if is_other else f"is not a VAE but {found}"
    return f"base.vae: {base.vae} {said}; give a file such as {model.VAE_FILE}"


def of_file(model: Any, base: Base) -> list[str]:
    """What `base.path`, a file, and the configuration beside it lack, as far as names tell. `model`: a family's class.
    """
    names = files.tensor_names(base.path) or set()
    if found := of_content(model, base):
        return found
    if base.config and (found := model.index_problems("base.config", base.config)):
        return found
    hub = model.hub_id(base.path)
    found = files.config_problems(base, (model.INDEX, *model.configs(base)), hub)
    if found and not base.config and is_alone(model, names):
        found = [f"base.config: {base.path} has only the {_word(model)}; the configuration of its other parts is that "
                 f"of {hub}, which is not in the hub's local cache, and the hub cannot be reached; give --base.config "
                 "with a folder in diffusers layout that has it, and their weights unless base.texts and base.vae have"]
    return found or model.variant_problems(base, names)


def of_content(model: Any, base: Base) -> list[str]:
    """Whether `base.path`, a file, has the denoiser, and the other parts as far as those may not come from elsewhere.
    """
    names = files.tensor_names(base.path)
    if names is None:
        return files.checkpoint_problems(base.path, model.TITLE, model.PARTS)
    parts = model.parts_in(names)
    first, *others = parts
    is_whole = not names.isdisjoint(others)
    own = {name for name in names if name.startswith(DENOISER)} or names  # a VAE's names are like those of a UNet
    denoiser = first in names if is_whole else kind_of(names) in (DENOISERS, "") and model.recognises(own)
    if not denoiser and (model.PARTIAL or not is_whole):
        how = f"give a file such as {model.FILE}" if model.FILE else f"give a file with {parts[first]}"
        return [f"base.path: {base.path} is not {model.TITLE}: it has no {_word(model)} of this kind, but is "
                f"{described(names)}; {how}, or a folder in diffusers layout"]
    if found := packed_problems("base.path", Path(base.path)):
        return found
    if not is_whole or model.PARTIAL:
        return []
    given = given_parts(model, base)
    return files.checkpoint_problems(base.path, model.TITLE, {
        mark: words for part, (mark, words) in zip(model.parts(), parts.items(), strict=True) if part not in given})


def given_parts(model: Any, base: Base) -> set[str]:
    """The parts that may be in files of their own, by the kinds of the files."""
    contents = [read_header(Path(name)).tensors for name in base.texts]
    texts = {part for part, kind in model.TEXT_FILES.items() if any(kind.is_in(names) for names in contents)}
    return {*texts, *(["vae"] if base.vae else [])}


def is_alone(model: Any, names: Collection[str]) -> bool:
    """Whether a file has the denoiser and no other part."""
    return not any(mark in names for mark in list(model.parts_in(names))[1:])


def _word(model: Any) -> str:
    """The denoiser in words."""
    return "UNet" if model.DENOISER == "unet" else model.DENOISER


def of_lacking(model: Any, base: Base, parts: Sequence[str]) -> list[str]:
    """Parts whose weights are in no file, and not beside the configuration either."""
    from huggingface_hub import try_to_load_from_cache

    source, names = model.source(base), files.tensor_names(base.path) or set()
    wanted = {part: [f"{part}/{name}" for name in WEIGHTS] for part in parts}
    if base.config:
        here = {part: any((Path(source) / name).is_file() for name in all_) for part, all_ in wanted.items()}
    else:
        here = {part: any(isinstance(try_to_load_from_cache(source, name), str) for name in all_)
                for part, all_ in wanted.items()}
    absent = [part for part in parts if not here[part]]
    if not absent or not base.config and not given_base.problems(Base(path=source), f"{absent[0]}/none", source):
        return []
    where = f"base.config {base.config} has no weights of {', '.join(absent)}" if base.config else (
        f"{source} has no weights of {', '.join(absent)} in the hub's local cache, and the hub cannot be reached")
    words = dict(zip(model.parts(), model.parts_in(names).values(), strict=True))
    said = ", ".join(words[part] for part in absent)
    lacks = f"has only the {_word(model)}" if is_alone(model, names) else f"lacks {said}"
    without = [f"for no {words[part].partition('(')[2].rstrip(')') or part}, set {part} to [null, null] in its "
               f"{model.INDEX}" for part in absent if part in model.OPTIONAL and base.config]
    return ["; ".join([f"base.path: {base.path} {lacks}, and {where}", _how(model, absent), *without])]


def _how(model: Any, absent: Sequence[str]) -> str:
    """What to give for parts without weights."""
    texts = [model.TEXT_FILES[part].title for part in absent if part in model.TEXT_FILES]
    ways = [f"--base.texts with {' and '.join(texts)}"] if texts else []
    ways += ["--base.vae with its VAE's file"] if "vae" in absent else []
    other = "a folder in diffusers layout that has weights in " + ", ".join(absent)
    return f"give {' and '.join(ways)}, or --base.config with {other}" if ways else f"give --base.config with {other}"
