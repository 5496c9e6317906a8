"""The rules of the house (docs/design.md) that can be checked by reading the sources.

Every list of exceptions is exact: an entry that is no longer needed fails too, so the lists can only shrink.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from modules import adapters, families

ROOT = Path(__file__).parent.parent
PROGRAM = ("modules", "ui", "scripts", "training_presets")
EVERYTHING = (*PROGRAM, "comfyui_node", "tests")

LONG_FILES: dict[str, str] = {}
"""Files over 400 lines: why."""

LONG_FUNCTIONS: dict[tuple[str, str], str] = {}
"""(file, function) over 50 lines: why."""

ATTRIBUTES_BY_NAME: dict[tuple[str, str], str] = {
    ("modules/adapters/base.py", "getattr"): "Adapted answers for its base layer, a torch module",
    ("modules/training/training_adapter.py", "getattr"): "Beside answers for its layer, as Adapted does",
    ("modules/data/opening.py", "getattr"): "Pillow's picture files have n_frames or not, depending on the format",
}
"""(file, "getattr" or "hasattr"): why."""

PASSED_ON = {
    ("modules/families/parts/pipeline.py", "_recomputed"): "stands for the forward pass of any block of diffusers",
}
"""(file, function) that passes its keyword arguments on: why."""

PRODUCT, KIND = "name of a tensor in LyCORIS' files", "LyCORIS' word for a kind of file"
KOHYA, PEFT, LYCORIS = "name of a tensor in kohya's files", "name of a tensor in peft's files", "LyCORIS' argument"

FORMATS = ("modules/hosts", "modules/hosts/key_maps", "modules/files/kinds", "modules/importing")
"""Folders about other programs' formats, whose names for things are often those of our methods and families."""

