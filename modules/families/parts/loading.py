"""Loading a model around a diffusers pipeline: from a folder, from the hub, from a file, or from a file for each part.

Each part's weights come from the file that is given for it, else from `base.path`, if that has them, else from the
folder, or the hub's model, that the configuration is read from.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from modules.documents import is_folder
from modules.families.parts import files, given_base, split_problems
from modules.families.parts.components import AnotherKind, component_class, is_part, pickle_problems, read_index
from modules.families.parts.index import INDEX
from modules.families.parts.names import DENOISER, PREFIXES, Named, Place
from modules.families.parts.original import Places, misfit, read_weights
from modules.families.parts.split import VAE_MARKS, Source, TextFile, text_sources, vae_place, vae_places
from modules.preset.base_options import Base
from modules.tensorfile import read_header

if TYPE_CHECKING:
    from typing import Self


class Loaded(Named):
    """The part of a model about its files; see `families.base.Model` for what each part means."""

    TITLE: ClassVar[str]
    """In sentences: "an SDXL model"."""
    HUB_ID: ClassVar[str]
    """The usual base on the hub."""
    PIPELINE: ClassVar[str]
    """Name of the class in diffusers."""
    INDEX: ClassVar[str] = INDEX
    """The file that identifies a folder in diffusers layout."""
    OPTIONS: ClassVar[dict[str, Any]] = {}
    """For making the pipeline in any way: what it has besides the parts below."""
    DENOISER: ClassVar[str]
    """Name of the denoiser in the pipeline."""
    TEXT_ENCODERS: ClassVar[tuple[str, ...]]
    """Names of the text encoders in the pipeline, in order. One that is None there is left out."""
    PARTS: ClassVar[dict[str, str]]
    """One tensor of each part of a single-file checkpoint, in the original naming, and the part in words: the denoiser,
    the text encoders, the VAE. A file with the denoiser alone has the first one with or without its prefix."""
    CONFIGS: ClassVar[tuple[str, ...]]
    """Files that a folder of configurations needs besides the index."""
    VAE_DTYPE: ClassVar[torch.dtype] = torch.float32
    FILE: ClassVar[str] = ""
    """The usual file with the denoiser, as an example in sentences; "" where there are many."""
    VAE_FILE: ClassVar[str] = "ae.safetensors"
    """The same of a file with the VAE alone."""
    VAE_MARKS: ClassVar[tuple[str, str]] = VAE_MARKS
    """A tensor of the VAE in the original naming, and in diffusers'."""
    TEXT_FILES: ClassVar[dict[str, TextFile]] = {}
    """The kind of file that has a text encoder alone, by its name in the pipeline."""
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Parts that the pipeline may be without."""
    PARTIAL: ClassVar[bool] = False
    """Whether checkpoints with some of the other parts are published, not only with all of them or none."""
    IDENTITIES: ClassVar[tuple[str, ...]] = ()
    """Tensors that no file has, or that it has and no program uses: they are the identity."""
    UNUSED: ClassVar[str] = ""
    """A pattern of the names of tensors, behind the prefix, that a file with the denoiser may have besides and that
    nothing uses. A file with others, or with further blocks, is refused as another model."""

    def __init__(self, pipeline: Any, device: torch.device):
        self.pipeline, self.device = pipeline, device

    # -- what a family may override -----------------------------------------------------------------------------------

    @classmethod
    def hub_id(cls, path: str) -> str:
        """The model on the hub whose configuration the file at `path` has."""
        return cls.HUB_ID

    @classmethod
    def parts_in(cls, names: Collection[str]) -> dict[str, str]:
        """`PARTS` of a file with tensors of these names."""
        return cls.PARTS

    @classmethod
    def configs(cls, base: Base) -> tuple[str, ...]:
        """`CONFIGS` for this base."""
        return cls.CONFIGS

    @classmethod
    def pipeline_name(cls, source: str) -> str:
        """`PIPELINE`, for the folder, or the hub's model, `source`."""
        return cls.PIPELINE

    @classmethod
    def variant_problems(cls, base: Base, names: Collection[str]) -> list[str]:
        """Whether `base.config` is of another variant of the family than a file with tensors of these names."""
        return []

    @classmethod
    def as_named(cls, pipeline: Any, path: str, configured: bool = False) -> None:
        """Set the pipeline up for the variant that the name of the base at `path` says, where tensors do not.
        `configured`: the user has said where its configuration is (`base.config`)."""

    def vae_original(self, path: str, kind: str) -> Place:
        """Where original checkpoints have a tensor of the VAE, behind its prefix."""
        return vae_place(path, kind, len(self.pipeline.vae.config.block_out_channels))

    # -- what is wrong ------------------------------------------------------------------------------------------------

    @classmethod
    def problems(cls, base: Base) -> list[str]:
        """Why `load` cannot work, as sentences."""
        found = given_base.problems(base, cls.INDEX, cls.HUB_ID) or split_problems.of_given(base)
        if found:
            return found
        if is_folder(Path(base.path)):
            parts = [part for part in cls.parts() if part not in split_problems.given_parts(cls, base)]
            found = cls.index_problems("base.path", base.path) or pickle_problems(Path(base.path), parts)
        elif Path(base.path).is_file():
            try:
                found = split_problems.of_file(cls, base)
            except ValueError as error:
                found = [f"base.config: {error}"]  # of a damaged configuration
        else:
            found = cls.index_problems("base.path", base.path)
        return found or cls._fit_problems(base)

    @classmethod
    def index_problems(cls, option: str, source: str) -> list[str]:
        """What is wrong with the index of the folder, or of the hub's model, `source`, in sentences."""
        try:
            cls.index(source)
        except AnotherKind as error:
            return [f"{option}: {error}"]
        except ValueError as error:
            return [f"{option}: {error}; give a complete copy"]
        except OSError:
            return []  # of the hub; whoever matches layers reports it
        return []

    @classmethod
    def _fit_problems(cls, base: Base) -> list[str]:
        """Whether the files have what the configuration says, and whether all parts have weights."""
        if not in_files(base):
            return []
        try:
            model = cls.skeleton(base)
        except ValueError:
            return []  # whoever matches layers reports it
        try:
            sources = model.sources(base)
        except ValueError as error:
            return [f"{error}"]
        source = cls.source(base)
        for part, one in sources.items():
            network, header = model.pipeline.components[part], read_header(one.path)
            if said := misfit(network, header, one.places, one.whole, one.unused):
                return [f"{one.option}: {one.path}: {said}, by the configuration of {source}; give a file of the same "
                        "model, or its configuration"]
        lacking = [part for part in cls.parts() if part not in sources and model.pipeline.components[part] is not None]
        return split_problems.of_lacking(cls, base, lacking) if Path(base.path).is_file() else []

    # -- where parts are ----------------------------------------------------------------------------------------------

    @classmethod
    def parts(cls) -> tuple[str, ...]:
        """Names of the parts that have weights, in the order of `PARTS`."""
        return (cls.DENOISER, *cls.TEXT_ENCODERS, "vae")

    @classmethod
    def source(cls, base: Base) -> str:
        """The folder, or the hub's model, with the configuration, and with the weights that are not in files."""
        return base.config or cls.hub_id(base.path) if Path(base.path).is_file() else base.path

    @classmethod
    def marked(cls, names: Collection[str]) -> list[str]:
        """The denoiser, and the other parts that a file with tensors of these names has."""
        marks = list(cls.parts_in(names))[1:]
        return [cls.DENOISER, *(part for part, mark in zip(cls.parts()[1:], marks, strict=True) if mark in names)]

    def sources(self, base: Base) -> dict[str, Source]:
        """The files that are given, by the part whose weights are read from them. Raises ValueError with a sentence for
        a file that has none."""
        found = self._in_checkpoint(Path(base.path)) if Path(base.path).is_file() else {}
        networks = {name: self.networks[name] for name in self.TEXT_FILES if name in self.networks}
        found |= text_sources(base.texts, networks, self.TEXT_FILES, self.TITLE)
        if base.vae:
            names = read_header(Path(base.vae)).tensors
            places = vae_places(self.pipeline.vae, names, self.vae_original, self.VAE_MARKS)
            if places is None:
                raise ValueError(split_problems.not_a_vae(self, base, names))
            found["vae"] = Source("base.vae", Path(base.vae), places)
        return {part: replace(one, places=self._with_identities(part, one.places)) for part, one in found.items()}

    def _with_identities(self, part: str, places: Places) -> Places:
        return {name: "identity" if f"{part}.{name}" in self.IDENTITIES else place for name, place in places.items()}

    def _in_checkpoint(self, path: Path) -> dict[str, Source]:
        """The same of `base.path`."""
        names = read_header(path).tensors
        found = {self.DENOISER: self.denoiser_source(path, names)}
        for part in self.marked(names)[1:]:
            if part != "vae" and part not in self.networks:
                continue
            if part == "vae":
                places = vae_places(self.pipeline.vae, names, self.vae_original, self.VAE_MARKS)
                assert places is not None  # it has the mark
            else:
                split = {name: name.rpartition(".") for name in self.networks[part].state_dict()}
                places = {name: self.checkpoint_place(f"{part}.{inside}", kind)
                          for name, (inside, _, kind) in split.items()}
            found[part] = Source("base.path", path, places)
        return found

    def denoiser_source(self, path: Path, names: Collection[str]) -> Source:
        """The denoiser's places in a file, in the original naming or in diffusers'."""
        split = {name: name.rpartition(".") for name in self.networks[self.DENOISER].state_dict()}
        prefix = original_prefix(names, next(iter(self.PARTS)))
        if prefix is not None and not all(prefix + name in names for name in split):
            ours = {name: self.original(self.DENOISER, inside, kind) for name, (inside, _, kind) in split.items()}
            places = {name: replace(place, name=prefix + place.name) for name, place in ours.items()}
        else:
            known = {one: sum(one + name in names for name in split) for one in ("", f"{self.DENOISER}.", DENOISER)}
            prefix = max(known, key=known.__getitem__)
            places = {name: Place(prefix + name) for name in split}
        return Source("base.path", path, places, prefix, self.UNUSED)

    # -- loading ------------------------------------------------------------------------------------------------------

    @classmethod
    def pipeline_class(cls, source: str = "") -> Any:
        """diffusers' class, for the folder, or the hub's model, `source`."""
        return resolve_name(f"diffusers:{cls.pipeline_name(source)}")

    @classmethod
    def index(cls, source: str) -> dict[str, Any]:
        """The index of parts of the folder, or of the hub's model, `source`; checked, or ValueError."""
        return read_index(cls.pipeline_class(source), source, cls.OPTIONS, cls.INDEX)

    @classmethod
    def load(cls, base: Base, device: torch.device, dtype: torch.dtype, pictures: bool = True) -> Self:
        """The frozen pipeline in main memory. The VAE gets its own dtype if `pictures`, else the stored one."""
        try:
            pipeline = cls.read_file(base, dtype) if Path(base.path).is_file() else cls.read_folder(base, dtype)
            cls.as_named(pipeline, base.path, bool(base.config))
            model = cls(pipeline, device)
            files.refuse_gaps({**model.networks, "vae": pipeline.vae})
        except Exception as error:  # noqa: BLE001  diffusers raises anything for values of wrong kinds in its files
            raise ValueError(f"base.path: {base.path} could not be loaded as {cls.TITLE}: {_said(error)}") from error
        pipeline.set_progress_bar_config(disable=True)
        for network in (*model.networks.values(), pipeline.vae.to(cls.VAE_DTYPE) if pictures else pipeline.vae):
            network.requires_grad_(False).eval()
        return model

    @classmethod
    def read_file(cls, base: Base, dtype: torch.dtype) -> Any:
        """The pipeline of a file, and of what is given besides."""
        if found := split_problems.of_content(cls, base):
            raise ValueError(found[0].removeprefix("base.path: "))
        return cls._part_by_part(base, dtype)

    @classmethod
    def _part_by_part(cls, base: Base, dtype: torch.dtype) -> Any:
        """The pipeline of what is given in files; other parts with the weights beside the configuration, and nothing
        else of that."""
        source = cls.source(base)
        given = cls._read_given(base, dtype)

        def part(found: Any, name: str) -> Any:
            if name in given or found is None:
                return given.get(name)
            options = {"dtype": dtype, "use_safetensors": True} if name in cls.parts() else {}
            return found.from_pretrained(source, subfolder=name, **options)

        return cls.assembled(source, part)

    @classmethod
    def read_folder(cls, base: Base, dtype: torch.dtype) -> Any:
        """The pipeline of a folder or of the hub's model, without the parts that its index does not have."""
        absent = {name: None for name, kind in cls.index(base.path).items() if kind == [None, None]}
        given = {**absent, **cls.OPTIONS, **cls._read_given(base, dtype)}
        return cls.pipeline_class(base.path).from_pretrained(base.path, dtype=dtype, use_safetensors=True, **given)

    @classmethod
    def _read_given(cls, base: Base, dtype: torch.dtype) -> dict[str, Any]:
        """The networks whose weights are in files."""
        if not in_files(base):
            return {}
        model, source = cls.skeleton(base), cls.source(base)
        networks = {}
        for name, one in model.sources(base).items():
            networks[name] = with_buffers(model.pipeline.components[name])
            try:
                read_weights(networks[name], one.path, one.places, dtype, one.whole, one.unused)
            except ValueError as error:
                raise ValueError(f"{error} (by the configuration of {source})") from error
        return networks

    @classmethod
    def files_of(cls, base: Base) -> dict[str, Path]:
        """The files that `load` reads, by part."""
        path, given = Path(base.path), {"vae": Path(base.vae)} if base.vae else {}
        if base.texts:
            try:
                given |= {part: one.path for part, one in cls.skeleton(base).sources(base).items()
                          if one.option == "base.texts"}
            except ValueError:  # loading reports what is wrong
                given |= {f"text {number}": Path(name) for number, name in enumerate(base.texts)}
        whole = cls.marked(files.tensor_names(base.path) or ()) if path.is_file() else []
        others = [part for part in cls.parts() if part not in (*given, *whole)]
        found = files.files_of_parts(cls.source(base), cls.OPTIONS, others, cls.INDEX)
        return found | given | ({"checkpoint": path} if path.is_file() else {})

    @classmethod
    def skeleton(cls, base: Base) -> Self:
        """The networks on the meta device, from the configuration files alone."""
        try:
            pipeline = cls.skeleton_pipeline(cls.source(base))
            cls.as_named(pipeline, base.path, bool(base.config))
            return cls(pipeline, torch.device("meta"))
        except Exception as error:  # noqa: BLE001  as in `load`
            raise ValueError(_said(error)) from error

    @classmethod
    def skeleton_pipeline(cls, source: str) -> Any:
        """The pipeline on the meta device, from the configuration in the folder, or of the hub's model, `source`."""
        return cls.assembled(source, lambda found, name: component(found, name, source))

    @classmethod
    def assembled(cls, source: str, part: Callable[[Any, str], Any]) -> Any:
        """The pipeline of parts that `part` makes, of a class or None and a name, with the index' other values."""
        found, where = cls.index(source), source
        taken = inspect.signature(cls.pipeline_class(source).__init__).parameters
        kinds = {name: component_class(kind, name, where) for name, kind in found.items()
                 if is_part(kind) and name in taken and name not in cls.OPTIONS}
        values = {name: value for name, value in found.items() if name in taken and not is_part(value)}
        parts = {name: part(kind, name) for name, kind in kinds.items()}
        return cls.pipeline_class(source)(**{**values, **parts, **cls.OPTIONS})


