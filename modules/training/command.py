"""The command line of `scripts/train.py`: what it prints, and the exit codes.

0 done, 2 bad input (nothing was touched), 1 failed while running (the last state is kept), 130 stopped (state saved).
"""

import argparse
import json
import logging
import shlex
import sys
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.preset import files, listing
from modules.preset.cli import options_help, parse_overrides
from modules.preset.problems import LIST_PRESETS, PresetProblems
from modules.preset.schema import Preset
from modules.printable import LONGEST, short
from modules.reasons import sentence
from modules.training import stopping
from modules.training.processes import PARTING, companions, farewell, is_main_process, missing_processes

DONE, FAILED, REFUSED, STOPPED = 0, 1, stopping.REFUSED, stopping.STOPPED


def main(argv: Sequence[str]) -> int:
    """Run the command; its exit code. Every error is printed as a sentence."""
    stopping.forget()
    try:
        return chosen(argv)
    except KeyboardInterrupt:
        stopping.end()
        print("Stopped.", file=sys.stderr)
        return STOPPED
    except Exception as error:  # noqa: BLE001  errors outside of `trained` have touched nothing
        return refuse([sentence(error)], "--json" in argv)


def chosen(argv: Sequence[str]) -> int:
    """Do what the arguments say; the exit code."""
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.help:
        print(parser.format_help() + "\n" + options_help(Preset))
        return DONE
    try:
        if arguments.list is not None:
            print(listing.text(arguments.list))
            return DONE
        own = [flag for action in parser._actions for flag in action.option_strings]
        overrides = parse_overrides(rest, own)
        if arguments.json and not arguments.check:
            raise PresetProblems(["--json: works only with --check; a training writes its events to events.jsonl"])
        if arguments.probe and not arguments.check:
            raise PresetProblems(["--probe: works only with --check; it measures a few steps without training"])
        if not arguments.preset:
            raise PresetProblems([f"--preset: required ({LIST_PRESETS})"])
        resolved = files.resolve(arguments.preset, overrides)
        missing = 0 if arguments.check else missing_processes()
    except PresetProblems as error:
        return refuse(error.problems, arguments.json)
    except ValueError as error:
        return refuse([str(error)])
    say_notes(resolved.notes)
    quiet_libraries()
    if arguments.check:
        return check_only(resolved, arguments.json, arguments.probe)
    with companions(missing) as others:
        code = run(resolved)
        if code != DONE:
            farewell(others, PARTING)
    return code


def make_parser() -> argparse.ArgumentParser:
    """The command's own flags; everything else is an option of the preset."""
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__, add_help=False, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Train an adapter for a diffusion model. Run the same command again to resume."
    preset_help = "a name from --list, a .json file, a run folder"
    parser.add_argument("--preset", metavar="NAME|FILE", nargs="?", help=preset_help)  # reported in `chosen` if missing
    list_help = "list the recommended presets; all, own, or those of a family, method or purpose"
    parser.add_argument("--list", metavar="WHICH", nargs="?", const="", help=list_help)
    parser.add_argument("--check", action="store_true", help="check everything without training")
    parser.add_argument("--probe", action="store_true", help="with --check: measure memory and time of a few steps")
    parser.add_argument("--json", action="store_true", help="with --check: print the result as JSON")
    parser.add_argument("--help", "-h", action="store_true", help="show this and every option of a preset")
    return parser


def refuse(problems: Sequence[str], as_json: bool = False) -> int:
    """Print all problems, once."""
    if not is_main_process():
        return REFUSED
    if as_json:
        print(json.dumps({"problems": list(problems)}))
        return REFUSED
    print(stopping.REFUSAL, file=sys.stderr)
    for problem in problems:
        print("  - " + short(problem, LONGEST).replace("\n", "\n    "), file=sys.stderr)
    return REFUSED


def say_notes(notes: Sequence[str]) -> None:
    """Print notes, in the main process."""
    for note in notes if is_main_process() else ():
        print(f"note: {short(note, LONGEST)}", file=sys.stderr)