HOST_WORDS: dict[tuple[str, str], str] = {
    ("modules/hosts/parts/comfyui_process.py", "lora"): "ComfyUI's module",
    ("modules/hosts/parts/installed_comfyui.py", "lora.py"): "ComfyUI's module",
    ("modules/files/spellings.py", "KOHYA_OFT"): KIND,
    ("modules/files/spellings.py", "kohya's OFT"): KIND,
    ("modules/files/spellings.py", "oft_"): KOHYA,
    ("modules/files/spellings.py", "lora_te"): KOHYA,
    ("modules/files/spellings.py", "(lora|oft)_te"): KOHYA,
    ("modules/files/spellings.py", "lora_unet_"): KOHYA,
    ("modules/files/spellings.py", "lora_transformer_"): "name of a tensor in OneTrainer's files",
    ("modules/files/models_by_name.py", "lora_prior_"): KOHYA,
    ("modules/files/models_by_name.py", "lora_unet_"): KOHYA,
    ("modules/files/models_by_name.py", "(lora|lycoris|oft)"): KOHYA,
    ("modules/files/models_by_name.py", "(_lora)"): "name of a tensor in diffusers' first files",
    ("modules/files/models_by_name.py", "lora_transformer_"): "name of a tensor in OneTrainer's files",
    ("modules/files/writer.py", "lora_adapter_metadata"): "diffusers' key in the metadata",
    ("modules/files/writer.py", "lora_alpha"): "peft's option",
    ("modules/files/writer.py", "networks.lora"): "kohya's module",
    ("modules/files/writer.py", "oft_factor"): "OneTrainer's word",
    ("modules/files/keys.py", "lora_up"): KOHYA,
    ("modules/files/keys.py", "lora_down"): KOHYA,
    ("modules/files/keys.py", "lora_mid"): KOHYA,
    ("modules/files/keys.py", "dora_scale"): KOHYA,
    ("modules/files/keys.py", "oft_blocks"): "name of a tensor in LyCORIS' files",
    ("modules/files/keys.py", "lora_A"): PEFT,
    ("modules/files/keys.py", "lora_B"): PEFT,
    ("modules/files/keys.py", "lora_magnitude_vector"): PEFT,
    ("modules/files/keys.py", "lokr_w1"): PRODUCT,
    ("modules/files/keys.py", "lokr_w2"): PRODUCT,
    ("modules/files/keys.py", "lokr_t2"): PRODUCT,
    ("modules/hosts/parts/arithmetic.py", "lokr_w1"): PRODUCT,
    ("modules/hosts/parts/arithmetic.py", "lokr_w2"): PRODUCT,
    ("modules/hosts/parts/arithmetic.py", "LoHa"): KIND,
    ("modules/hosts/parts/arithmetic.py", "LoKr"): KIND,
    ("modules/tools/inspect_file.py", "lokr_w2"): PRODUCT,
    ("modules/export/metadata.py", "LoHa"): KIND,
    ("modules/export/metadata.py", "LoKr"): KIND,
    ("modules/export/metadata.py", "loha"): LYCORIS,
    ("modules/export/metadata.py", "lokr"): LYCORIS,
    ("modules/export/metadata.py", "boft"): LYCORIS,
    ("scripts/strength_table.py", "LoHa"): KIND,
    ("scripts/strength_table.py", "LoKr"): KIND,
    ("scripts/strength_table.py", "lokr_w1"): PRODUCT,
    ("scripts/strength_table.py", "lokr_w2"): PRODUCT,
    ("modules/export/metadata.py", "networks.lora"): "kohya's module",
    ("scripts/host_pictures.py", "load_lora_weights"): "diffusers' function",
    ("modules/export/metadata.py", "lora"): LYCORIS,
    ("modules/export/metadata.py", "dora_wd"): LYCORIS,
    ("modules/export/metadata.py", "diag-oft"): LYCORIS,
    ("modules/families/parts/names.py", "lora_unet_"): KOHYA,
    ("modules/families/parts/qwen3.py", "lora_te_"): KOHYA,
    ("modules/families/parts/names.py", "oft_unet_"): KOHYA,
    ("modules/families/parts/names.py", "lora_transformer_"): "name of a tensor in OneTrainer's files",
    ("modules/families", "lora_te"): KOHYA,
    ("modules/families/parts/qwen3.py", "lora_te"): KOHYA,
    ("modules/families", "/lora"): "modelspec's architecture",
    ("modules/families/parts/double_single.py", "qkv_lora"): "name of a tensor in XLabs' files",
    ("modules/families/parts/double_single.py", "proj_lora"): "name of a tensor in XLabs' files",
    ("modules/files/strangers.py", "boft_"): PEFT,
    ("modules/files/strangers.py", "BOFT"): "peft's word for a kind of file",
    ("modules/files/strangers.py", "lora_controlnet"): "name of a tensor in Stability AI's files",
    ("modules/training/optimizers.py", "lora_rite"): "an optimizer's published name",
    ("modules/training/optimizers.py", "lora_pre"): "an optimizer's published name",
    ("modules/training/packaged.py", "_is_lora_A"): "an attribute that adv_optm reads",
    ("modules/training/packaged.py", "_is_lora_B"): "an attribute that adv_optm reads",
    ("modules/training/packaged.py", "_is_oft"): "an attribute that adv_optm reads",
    ("modules/training/packaged.py", "_oft_scale_factor"): "an attribute that adv_optm reads",
    ("modules/training/packaged.py", "_is_dora_scale"): "an attribute that adv_optm reads",
}
"""(file, words in it) of other programs' formats that contain a method's name: whose words they are. A folder stands
for each file in it: no family has to be added here."""

HEAVY_IMPORTS: dict[tuple[str, str], str] = {
    ("ui/pages/runs/plots.py", "numpy"): "the plots' own arrays; imported with them, when curves are first shown",
}
"""(file, package) that a file imports although its folder may not: why."""

FAMILY_WORDS: dict[tuple[str, str], str] = {}
"""(file, words in it) of other programs that contain a family's name: whose words they are."""