def in_files(base: Base) -> bool:
    """Whether any weights are in files of their own, beside a folder in diffusers layout."""
    return bool(Path(base.path).is_file() or base.texts or base.vae)


def original_prefix(names: Collection[str], mark: str) -> str | None:
    """What the denoiser's names begin with in a file in the original naming; `mark`: one of them in a whole checkpoint.
    None: the file has no such tensor."""
    core = mark.removeprefix(DENOISER)
    return next((prefix for prefix in PREFIXES if prefix + core in names), None)


def _said(error: Exception) -> str:
    """The message of a library's error, in one line that begins with its class where it is not a sentence."""
    text = " ".join(str(error).split()) or "no reason given"
    return text if isinstance(error, ValueError | OSError | RuntimeError) else f"{type(error).__name__}: {text}"


def component(found: Any, name: str, source: str) -> Any:
    """Part `name` of a pipeline, of class `found` if any; networks without weights, on the meta device."""
    from diffusers import ModelMixin
    from transformers import PreTrainedModel
    from transformers.initialization import no_init_weights

    if found is None:
        return None
    is_network, is_text = issubclass(found, ModelMixin), issubclass(found, PreTrainedModel)
    if not is_network and not is_text:
        return found.from_pretrained(source, subfolder=name)
    with torch.device("meta"), no_init_weights():  # torch would decompose each random number that nobody reads
        if is_network:
            return found.from_config(found.load_config(source, subfolder=name))
        return found(found.config_class.from_pretrained(source, subfolder=name))


def with_buffers(network: Any) -> Any:
    """A network on the meta device, or the same with the buffers, and other tensors, that no file has."""
    from accelerate import init_empty_weights
    from transformers import PreTrainedModel
    from transformers.initialization import no_init_weights

    stored = network.state_dict().keys()
    beside = any(isinstance(value, torch.Tensor) for module in network.modules() for value in vars(module).values())
    if not beside and all(name in stored for name, _ in network.named_buffers()):
        return network
    with init_empty_weights(include_buffers=False), no_init_weights():
        make = type(network) if isinstance(network, PreTrainedModel) else type(network).from_config
        whole = make(network.config)
    if whole.state_dict().keys() == stored:
        return whole
    for name in [name for name, _ in network.named_buffers() if name not in stored]:  # parts of it have been taken out
        owner, _, buffer = name.rpartition(".")
        network.get_submodule(owner).register_buffer(buffer, whole.get_buffer(name), persistent=False)
    return network