def quiet_libraries() -> None:
    """Keep libraries' progress bars, hints and warnings off the screen; warnings still reach a run's log.txt.

    Call it before they are imported: some print on import.
    """
    for name in ("bitsandbytes", "diffusers", "transformers"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_default_handler()
        library.disable_progress_bar()


def examined(preset: Preset, given: Collection[str]):
    """Accelerate's view of this machine, and what is found before training; `given`: see `Resolved`."""
    from modules.training import check
    from modules.training.session import start_processes

    machine = start_processes()
    assert machine.device is not None
    return machine, check.examine(preset, machine.device.type, machine.num_processes, given)


def check_only(resolved: files.Resolved, as_json: bool, probing: bool) -> int:
    """`--check`: everything except training; with `--probe` a few steps that are thrown away."""
    from modules.training import check

    preset = resolved.preset
    machine, found = examined(preset, resolved.given)
    facts = check.report(preset, found, machine.num_processes)
    if probing and not found.problems:
        say_measured(preset, found, machine, facts)
    if as_json and machine.is_main_process:
        print(json.dumps(facts))
    elif facts["problems"]:
        refuse([*facts["problems"], *(f"note: {note}" for note in facts["notes"])])
    elif machine.is_main_process:
        print(check.text(facts))
    return REFUSED if facts["problems"] else DONE


def say_measured(preset: Preset, found, machine, facts: dict[str, Any]) -> None:
    """Add the measurements, or why they failed, to the findings."""
    from modules.training.probe import probe
    from modules.training.session import start_accelerator

    if machine.is_main_process:
        print("measuring a few steps; a large model takes minutes to load and encode", file=sys.stderr)
    try:
        facts["probe"] = probe(preset, found, start_accelerator(preset, machine)).facts()
    except (ValueError, FloatingPointError) as error:
        facts["problems"] = [*facts["problems"], str(error)]


def run(resolved: files.Resolved) -> int:
    """Check, open the run folder, train, export."""
    from modules.training.session import start_accelerator

    preset = resolved.preset
    machine, found = examined(preset, resolved.given)
    if found.problems or found.pictures is None:
        return refuse(found.problems)
    accelerator = start_accelerator(preset, machine)
    opened, refusal = open_together(preset, found, accelerator)
    if opened is None:
        return refuse([refusal])
    with opened:
        if opened.finished is opened.again is None:
            return trained(preset, found, opened, accelerator)
        if accelerator.is_main_process:
            print(done_before(opened, preset, accelerator.device))
        return DONE


def done_before(opened, preset: Preset, device) -> str:
    """The message for a run that is finished already; its file is exported again if it is damaged."""
    if opened.finished is None:
        from modules.training.stored import export_again

        return f"Done: {export_again(opened, opened.again, preset, device)}"
    for note in opened.notes:
        print(f"warning: {note}", file=sys.stderr)
    return f"{preset.name} is already finished: {opened.finished}. To start a new run, give another --name."


def open_together(preset: Preset, found, accelerator):
    """The run folder, opened by the main process and joined by the others; or None and why not."""
    from accelerate.utils import broadcast_object_list

    from modules.training.resuming import refuse_changed
    from modules.training.run import join_run, open_run

    folder, opened, outcome = Path(preset.saving.folder), None, ["", None, None]
    if accelerator.is_main_process:
        try:
            opened = open_run(folder, preset, preset.name, found.steps)
            outcome[1:] = [opened.finished, opened.again]
            if opened.finished is opened.again is None:
                refuse_changed(opened, preset, found.pictures)
        except ValueError as error:
            outcome[0] = str(error)
        except OSError as error:
            outcome[0] = (f"saving.folder {folder}: {sentence(error)}; fix that, or give another folder with "
                          "--saving.folder")
    broadcast_object_list(outcome)
    if outcome[0]:
        if opened is not None:
            opened.close()
        return None, outcome[0]
    if opened is None:
        opened = join_run(folder, preset.name)
        opened.finished, opened.again = outcome[1:]
    return opened, ""


def trained(preset: Preset, found, opened, accelerator) -> int:
    """Train in an open run folder; every outcome ends in a `finished` event."""
    from modules.training.events import Events

    say_notes(found.notes)
    if accelerator.is_main_process:
        print(f"{preset.name}: loading {preset.base.path}; run folder: {opened.folder}", file=sys.stderr)
    end = End()
    with Events(opened.folder, accelerator.is_main_process) as events:
        try:
            end.outcome = "done" if attempted(preset, found, opened, accelerator, events, end) else "stopped"
        except KeyboardInterrupt:
            end.outcome = "stopped"
        except Exception as error:  # noqa: BLE001  reported, logged with its traceback; exit code 1
            if stopping.asked():  # the other processes have ended already, so collective calls fail
                end.outcome = "stopped"
            else:
                end.reason = reason_of(error, preset, accelerator.device, found, opened.folder)
                events.write("error", {"message": end.reason, "detail": traceback.format_exc()})
        stopping.end()
        if end.outcome == "done":
            end.path = str(opened.folder / f"{opened.name}.safetensors")
        events.write("finished", end.facts())
    if accelerator.is_main_process:
        say_outcome(end, opened.folder)
    elif end.reason:
        print(f"Process {accelerator.process_index} failed: {end.reason}", file=sys.stderr)
    return end.code


@dataclass
class End:
    """How a training has ended, as far as it is known."""

    outcome: str = "failed"
    """`done`, `stopped` or `failed`."""
    reason: str = ""
    """Why it failed."""
    session: Any = None
    """None until it is ready."""
    path: str | None = None
    """The exported file."""

    @property
    def code(self) -> int:
        """The exit code."""
        return {"done": DONE, "stopped": STOPPED, "failed": FAILED}[self.outcome]

    @property
    def warning(self) -> str:
        """What is wrong with a finished adapter, or empty."""
        return next(iter(self.session.collapsed.values()), "") if self.session is not None else ""

    def facts(self) -> dict[str, Any]:
        """Of the `finished` event."""
        step = self.session.step if self.session is not None else 0
        return {"outcome": self.outcome, "exit_code": self.code, "step": step, "path": self.path}


def attempted(preset: Preset, found, opened, accelerator, events, end: End) -> bool:
    """Whether the training was done to its end. Raises whatever goes wrong."""
    from modules.training.loop import train
    from modules.training.preparing import prepare

    for note in found.notes:
        events.write("warning", {"message": note, "detail": ""})
    end.session = prepare(preset, found.pictures, opened, events, accelerator)
    return train(end.session)


def reason_of(error: Exception, preset: Preset, device, found, folder: Path) -> str:
    """What went wrong, in a sentence."""
    from modules.training import memory, setup

    if memory.ran_out(error):
        return memory.sentence(preset, device, setup.precision(preset, device), len(found.model.blocks()), in_run=True)
    return sentence(error, folder)


def say_outcome(end: End, folder: Path) -> None:
    """Print the outcome."""
    if end.outcome == "done" and end.warning:
        print(f"Done, with a warning: {end.path}\nThis adapter is probably unusable: {end.warning}.")
        return
    if end.outcome == "done":
        print(f"Done: {end.path}")
        return
    state, any_left = found_states(folder)
    none = "cannot resume: every training state is damaged" if any_left else "starts over: no training state was saved"
    again = f"resumes from {state}" if state else none
    if end.outcome == "failed":
        where = f"Details: {folder / 'log.txt'}. " if (folder / "log.txt").exists() else ""
        print(f"Failed: {end.reason}\n{where}The same command {again}.", file=sys.stderr)
        return
    file = f"\nTo export this state: python scripts/export.py {shlex.quote(str(folder))}" if state else ""
    print(f"Stopped. The same command {again}.{file}", file=sys.stderr)


def found_states(folder: Path) -> tuple[Path | None, bool]:
    """The last intact state, if there is one and the disk can be read; and whether there are any states."""
    from modules.training.state import latest_state, states

    try:
        return latest_state(folder), bool(states(folder))
    except (OSError, ValueError):
        return None, False