@cache
def source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(source(path), str(path))


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def assert_exact(found: set, listed: dict, rule: str) -> None:
    """What breaks the rule is exactly what is listed."""
    assert not found - listed.keys(), f"{rule}: {sorted(found - listed.keys())}"
    assert not listed.keys() - found, f"no longer needed, take it off the list: {sorted(listed.keys() - found)}"


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """All modules a file imports, anywhere in it, with the line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: imports are absolute here"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def docstrings(path: Path) -> set[int]:
    """Ids of the constants that are docstrings: of a module, class or function, or below an attribute."""
    found = set()
    for node in ast.walk(tree(path)):
        for statement in node.body if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                found.add(id(statement.value))
    return found


def words_of(node: ast.AST) -> list[str]:
    """The names and the texts a node holds."""
    match node:
        case ast.Name(id=text) | ast.Attribute(attr=text) | ast.arg(arg=text) | ast.keyword(arg=str(text)):
            return [text]
        case ast.FunctionDef(name=text) | ast.ClassDef(name=text) | ast.Constant(value=str(text)):
            return [text]
        case ast.alias(name=text, asname=other):
            return [text, other or ""]
        case ast.ImportFrom(module=str(text)):
            return [text]
    return []


def parts(word: str) -> set[str]:
    """The parts of an identifier, and the whole, in lower case: `LoraConfig` and `lora_config` both have `lora`."""
    return {word.lower(), *(part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", word))}


def mentions(path: Path, names: set[str], allowed: set[str]) -> Iterator[str]:
    """Where the code of a file, outside of comments and docstrings, has one of the names in a word.

    "LoRA" in a sentence means any low-rank file, not the method.
    """
    skipped = docstrings(path)
    for node in ast.walk(tree(path)):
        if id(node) in skipped:
            continue
        for text in words_of(node):
            for words in sorted(allowed, key=len, reverse=True):
                text = text.replace(words, " ")
            for word in re.findall(r"\w+", text):
                if word != "LoRA" and parts(word) & names:
                    yield f"{name(path)}:{getattr(node, 'lineno', 0)}: {word}"


# -- rules 2 and 3: one method, one file; one family, one file --------------------------------------------------------


def texts(place: str) -> list[str]:
    """What is in a file, or in the files of a folder."""
    path = ROOT / place
    return [source(file) for file in (sorted(path.glob("*.py")) if path.is_dir() else [path])]


def check_mentions(names: set[str], homes: tuple[str, ...], allowed: dict[tuple[str, str], str]) -> None:
    """Each name is only in `<home>/<name>.py` of one of the homes and in `FORMATS`, but for what is allowed."""
    stray: list[str] = []
    for path in files(*PROGRAM):
        if name(path.parent) in FORMATS:
            continue
        own = {one for one in names if path.stem.startswith(one)}  # a later model's name has the older one's in it
        foreign = names - (own if name(path.parent) in homes else set())
        stray += mentions(path, foreign, {words for file, words in allowed if file in (name(path), name(path.parent))})
    assert not stray, f"named outside of its own file: {stray}"
    unused = [(file, words) for file, words in allowed if not any(words in text for text in texts(file))]
    assert not unused, f"no longer needed, take it off the list: {unused}"


def test_methods_are_named_in_their_own_files_only():
    check_mentions(set(adapters.methods()), ("modules/adapters",), HOST_WORDS)


def test_families_are_named_in_their_own_files_only():
    check_mentions(set(families.names()), ("modules/families", "scripts/demo_bases"), FAMILY_WORDS)


@pytest.mark.parametrize(
    "word, expected",
    [("LoraConfig", True), ("is_lora", True), ("LoRA", True), ("loraConfig", True), ("explorable", False)],
)
def test_names_are_found_as_parts_of_words(word, expected):
    assert ("lora" in parts(word)) == expected


# -- rule 4: mathematics takes tensors --------------------------------------------------------------------------------


def test_linear_algebra_knows_torch_only():
    path = ROOT / "modules/adapters/linalg.py"
    known = ("torch", "math", "collections", "functools")
    foreign = {module for module, _ in imports(path) if module.split(".")[0] not in known}
    assert not foreign, foreign


# -- rule 6: window and trainer are apart -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder, forbidden",
    [
        ("modules", ("ui", "PySide6", "PyQt6", "PyQt5", "scripts", "tests")),
        ("ui", ("modules", "torch", "diffusers", "transformers", "safetensors", "numpy", "scripts", "tests")),
        ("modules/preset", ("PySide6", "accelerate", "diffusers", "transformers")),
        ("training_presets", ("modules", "ui", "PySide6", "torch", "pydantic", "scripts", "tests")),
    ],
)
def test_imports_stay_on_their_side(folder, forbidden):
    found = [
        f"{name(path)}:{line} imports {module}"
        for path in files(folder)
        for module, line in imports(path)
        if module.split(".")[0] in forbidden and (name(path), module.split(".")[0]) not in HEAVY_IMPORTS
    ]
    assert not found, found


def test_exceptions_from_imports_are_needed():
    used = {(name(path), module.split(".")[0]) for path in files(*PROGRAM) for module, _ in imports(path)}
    assert_exact(used & HEAVY_IMPORTS.keys(), HEAVY_IMPORTS, "heavy imports")


# -- rule 7: sizes ----------------------------------------------------------------------------------------------------


def test_files_have_at_most_400_lines():
    long = {name(path) for path in files(*EVERYTHING) if len(source(path).splitlines()) > 400}
    assert_exact(long, LONG_FILES, "files over 400 lines")


def test_functions_have_at_most_50_lines():
    long = {
        (name(path), node.name)
        for path in files(*EVERYTHING)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 > 50
    }
    assert_exact(long, LONG_FUNCTIONS, "functions over 50 lines")


# -- rule 8: nothing is ignored ---------------------------------------------------------------------------------------


def sections() -> set[type]:
    """All sections of a preset."""
    import modules.preset.schema  # noqa: F401  (defines them)
    from modules.preset.section import Section

    def below(cls: type) -> set[type]:
        return {cls}.union(*(below(child) for child in cls.__subclasses__()))

    return {cls for cls in below(Section) if cls.__module__.startswith("modules.")}


def test_unknown_keys_are_refused_everywhere():
    from pydantic import ValidationError

    from modules.preset.section import Section

    for cls in sections():
        assert cls.model_config["extra"] == "forbid" and cls.model_config["frozen"], cls
        if cls is not Section:
            with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
                cls.model_validate({"no_such_key": 1})


# -- rule 1: an option is an attribute with a docstring ---------------------------------------------------------------


def test_every_option_says_what_it_is():
    undescribed = [
        f"{cls.__name__}.{key}"
        for cls in sections()
        for key, field in cls.model_fields.items()
        if not field.description and not (isinstance(field.annotation, type) and field.annotation in sections())
    ]
    undescribed = [entry for entry in undescribed if entry not in ("Preset.adapter", "Preset.optimizer")]
    assert not undescribed, undescribed


# -- rule 9: no guarding against ourselves ----------------------------------------------------------------------------


def test_attributes_are_not_looked_up_by_name():
    found = {
        (name(path), node.func.id)
        for path in files(*PROGRAM)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr")
    }
    assert_exact(found, ATTRIBUTES_BY_NAME, "getattr and hasattr")


def test_no_bare_except():
    found = [
        f"{name(path)}:{node.lineno}"
        for path in files(*EVERYTHING)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not found, found


def test_keyword_arguments_are_not_passed_through():
    found = []
    for path in files(*PROGRAM):
        for function in ast.walk(tree(path)):
            if not isinstance(function, ast.FunctionDef) or function.args.kwarg is None:
                continue
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                passed = [k.value.id for k in call.keywords if k.arg is None and isinstance(k.value, ast.Name)]
                if function.args.kwarg.arg in passed and (name(path), function.name) not in PASSED_ON:
                    found.append(f"{name(path)}:{call.lineno} passes **{function.args.kwarg.arg} on")
    assert not found, found


# -- and besides ------------------------------------------------------------------------------------------------------


def test_every_file_says_what_it_is():
    silent = [name(path) for path in files(*EVERYTHING) if source(path).strip() and not ast.get_docstring(tree(path))]
    assert not silent, silent


def test_nothing_is_left_for_later():
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK|" + "place" + r"holder)\b", re.IGNORECASE)
    here = Path(__file__)
    found = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in files(*EVERYTHING)
        if path != here
        for number, line in enumerate(source(path).splitlines(), 1)
        if words.search(line)
    ]
    assert not found, found


def test_every_method_and_family_is_one_file():
    assert set(adapters.methods()) <= {path.stem for path in files("modules/adapters")}
    assert set(families.names()) <= {path.stem for path in files("modules/families")}
