"""Which files are pictures: formats that Pillow reads itself, and those for which it needs a plug-in."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import PurePath

from PIL import features

# Pillow recognises files by content; without such a list a PostScript file called .png would start Ghostscript.
OWN = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

FIRST_IS_THE_PICTURE = ("MPO", "HEIF")
"""Formats of cameras: what follows the first picture are previews of it, or further shots."""


@dataclass(frozen=True)
class PlugIn:
    """A package that teaches Pillow a format."""

    module: str
    package: str
    """What pip installs."""
    format: str
    """Pillow's name of the format."""
    register: str = ""
    """Its function that has to be called; empty where importing it is enough."""

    @property
    def is_installed(self) -> bool:
        return find_spec(self.module) is not None


HEIF = PlugIn("pillow_heif", "pillow-heif", "HEIF", "register_heif_opener")
JXL = PlugIn("pillow_jxl", "pillow-jxl-plugin", "JXL")
# Pillow has AVIF itself since version 11.3, but some distributions build it without.
AVIF = PlugIn("pillow_avif", "pillow-avif-plugin", "AVIF")

PLUG_INS = {".heic": HEIF, ".heif": HEIF, ".hif": HEIF, ".jxl": JXL, ".avif": AVIF}
"""By the files' suffix."""


def _is_readable(plug_in: PlugIn) -> bool:
    return plug_in.is_installed or plug_in is AVIF and bool(features.check("avif"))


SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(suffix for suffix, plug_in in PLUG_INS.items() if _is_readable(plug_in)),
)
"""Suffixes of picture files that can be read here, in lower case."""


def allowed(path: PurePath) -> tuple[str, ...]:
    """Pillow's names of the formats that a file may have: any of its own, and what its suffix says. Raises ValueError
    when the plug-in for that cannot be imported."""
    plug_in = PLUG_INS.get(path.suffix.lower())
    if plug_in is None or not _is_readable(plug_in):
        return OWN
    if plug_in.is_installed:
        _ready(plug_in)
    return (*OWN, plug_in.format)


@cache
def _ready(plug_in: PlugIn) -> None:
    try:
        module = import_module(plug_in.module)
    except ImportError as error:
        raise ValueError(
            f"the package {plug_in.package} cannot be imported ({error}); install it again with "
            f"pip install --force-reinstall {plug_in.package}"
        ) from error
    if plug_in.register:
        vars(module)[plug_in.register]()


def missing(suffixes: Iterable[str]) -> dict[str, list[str]]:
    """The packages that would have to be installed for files of these suffixes, with their suffixes."""
    packages: dict[str, list[str]] = {}
    for suffix in sorted(set(suffixes)):
        plug_in = PLUG_INS.get(suffix)
        if plug_in is not None and not _is_readable(plug_in):
            packages.setdefault(plug_in.package, []).append(suffix)
    return packages
