"""The preset that is edited: its values, what changed since it was opened, undo and redo."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import proxy

from PySide6.QtCore import QObject, Signal
from PySide6.QtGui import QUndoCommand, QUndoStack

from ui.core.preset import schema as schemas
from ui.core.preset.files import Opened, Origin
from ui.core.preset.schema import Difference, Field, Schema, Values, at, holds, with_value, without


class Document(QObject):
    """The values of a preset, complete; every change is an undo step.

    `values` and `baseline` are read-only: a change makes new ones that share what did not change.
    """

    changed = Signal(str)
    """Path of the value that changed; "" for all of them."""

    structure_changed = Signal(str)
    """Path of the section (a page of the form) whose fields are others now; emitted before `changed`."""

    origin_changed = Signal()
    """Opened, saved or restored: the name or the baseline is another."""

    noted = Signal(str)
    """A text for the user, a sentence a line, e.g. what choosing another method dropped."""

    def __init__(self, schema: Schema, parent: QObject | None = None):
        super().__init__(parent)
        self.schema = schema
        self.undo = QUndoStack(self)
        self.origin = Origin("new", "", None)
        self.values, _ = schema.complete({})
        self.baseline = self.values
        self._burst, self._burst_path = 0, ""

    # -- asking -------------------------------------------------------------------------------------------------------

    def value(self, path: str) -> Any:
        """The value at a path, None when there is none."""
        return at(self.values, path)

    def field(self, path: str) -> Field:
        """The field at a path: of the chosen variants, or else of the first one that has it. KeyError for no field."""
        known = self.schema.fields(self.values)
        return known[path] if path in known else self.schema.everything()[path][0]

    def is_modified(self, path: str | None = None) -> bool:
        """Whether an option, a section or anything (None) differs from the baseline."""
        if path is None:
            return self.values != self.baseline
        return (holds(self.values, path), self.value(path)) != (holds(self.baseline, path), at(self.baseline, path))

    def differences(self, other: Mapping[str, Any] | None = None) -> list[Difference]:
        """What differs from other values (the baseline by default): theirs as before, the present ones as after."""
        return schemas.differences(self.baseline if other is None else other, self.values)

    def problems(self) -> dict[str, str]:
        """What is wrong with the values, by path."""
        found = {path: field.problem(self.value(path)) for path, field in self.schema.fields(self.values).items()}
        return {path: problem for path, problem in found.items() if problem}

    # -- changing -----------------------------------------------------------------------------------------------------

    def set(self, path: str, value: Any) -> None:
        """Change a value, also to one that is not allowed: `problems` tells.

        Changes of the same option are one undo step until `seal`; a change of a tag always is one of its own.
        """
        field = self.schema.fields(self.values)[path]
        if holds(self.values, path) and self.value(path) == value:
            return
        if field.kind == "tag":
            values, notes = self.schema.switched(self.values, path, value)
            self._push("Change", field, values, notes)
            return
        if path != self._burst_path:
            self.seal()
        self._burst_path = path
        value = list(value) if isinstance(value, list | tuple) else value
        self._push("Change", field, with_value(self.values, path, value))

    def reset(self, path: str) -> None:
        """Back to the baseline, or to the default where the baseline has no such option.

        With a tag, the values that only the baseline's variant has come back too.
        """
        field = self.schema.fields(self.values)[path]
        if not self.is_modified(path):
            return
        self.seal()
        if field.kind == "tag":
            self._push("Reset", field, *self._with_baseline_variant(field))
        elif holds(self.baseline, path):
            self._push("Reset", field, with_value(self.values, path, at(self.baseline, path)))
        elif field.required:
            self._push("Reset", field, without(self.values, path))
        elif self.value(path) != field.default:
            self._push("Reset", field, with_value(self.values, path, field.default))

    def seal(self) -> None:
        """The next change is an undo step of its own, also of the same option."""
        self._burst, self._burst_path = self._burst + 1, ""

    def _with_baseline_variant(self, tag: Field) -> tuple[Values, tuple[str, ...]]:
        """The values with the baseline's variant, and what that drops."""
        section = tag.path.rpartition(".")[0]
        present, own = at(self.values, section) or {}, at(self.baseline, section)
        if own is None:  # an inner section of another variant, or nothing was chosen yet
            default = self.schema.tags[section].default
            return (without(self.values, section), ()) if default is None else self._switched(tag.path, default)
        if at(self.baseline, tag.path) not in tag.choices:
            return with_value(self.values, section, own), ()
        values, notes = self._switched(tag.path, at(self.baseline, tag.path))
        for name in own:
            if name not in present:
                values = with_value(values, f"{section}.{name}", own[name])
        return values, notes

    def _switched(self, tag_path: str, choice: str) -> tuple[Values, tuple[str, ...]]:
        return self.schema.switched(self.values, tag_path, choice)

    def _push(self, verb: str, field: Field, values: Values, notes: tuple[str, ...] = ()) -> None:
        if values is self.values:  # an inner choice that only the baseline lacks, at its default already
            return
        first, space, rest = field.label.partition(" ")
        label = (first.lower() if first[1:].islower() else first) + space + rest  # "LR", "ComfyUI" stay
        self.undo.push(_Change(self, f"{verb} {label}", field, values, self._burst))
        if notes:
            self.noted.emit("\n".join(notes))

    def _show(self, values: Values, field: Field) -> None:
        """Let `values` be the present ones, which differ from those before in `field` and what depends on it."""
        self.values = values
        if field.kind == "tag":
            self.structure_changed.emit(field.path.partition(".")[0])
        self.changed.emit(field.path)

    # -- opening, saving, surviving -----------------------------------------------------------------------------------

    def open(self, opened: Opened) -> None:
        """Edit another preset; undo begins anew. Its problems and notes are for the caller to show."""
        self._begin(opened.values, opened.values, opened.origin)

    def mark_saved(self, origin: Origin) -> None:
        """The present values are those in the file `origin`."""
        self.origin, self.baseline = origin, self.values
        self.seal()
        self.undo.setClean()
        self.origin_changed.emit()

    def move_to(self, origin: Origin) -> None:
        """The file that the document comes from is elsewhere now, with the same content."""
        self.origin = origin
        self.origin_changed.emit()

    def to_unsaved(self) -> Values:
        """All that a later window needs to go on, as JSON."""
        path = self.origin.path.as_posix() if self.origin.path else None
        origin = {"kind": self.origin.kind, "name": self.origin.name, "path": path}
        return {"origin": origin, "values": self.values, "baseline": self.baseline}

    def restore(self, unsaved: Mapping[str, Any]) -> None:
        """Go on from what `to_unsaved` gave. Raises ValueError with a sentence."""
        try:
            kind, name, path = (unsaved["origin"][key] for key in ("kind", "name", "path"))
            origin = Origin(kind, name, Path(path) if path is not None else None)
            values, problems = self.schema.complete({**unsaved["values"]})
            baseline, _ = self.schema.complete({**unsaved["baseline"]})
        except (KeyError, TypeError):
            raise ValueError("The unsaved changes are damaged and cannot be restored.") from None
        self._begin(values, baseline, origin)
        if problems:
            self.noted.emit("\n".join(problems))

    def _begin(self, values: Values, baseline: Values, origin: Origin) -> None:
        self.undo.clear()
        self.seal()
        self.values, self.baseline, self.origin = values, baseline, origin
        self.changed.emit("")
        self.origin_changed.emit()


class _Change(QUndoCommand):
    """One step: the whole values before and after, which share nearly everything."""

    def __init__(self, document: Document, text: str, field: Field, values: Values, burst: int):
        super().__init__(text)
        self._document = proxy(document)  # it owns its steps: garbage collection breaks a cycle of both inside of Qt
        self._field, self._burst = field, burst
        self._before, self._after = document.values, values
        self._is_new = True

    def id(self) -> int:
        return -1 if self._field.kind == "tag" else self._burst

    def mergeWith(self, other: QUndoCommand) -> bool:
        assert isinstance(other, _Change)  # only they have an id
        self._after = other._after
        self.setObsolete(self._after == self._before)
        return True

    def redo(self) -> None:
        self._go(self._after)

    def undo(self) -> None:
        self._go(self._before)

    def _go(self, values: Values) -> None:
        if not self._is_new:
            self._document.seal()
        self._is_new = False
        self._document._show(values, self._field)
