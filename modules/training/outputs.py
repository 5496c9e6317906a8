"""What a training shows and writes beside its steps: validation loss, sample pictures, adapter and exported file."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL.Image import Image
from tqdm import tqdm

from modules import objectives
from modules.adapters.base import seed_of
from modules.data.augment import sizes_at, still
from modules.disk import write_whole
from modules.export import token_files
from modules.export.export import export
from modules.export.report import Report
from modules.families.base import Caption, text_of
from modules.files import run_file
from modules.judges import judges
from modules.training import collapse, feed, new_tokens, rank_one, samples, samples_base
from modules.training.beside import beside
from modules.training.ended import ADAPTER
from modules.training.noise import times_of
from modules.training.saving import training_facts
from modules.training.session import Session, sample_captions, validation_captions

STEP_FILE = r"-step-([0-9]{6,18})\.safetensors"
"""How the name of an exported file of a step ends, see `step_name`."""


@torch.no_grad()
def validate(session: Session) -> None:
    """Loss on the validation pictures, always with the same noise at the same evenly spread time steps."""
    if session.validation is None or not session.takes_part:
        return
    draws, process = session.preset.validation.draws, session.model.process
    spread = [(draw + 0.5) / draws for draw in range(draws)]
    captions, errors = validation_captions(session.validation), []
    weights = session.shown(session.preset.validation.ema)
    with weights, session.derived.frozen(), session.accelerator.autocast():
        for picture, caption in zip(session.validation.pictures, captions, strict=True):
            view = still(picture.options, picture)
            mean, _ = session.latents.get(picture, False, view).chunk(2)
            seeds = [seed_of("validation", picture.key, draw) for draw in range(draws)]
            noise = torch.stack([objectives.sample_noise(s, 0, mean) for s in seeds])
            latents = mean.expand_as(noise)
            sizes = sizes_at(picture, view, False).expand(draws, -1)
            area = mean.shape[-2] * mean.shape[-1]
            times = times_of(process, session.preset.objective, spread, area)
            prepared = feed.noised(session, latents, noise, times, (caption,) * draws, sizes)
            parts = feed.weights_inside(session, [(picture, False, view)] * draws)
            shown = feed.references_of(session, [picture] * draws)
            errors.append(feed.errors(session, replace(prepared, parts=parts, references=shown)))
    loss = float(torch.cat(errors).mean())
    if session.step == 0:
        session.baseline = loss
    session.measured = (session.step, loss)
    session.events.write("validation", {"step": session.step, "loss": loss, "baseline": session.baseline})
    collapse.judge(session, session.baseline, loss, "on the validation pictures")
    if session.preset.validation.spectrum:
        beside(session, "the singular values of the updates", rank_one.record)


def sample(session: Session) -> None:
    """Sample pictures of this step and the comparison grid."""
    wanted = session.preset.samples
    if not wanted.enabled or not session.takes_part:
        return
    captions = sample_captions(session.preset, session.model, session.index)
    pictures = drawn(session, captions, wanted.steps)
    if not session.accelerator.is_main_process:
        return
    written = partial(write_samples, pictures=pictures, prompts=[*map(text_of, captions)])
    beside(session, "the sample pictures", written, together=False)


@torch.no_grad()
def drawn(session: Session, captions: Sequence[Caption], steps: int) -> list[Image]:
    """A picture for each of `sample_captions`, by the base that the preset says."""
    wanted, side = session.preset.samples, session.preset.data.largest
    size = (wanted.width or side, wanted.height or side)
    asked = (captions, wanted.negative, *size, steps, wanted.guidance, wanted.seed)
    with session.training_adapter.off(), session.shown(wanted.ema), session.accelerator.autocast():
        if wanted.base:
            return samples_base.draw(session, *asked)
        with session.derived.frozen():
            return session.model.sample(*asked, session.encode)


def write_samples(session: Session, pictures: Sequence[Image], prompts: Sequence[str]) -> None:
    """Write the pictures of this step, one per prompt, and the grid."""
    folder = session.run.folder
    paths = samples.save_samples(folder, session.step, pictures)
    samples.write_grid(folder, samples.sampled_steps(folder, len(prompts)), prompts)
    if session.preset.samples.judges:
        write_judgement(session, pictures, prompts)
    for path, prompt in zip(paths, prompts, strict=True):  # last: what has no event is made again
        base = session.preset.samples.base or session.preset.base.path
        session.events.write("sample", {"step": session.step, "path": str(path), "prompt": prompt, "base": base})


def write_judgement(session: Session, pictures: Sequence[Image], prompts: Sequence[str]) -> None:
    """What classifiers say of the pictures of this step. Raises ValueError for a prompt with an unknown subject."""
    found = judges.judge(list(pictures), [*map(judges.subject_of, prompts)], Path(session.preset.samples.judges))
    shares = {"subject": found.subject, "style": found.noto, "unnamed": found.none}
    session.events.write("judged", {"step": session.step, **shares})


def save_adapter(session: Session) -> None:
    """`adapter.safetensors`: the adapters as they are exported, for exporting again later. Raises as
    `Session.check_finite`."""
    session.check_finite()
    if not session.accelerator.is_main_process:
        return
    session.check_folder()
    path = session.run.folder / ADAPTER
    with session.shown(session.preset.export.ema):
        run_file.save(path, session.learned, training_facts(session))
    facts = {"what": "adapter", "path": str(path), "step": session.step, "bytes": path.stat().st_size}
    session.events.write("saved", facts)


@contextmanager
def place_of_files(session: Session) -> Iterator[Path]:
    """The run folder in the main process; in the others a temporary folder."""
    if session.accelerator.is_main_process:
        yield session.run.folder
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


def export_now(session: Session, name: str) -> Path | None:
    """Write the file for other programs, checked against the program's arithmetic. Raises as `Session.check_finite`."""
    session.check_finite()
    if not session.takes_part:
        return None
    session.check_folder()
    weights = session.shown(session.preset.export.ema)
    with place_of_files(session) as folder, session.training_adapter.off(), weights:
        path = folder / f"{name}.safetensors"
        vectors = new_tokens.vectors(session.model, session.preset.targets)
        result = export(session.model, session.adapted, session.preset, training_facts(session), path, vectors)
    if not session.accelerator.is_main_process:
        return None
    # The event comes last: what has none is made again when a killed run resumes.
    beside(session, "the table of errors", partial(say_report, result=result, path=path), together=False)
    beside(session, "deleting older exported files", prune_exports, together=False)
    session.events.write("saved", {"what": "export", "path": str(path), "step": session.step, "bytes": result.size})
    return path


def prune_exports(session: Session) -> None:
    """Delete the files of earlier steps, with their tables of errors, but for the last `saving.keep_exports`. The file
    of this step is whole. Files of later steps, from before the run resumed, are replaced when it is there again."""
    keep, name = session.preset.saving.keep_exports, re.compile(re.escape(session.run.name) + STEP_FILE)
    found = [(int(match[1]), match[0]) for path in session.run.folder.iterdir() if (match := name.fullmatch(path.name))]
    older = sorted(one for one in found if one[0] <= session.step)
    for _, file in older[: -keep] if keep else ():
        path = session.run.folder / file
        path.unlink()
        path.with_suffix(".errors.tsv").unlink(missing_ok=True)
        shutil.rmtree(token_files.folder_of(path), ignore_errors=True)


def say_report(session: Session, result: Report, path: Path) -> None:
    """Print the report on an exported file, and write every layer's error beside the file."""
    errors = path.with_suffix(".errors.tsv")
    write_whole(errors, result.table())
    tqdm.write(f"{result.text()}\n  errors of all layers: {errors}")
