"""Writes what is generated from the list of options: configs/preset.schema.json and docs/preset-reference.md.

    python -m modules.preset.reference            write both
    python -m modules.preset.reference --check    exit with 1 if one of them is stale
"""

import argparse
import json
import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from modules import families
from modules.preset import cli, options, renames
from modules.preset.schema import Preset

ROOT = Path(__file__).parents[2]

HEADER = """# Every option of a preset

<!-- Generated from the code by `python -m modules.preset.reference`. Do not edit. -->

A preset is a JSON file with the options that differ from the defaults below. On the command line, an option is
`--section.option value`, e.g. `--adapter.rank 32`. A list is given as JSON, e.g. `--samples.prompts '["a", "b"]'`, or
by repeating the option. A true-or-false option without a value means true.

A preset can extend another one, named with `based_on` (one level; `name` and `description` are not inherited). Its own
options override those of the other preset. A section that chooses another method, optimizer or kind replaces the other
preset's section as a whole.
"""


def generated() -> dict[Path, str]:
    """The generated files and their expected content."""
    return {
        ROOT / "configs" / "preset.schema.json": schema_text(),
        ROOT / "docs" / "preset-reference.md": reference_text(),
    }


def stale() -> list[Path]:
    """Generated files that are missing or do not match the code."""
    return [path for path, text in generated().items() if not path.is_file() or path.read_text("utf-8") != text]


def schema_text() -> str:
    """The JSON schema of a preset. Properties keep the order of their declaration, which is that of the form."""
    schema = Preset.model_json_schema()
    schema["properties"]["family"]["enum"] = families.names()  # a validator in Python, where families can be added
    # for the window, which reads old presets as the trainer does
    named = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "renames": renames.RENAMES,
             "entries": renames.ENTRIES, "implied": renames.IMPLIED}
    return json.dumps(named, indent=1, ensure_ascii=False) + "\n"


def reference_text() -> str:
    """The manual's tables, one per section and per variant of a tagged section."""
    places: dict[str, list[options.Group]] = {}
    for group in options.groups(Preset):
        places.setdefault(group.path, []).append(group)
    return "\n".join([HEADER, *(_section(same) for same in places.values())])


def _section(same: list[options.Group]) -> str:
    first = same[0]
    title = f"## `{first.path}`" if first.path else "## The preset itself"
    if not first.tag:
        return f"{title}\n\n{cli.about(first)}\n\n{_table(first)}"
    tag = options.join(first.path, first.tag)
    outer = [f"`{name}` {' or '.join(f'`{value}`' for value in values)}" for name, values in cli.ways(same)[1:]]
    only = f" Only with {', '.join(outer)}." if outer else ""
    default = f"`{first.default_tag}` is the default" if first.default_tag else "required"
    intro = f"`{tag}` selects one of the following; {default}.{only}"
    variants = [(dict(group.chosen)[tag], group) for group in cli.one_each(same)]
    parts = [f'### `"{value}"`\n\n{cli.about(group)}\n\n{_table(group)}' for value, group in variants]
    return "\n".join([f"{title}\n\n{intro}\n", *parts])


def _table(group: options.Group) -> str:
    tag = options.join(group.path, group.tag)
    rows = [_row(name, field) for name, field in group.options() if name != tag]
    inner = [f"`{options.join(group.path, name)}`" for name, field in _sections(group)]
    more = f"Further options: {', '.join(inner)}, below.\n" if inner and group.path else ""
    if not rows:
        return more or "No further options.\n"
    head = ["| option | type and bounds | default | reason for the default | description |", "|---|---|---|---|---|"]
    tables = [_entries(name, field, head) for name, field in group.options() if options.entry(field.annotation)]
    return "\n".join([*head, *rows, *([""] if more else []), more, *tables])


def _entries(name: str, field: FieldInfo, head: list[str]) -> str:
    """The table of the options of a list's entries."""
    entries = options.entry(field.annotation)
    assert entries is not None
    rows = [_row(f"{name}[].{inner}", one) for inner, one in entries.model_fields.items()]
    about = f"An entry of `{name}`: `{options.entry_words(entries)}`"
    return "\n".join([f"{about}\n", *head, *rows, ""])


def _sections(group: options.Group) -> list[tuple[str, FieldInfo]]:
    fields = group.model.model_fields.items()
    return [(name, field) for name, field in fields if options.models_of(field)]


def _row(name: str, field: FieldInfo) -> str:
    default = cli.default_words(field).removeprefix("default ")
    shown = default if field.is_required() else f"`{default}`"
    cells = [f"`{name}`", cli.type_facts(field), shown, options.hint(field, "why"), cli.description(field)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description="Write configs/preset.schema.json and docs/preset-reference.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is stale")
    if parser.parse_args().check:
        for path in stale():
            print(f"{path.relative_to(ROOT)} is stale: run python -m modules.preset.reference", file=sys.stderr)
        return 1 if stale() else 0
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
