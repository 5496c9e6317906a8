"""Files for A1111, sd-scripts and LyCORIS: kohya's names with the textbook norm, that of the adapted weight."""

from torch import Tensor

from modules.adapters.layers import Layer
from modules.export import comfyui, keys
from modules.export.forms import Host, Update
from modules.preset.schema import Export

NAMES = keys.KOHYA


def notes(forms: set[str]) -> list[str]:
    """Which of the programs read the file."""
    found = []
    if any("input magnitude" in form for form in forms):
        found.append("A1111, Forge and ComfyUI read the input magnitudes exactly; LyCORIS refuses such a file, and "
                     "sd-scripts ignores the magnitudes")
    if any("output magnitude" in form for form in forms):
        found.append("LyCORIS reads the output magnitudes exactly; A1111 and ComfyUI compute them with another norm "
                     "(for ComfyUI use export.host comfyui), and sd-scripts ignores them")
    if any("difference" in form for form in forms):
        found.append("A1111 and LyCORIS read the full differences; sd-scripts does not")
    return found


HOST = Host("kohya", ("linear", "conv"), comfyui.holds, True, notes)


def tensors(update: Update, layer: Layer, W: Tensor, options: Export, magnitudes: bool) -> dict[str, Tensor]:
    """The update's tensors by suffix. Magnitudes are not compensated."""
    return comfyui.assemble(update, layer, W, update.magnitude)
