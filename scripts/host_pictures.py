"""Draw a run's sample pictures with diffusers alone, from an exported file, and compare.

    python scripts/host_pictures.py runs/NAME [runs/OTHER ...]

Exports each run's adapter for diffusers in float32, loads it with `load_lora_weights` into a plain diffusers pipeline,
repeats the samples of the last step with their prompts and seeds, and prints the largest difference of a pixel. What
diffusers' files cannot represent in a compact form is exported with --form full.

Exit codes: 0 all pictures match the trainer's to within 2/255, 1 some do not, 2 bad input.
"""

import argparse
import inspect
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from modules.answer import script

TOLERANCE = 2
"""Tolerance, of 255: rounding of the merged products."""

NOT_DRAWN = {
    "samples.base is set": lambda samples: samples.get("base"),
    "samples.prompts have references": lambda samples: any(isinstance(one, dict) and one.get("references")
                                                           for one in samples["prompts"]),
}


def main() -> int:
    """Read the arguments, compare every run, and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs with samples")
    code = 0
    for run in parser.parse_args().runs:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "diffusers.safetensors"
            try:
                form = export(run, file)
                worst = differences(run, file)
            except (ValueError, OSError) as error:
                print(f"{run}: {error}", file=sys.stderr)
                return 2
        print(f"{run}: form {form}, {len(worst)} pictures, largest difference of a pixel {max(worst)}/255", flush=True)
        code = code or int(max(worst) > TOLERANCE)
    return code


def export(run: Path, file: Path) -> str:
    """Write `file` from the run's adapter; its form. Raises ValueError with the exporter's sentence."""
    from scripts import export as exporting

    options = dict.fromkeys(("state", "base", "rank", "comfyui_norm", "computes_in", "ema"))
    options |= {"run": run, "host": "diffusers", "dtype": "float32", "out": file, "device": "cpu"}
    try:
        exporting.run(argparse.Namespace(**options, form="auto"))
    except ValueError:
        exporting.run(argparse.Namespace(**options, form="full"))
        return "full"
    return "auto"


def differences(run: Path, file: Path) -> list[int]:
    """Of each sample picture of the run's last step, the largest difference of a pixel, 0 to 255.

    Raises ValueError for a run without samples of its last step.
    """
    import numpy
    from PIL import Image

    from modules.documents import read_object
    from modules.files.facts import Facts
    from modules.tensorfile import read_header
    from modules.training.samples import sample_path

    preset = read_object(run / "preset.json")
    if refused := [why for why, is_so in NOT_DRAWN.items() if is_so(preset["samples"])]:
        raise ValueError(f"{refused[0]}: this script draws with the base that was trained, without reference pictures")
    facts = vars(Facts.from_json(read_header(run / "adapter.safetensors").metadata.get("facts", "")))
    drawn = [sample_path(run, facts["step"], number) for number in range(len(facts["prompts"]))]
    if not drawn or not all(path.is_file() for path in drawn):
        raise ValueError(f"no sample pictures of step {facts['step']}; train with samples.enabled true")
    pipeline = pipeline_with(preset["base"]["path"], file)
    guidance, against = guidance_of(preset["family"], preset["base"]["path"], preset["samples"])
    found = []
    for number, (path, prompt) in enumerate(zip(drawn, facts["prompts"], strict=True)):
        wanted = numpy.asarray(Image.open(path).convert("RGB")).astype(int)
        picture = draw(pipeline, prompt, number, preset["samples"], guidance, wanted.shape[:2], against)
        found.append(int(abs(numpy.asarray(picture).astype(int) - wanted).max()))
    return found


def pipeline_with(base: Path | str, file: Path | None) -> Any:
    """The base's own pipeline, with the adapter that a file for diffusers has; as the trainer loads it where diffusers
    wants a reader of pictures that captions do not need. Raises ValueError for a base of no family."""
    import torch
    from diffusers import DiffusionPipeline, ModularPipeline

    from modules import families
    from modules.documents import read_object
    from modules.families.parts.index import MODULAR_INDEX, index_of
    from modules.preset.base_options import Base

    problems = {name: families.load_class(name).index_problems("base", str(base)) for name in families.names()}
    if all(problems.values()):  # only classes of diffusers and transformers
        raise ValueError(f"{base} is a base of none of the families: {next(iter(problems.values()))[0]}")
    if index_of(Path(base)).name == MODULAR_INDEX:
        pipeline: Any = ModularPipeline.from_pretrained(base)
        pipeline.load_components(use_safetensors=True)
    elif read_object(index_of(Path(base))).get("processor"):
        kind = families.load_class(next(name for name, said in problems.items() if not said))
        pipeline = kind.load(Base(path=str(base)), torch.device("cpu"), torch.float32).pipeline
    else:
        pipeline = DiffusionPipeline.from_pretrained(base, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    if file is not None:
        pipeline.load_lora_weights(str(file))
    return pipeline


def guidance_of(family: str, base: Path | str, samples: dict[str, Any]) -> tuple[dict[str, float], str | None]:
    """The pipeline's arguments for the guidance of a preset's `samples`, and the negative prompt, None for none;
    pipelines differ in what no guidance is."""
    from modules.families import load_class
    from modules.preset.base_options import Base

    model = load_class(family).skeleton(Base(path=str(base)))
    against = model.negative_prompt(samples["negative"])
    return model.guidance_options(samples["guidance"], against is not None), against


def draw(
    pipeline: Any, prompt: str, number: int, samples: dict[str, Any], guidance: dict[str, float], size: tuple[int, int],
    against: str | None,
) -> Any:
    """Picture `number` of a preset's `samples`, `size` (height, width) in pixels, with diffusers.

    Raises ValueError for a negative prompt with a guidance-distilled network, which has two kinds of guidance.
    """
    import torch

    known = arguments(pipeline)
    told = "true_cfg_scale" in known and against is None
    if "true_cfg_scale" in known and "guidance_scale" in guidance and samples["negative"]:
        raise ValueError("samples.negative is not supported for guidance-distilled networks")
    if "negative_prompt" not in known and samples["negative"]:
        raise ValueError(f"samples.negative is not supported by {type(pipeline).__name__}")
    options: dict[str, Any] = {"prompt": prompt}
    if "negative_prompt" in known and not told:
        options["negative_prompt"] = against
    if "max_sequence_length" in known:
        options["max_sequence_length"] = tokens(pipeline, known["max_sequence_length"], told)
    if "prompt_attention_mask" in known:
        options = masked(pipeline, options)
    if "guider" in pipeline.components:  # of a modular pipeline
        pipeline.guider.guidance_scale, guidance = guidance["guidance_scale"], {}
    return pipeline(
        **options, **guidance, height=size[0], width=size[1], num_inference_steps=samples["steps"],
        generator=torch.Generator().manual_seed(samples["seed"] + number),
    ).images[0]


def arguments(pipeline: Any) -> dict[str, Any]:
    """What the pipeline's call takes by name, and the defaults."""
    from diffusers import ModularPipeline

    if isinstance(pipeline, ModularPipeline):
        return {one.name: one.default for one in pipeline.blocks.inputs}
    return {name: one.default for name, one in inspect.signature(pipeline.__call__).parameters.items()}


def masked(pipeline: Any, prompts: dict[str, Any]) -> dict[str, Any]:
    """The encoded prompts, with masks of booleans: diffusers 0.42.1 has them as numbers, and adds these 0 and 1 to the
    attention's scores (its issue 12116)."""
    found = pipeline.encode_prompt(**prompts)
    places = {"prompt_embeds": 0, "prompt_attention_mask": 2, "negative_prompt_embeds": 3,
              "negative_prompt_attention_mask": 5}
    given = {name: found[place] for name, place in places.items()}
    return {name: tensor.bool() if name.endswith("mask") else tensor for name, tensor in given.items()}


def tokens(pipeline: Any, default: int, told: bool) -> int:
    """The number of tokens for the text encoder: `default` is the pipeline's own. Of those that are `told` a scale of
    true guidance, it is for the guidance-distilled network; the other one was published with 256. A small base's
    tokenizer may have less."""
    tokenizers = [part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part]
    denoiser = pipeline.components["transformer"]
    short = told and denoiser.config.get("guidance_embeds") is False
    return min(256 if short else default, tokenizers[-1].model_max_length)


if __name__ == "__main__":
    sys.exit(script(main))
