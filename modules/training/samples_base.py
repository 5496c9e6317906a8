"""Sample pictures by another base than the one that is trained (samples.base), with the adapters on it as they are.

Its denoiser is loaded when pictures are drawn. It is on the device, quantized and offloaded as the trained one, in the
place of that, which waits in main memory; and it is dropped afterwards. The trained base is moved and never written to,
the adapters' tensors stay where they are, and nothing is drawn from a random state: the training is the same with it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image

from modules.adapters.base import Adapted
from modules.adapters.derived import Derived
from modules.adapters.layers import as_layer
from modules.families.base import Caption, negative_of
from modules.preset.schema import Preset
from modules.training import layer_options, noise, setup, sharding
from modules.training.session import Session
from modules.training.text_groups import denoiser_off, frozen_parts, move

BYTES = {"none": 2.0, "fp8": 1.0, "int8": 1.0, "nf4": 0.516}
"""Of a weight on the device, with its share of the scales; 2 in half precision."""

SHARDED = ("samples.base: sample pictures of a sharded base can only be drawn with that; leave samples.base empty, or "
           "train in one process")


def look(preset: Preset, model: Any) -> tuple[list[str], list[str]]:
    """What is wrong with samples.base, and a note on memory, in sentences. Call it before adapters are attached."""
    samples = preset.samples
    if not samples.enabled or not samples.base:
        return [], []
    if sharding.is_wanted():
        return [SHARDED], []
    if problems := model.with_denoiser_problems(samples.base):
        return problems, []
    weights = sum(parameter.numel() for parameter in model.networks[model.DENOISER].parameters())
    kept, whole = (weights * BYTES[kind] / 2**30 for kind in (preset.base.quantization, "none"))
    return [], [f"samples.base: while {samples.base} draws, the {model.DENOISER} of base.path is in main memory, about "
                f"{kept:.1f} GiB, where the other is read each time, about {whole:.1f} GiB in half precision; on the "
                "device it takes the same place"]


def draw(
    session: Session, prompts: Sequence[Caption], negative: str, width: int, height: int, steps: int, guidance: float,
    seed: int,
) -> list[Image]:
    """`Model.sample` with the other base, with the adapters' parameters as they are now. Raises ValueError where it
    cannot be loaded."""
    texts = {negative, *prompts, *(negative_of(one, negative) for one in prompts)}
    known = {one: session.encode([one]) for one in texts}  # text encoders may be adapted, too
    preset, device = session.preset, session.accelerator.device
    with denoiser_off(session.model):
        drawn = session.model.with_denoiser(preset.base, preset.samples.base, setup.base_dtype(preset, device))
        network = next(iter(drawn.networks.values()))
        try:
            noise.prepare(drawn, preset.objective.model_copy(update={"shift": None}))  # it samples with its own
            drawn.use_references(preset.base, setup.reference_counts(preset))
            drawn.place(preset.base, texts=False)
            adapted = lend(session.adapted, drawn)
            network.register_forward_pre_hook(lambda *_: session.leave_if_asked())
            with Derived(adapted).frozen():
                return drawn.sample(prompts, negative, width, height, steps, guidance, seed,
                                    lambda captions: known[captions[0]])
        finally:  # before the trained one comes back, and also where an error keeps references
            move(frozen_parts(network), torch.device("meta"))


def lend(adapted: dict[str, Adapted], model: Any) -> list[Adapted]:
    """Put the adapters of a training's denoiser around the same layers of the denoiser of `model`, which is on the
    device, in place. They are no copies."""
    network, found = setup.whole(model), []
    for name, one in adapted.items():
        if not layer_options.in_denoiser(model, name):
            continue
        parent, attribute = network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        base = network.get_submodule(name)
        other = Adapted(base, one.adapter, as_layer(base, name)).train(base.training)
        setattr(parent, attribute, other)
        found.append(other)
    return found
