"""The promises that the repository makes about itself: its layout, its documentation, its dependencies."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import medmoco
from medmoco import config
from medmoco.cli.demo import demo_commands

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DEPENDENCIES = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
DEV_DEPENDENCIES = [Requirement(line) for line in EXTRAS["dev"]]
OPTIONAL_DEPENDENCIES = [Requirement(line) for name in EXTRAS.keys() - {"dev"} for line in EXTRAS[name]]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MODULES = sorted((ROOT / "medmoco").rglob("*.py"))
PAGES = ("README.md", "CONTRIBUTING.md", "manifests/README.md", "dataset_processing/README.md")
DOCUMENTS = [*(ROOT / page for page in PAGES), *sorted((ROOT / "docs").rglob("*.md"))]

# Longer than the design likes, and why that is right. An entry that is no longer needed fails the test.
LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path: Path) -> Iterator[str]:
    """Yield the full name of every module that a file imports, wherever in it."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


# ---- settings files ----


@pytest.mark.parametrize("path", CONFIGS, ids=_name)
def test_configs__load_and_are_short(path: Path) -> None:
    config.load(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 90  # so that they fit on a page of the site


# ---- commands in the documentation and the Makefile ----


def _lines_of_code(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if path.name == "Makefile":
        yield from (re.sub(r"^\t@?", "", line) for line in text.splitlines() if line.startswith("\t"))
        return
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if language in ("", "bash", "console", "sh", "shell"):
            yield from (line.strip().removeprefix("$ ") for line in block.replace("\\\n", " ").splitlines())


def _shell_words(line: str) -> shlex.shlex:
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    return words


def _medmoco_commands(path: Path) -> Iterator[list[str]]:
    """Yield the words after `medmoco` of each such command in a document's code blocks."""
    for line in _lines_of_code(path):
        if not re.search(r"\bmedmoco\s", line):
            continue
        words: list[str] = []
        for word in [*_shell_words(line), ";"]:
            if set(word) <= set("();<>|&"):
                if words[:1] == ["medmoco"]:
                    yield words[1:]
                words = []
            else:
                words.append(word)


COMMANDS = [
    pytest.param(words, id=f"{_name(path)}: medmoco {' '.join(words)}")
    for path in [*DOCUMENTS, ROOT / "Makefile"]
    for words in _medmoco_commands(path)
]
DEMO = demo_commands(Path("configs"), Path("weights.pth"))
COMMANDS += [pytest.param(words, id=f"demo: medmoco {' '.join(words)}") for words in DEMO]


def test_documented_commands__are_those_of_the_demo_and_the_makefile() -> None:
    assert list(_medmoco_commands(ROOT / "Makefile")) == [["demo", "--overwrite"], ["demo", "--volumes", "--overwrite"]]
    steps = ["check", "preview", "pretrain", "evaluate", "curve", "export", "verify", "report"]
    assert [words[0] for words in DEMO] == steps


def _parse(words: list[str]) -> dict[str, Any]:
    """Parse a command as the command line does, short of converting values and running it."""
    import typer

    from medmoco.cli import app

    group: Any = typer.main.get_command(app)
    is_command = not words[0].startswith("-")
    command = group.commands[words[0]] if is_command else group
    parser = command.make_parser(group.context_class(command))
    given, left_over, _ = parser.parse_args(args=words[1:] if is_command else words)
    assert not left_over
    missing = [parameter.name for parameter in command.params if parameter.required and not given.get(parameter.name)]
    assert not missing
    return dict(given)


@pytest.mark.parametrize("words", COMMANDS)
def test_documented_commands__parse(words: list[str]) -> None:
    given = _parse(words)
    overrides = given.get("overrides") or ()
    named = Path(next((value for flag, value in pairwise(words) if flag in {"--config", "-c"}), ""))
    # Settings files that are ours must be there; those that stand for the reader's own are replaced by one of ours.
    path = ROOT / named if named.parts[:1] == ("configs",) else CONFIGS[0]
    config.load(path, [word for word in overrides if "=" in word])


@pytest.mark.parametrize("words", [["no-such-command"], ["pretrain", "--no-such-option"], ["export"]])
def test_documented_commands__wrong_ones_are_noticed(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"no-such-command|No such option|out"):
        _parse(words)


def test_documented_commands__are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "medmoco in prose\n```bash\n$ medmoco check --config my.yaml \\\n  train.epochs=1  # comment\n"
        'cd x && medmoco evaluate --where "A == 1" > log.txt\n```\n```yaml\nmedmoco no\n```\n'
    )
    assert list(_medmoco_commands(page)) == [
        ["check", "--config", "my.yaml", "train.epochs=1"],
        ["evaluate", "--where", "A == 1"],
    ]
    assert any(_medmoco_commands(ROOT / "README.md"))


# ---- files in the documentation ----


def test_readme__is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 80


def test_documents__name_files_that_exist() -> None:
    named = re.compile(r"`((?:tests|medmoco|configs|examples|benchmarks|docs)/[\w./-]+\.(?:pyi?|yaml|md|txt))`")
    files = [(page, file) for page in DOCUMENTS for file in named.findall(page.read_text(encoding="utf-8"))]
    assert len(files) > 20
    assert not [f"{_name(page)}: {file}" for page, file in files if not (ROOT / file).is_file()]


def test_contributing__answers_where_things_are() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| question | file |")[2]
    answers = re.findall(r"^\| .+\? \| `(medmoco/[\w./]+)` \|$", table.partition("\n\n")[0], flags=re.MULTILINE)
    assert len(set(answers)) == len(answers) >= 10
    assert not [file for file in answers if not (ROOT / file).is_file()]


# ---- the package ----


def test_modules__each_has_its_tests() -> None:
    missing = []
    for module in MODULES:
        inside = module.relative_to(ROOT / "medmoco")
        test = ROOT / "tests" / inside.parent / f"test_{inside.name}"
        if module.stem != "__init__" and not test.is_file():
            missing.append(_name(test))
    assert not missing


def _rooms(folder: Path) -> list[Path]:
    """Return the folders of modules inside a folder, at any depth."""
    return sorted(path.parent for path in folder.rglob("__init__.py") if path.parent != folder)


def test_rooms__the_map_in_the_package_docstring_names_each() -> None:
    outline = (ast.get_docstring(_tree(ROOT / "medmoco/__init__.py")) or "").partition("\n\nerrors.py")[2]
    parents: list[str] = []
    listed = []
    for indent, name in re.findall(r"^( *)(\w+)/ ", outline, flags=re.MULTILINE):
        parents = [*parents[: len(indent) // 4], name]
        listed.append("/".join(parents))
    # Named in the line of the subpackage around them.
    small = {"data/image_io/formats", "data/manifest/tables", "datasets/phantoms"}
    rooms = {room.relative_to(ROOT / "medmoco").as_posix() for room in _rooms(ROOT / "medmoco")}
    assert sorted(listed) == sorted(rooms - small)
    layers = [line.split(" | ") for line in PYPROJECT["tool"]["importlinter"]["contracts"][0]["layers"]]
    depth = {room: -number for number, line in enumerate(layers) for room in line}
    shown = [depth[room] for room in listed if "/" not in room]
    assert shown == sorted(shown)


def test_rooms__hold_at_most_nine_modules() -> None:
    exempt = {"training", "detection", "exporting", "cli"}
    crowded = {
        _name(room): count
        for room in _rooms(ROOT / "medmoco")
        if room.name not in exempt and (count := len([*room.glob("*.py")]) - 1) > 9
    }
    assert not crowded


def test_modules__are_short() -> None:
    long = {_name(path) for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 400}
    assert long == set(LONG_MODULES)


def test_functions__are_short() -> None:
    """A function is long by its code; public docstrings have to describe every argument, and an example."""
    long = set()
    for path in MODULES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = len((ast.get_docstring(node, clean=False) or "").splitlines())
                if (node.end_lineno or 0) - node.lineno + 1 - lines > 60:
                    long.add(f"{_name(path)}:{node.name}")
    assert long == set(LONG_FUNCTIONS)


def test_modules__nothing_is_unpickled() -> None:
    unsafe = []
    for path in MODULES:
        unsafe += [f"{_name(path)}: import {name}" for name in _imports(path) if name in {"dill", "joblib", "pickle"}]
        for call in (node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)):
            text = ast.unparse(call)
            loads_weights = ast.unparse(call.func) == "torch.load" and "weights_only=True" not in text
            if loads_weights or "allow_pickle=True" in text or "read_pickle" in text:
                unsafe.append(f"{_name(path)}:{call.lineno}")
    assert not unsafe


PUBLIC = {
    "Augmentation", "Classifier", "Curve", "DryRun", "Encoder", "Evaluation", "External", "Finding", "MedmocoError",
    "MoCo", "Packed", "Run", "Segmenter", "TwoViews", "check", "chest_films", "curve", "detect", "doctor", "dry_run",
    "embed",
    "evaluate", "export", "external", "finetune", "import_weights", "init", "list_models", "load_classifier",
    "load_config", "load_encoder", "load_segmenter",
    "neighbours", "pack", "phantom", "placement", "prepare", "pretrain", "preview",
    "projection", "reconstruct", "report", "saliency", "segment", "split", "tune",
    "verify",
}  # fmt: skip
"""What `import medmoco` offers. A name that goes, or changes its meaning, is a line in CHANGELOG.md."""


def test_api__names_are_pinned_and_there() -> None:
    assert set(medmoco.__all__) == PUBLIC
    assert set(dir(medmoco)) >= PUBLIC
    assert all(getattr(medmoco, name).__name__ == name for name in PUBLIC)
    assert (ROOT / "medmoco/py.typed").is_file()


@pytest.mark.parametrize("statement", ["import medmoco", "import medmoco; medmoco.load_config({'out': 'a'})"])
def test_api__import_loads_nothing_heavy(statement: str) -> None:
    statement = statement.replace("{'out': 'a'}", "{'out': 'a', 'data': {'manifest': 'm', 'root': 'r'}}")
    program = f"import sys; {statement}; print(*sorted(set(sys.modules) & set({HEAVY})))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == (["pydantic"] if "load_config" in statement else [])


HEAVY = ["cv2", "monai", "onnxruntime", "pandas", "pydantic", "pydicom", "sklearn", "timm", "torch", "torchvision"]


@pytest.mark.parametrize("module", ["reporting.report", "evaluation.results"])
def test_results__are_read_without_networks(module: str) -> None:
    program = f"import sys, medmoco.{module}; print(*sorted(set(sys.modules) & {{'monai', 'timm'}}))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not run.stdout.split()


def test_help__imports_nothing_heavy() -> None:
    program = (
        "import sys; from medmoco.cli import main; sys.argv = ['medmoco', '--help']\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        f"print('LOADED', *sorted(set(sys.modules) & set({HEAVY})))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "pretrain" in run.stdout
    assert run.stdout.splitlines()[-1].split() == ["LOADED"]


# ---- dependencies and versions ----


def test_dependencies__are_ranges() -> None:
    for requirement in [*DEPENDENCIES, *OPTIONAL_DEPENDENCIES, *DEV_DEPENDENCIES]:
        operators = {clause.operator for clause in requirement.specifier}
        assert requirement.url is None, requirement
        assert ">=" in operators, requirement
        assert operators <= {">=", "<"}, requirement


def test_dependencies__every_import_is_declared() -> None:
    declared = {canonicalize_name(requirement.name) for requirement in [*DEPENDENCIES, *OPTIONAL_DEPENDENCIES]}
    distributions = packages_distributions()
    undeclared = {
        f"{_name(path)}: {name}"
        for path in MODULES
        for name in {full.partition(".")[0] for full in _imports(path)} - sys.stdlib_module_names - {"medmoco"}
        if not declared & {canonicalize_name(distribution) for distribution in distributions.get(name, [])}
    }
    assert not undeclared


def test_dependencies__page_explains_each() -> None:
    page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([\w-]+)`", page, flags=re.MULTILINE))
    assert rows == {requirement.name for requirement in [*DEPENDENCIES, *OPTIONAL_DEPENDENCIES, *DEV_DEPENDENCIES]}


def test_environment__adds_only_python_to_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, by_pip = environment["dependencies"]
    floor = python.removeprefix("python=")
    assert environment["name"] == PYPROJECT["project"]["name"]
    assert SpecifierSet(PYPROJECT["project"]["requires-python"]) == SpecifierSet(f">={floor}")
    assert pip == "pip"
    assert by_pip == {"pip": ["--editable ."]}


def test_python__classifiers_begin_with_the_floor() -> None:
    prefix = "Programming Language :: Python :: 3."
    minors = [int(line.removeprefix(prefix)) for line in PYPROJECT["project"]["classifiers"] if line.startswith(prefix)]
    floor = min(minors)
    assert minors == [*range(floor, floor + len(minors))]
    assert SpecifierSet(PYPROJECT["project"]["requires-python"]) == SpecifierSet(f">=3.{floor}")


def test_containers__copy_what_the_wheel_is_built_from() -> None:
    built_from = {*PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]}
    needed = built_from - {"CHANGELOG.md", "CITATION.cff"} | {"LICENSE", "README.md", "pyproject.toml"}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == needed
    files = (ROOT / "apptainer.def").read_text(encoding="utf-8").partition("%files\n")[2].partition("\n\n")[0]
    copied = dict(line.split() for line in files.splitlines())
    assert copied == {name: f"/source/{name}" for name in needed}
    assert all((ROOT / name).exists() for name in needed)


def test_issue_forms__ask_for_no_patient_data() -> None:
    forms = [path for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]
    assert len(forms) == 2
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys()
        assert "Never post patient data" in form["body"][0]["attributes"]["value"]
        identifiers = [field["id"] for field in form["body"][1:]]
        assert len(set(identifiers)) == len(identifiers)


def test_version__is_the_same_everywhere() -> None:
    version = PYPROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert version in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# ---- privacy of the repository itself ----


def test_files__name_no_place_on_a_machine() -> None:
    folders = "medmoco manifests dataset_processing configs tests benchmarks docs examples .ci .github"
    inside = [path for folder in folders.split() for path in (ROOT / folder).rglob("*")]
    kinds = {"", ".cff", ".def", ".csv", ".ipynb", ".json", ".md", ".py", ".svg", ".toml", ".yaml", ".yml"}
    files = [
        path
        for path in [*ROOT.iterdir(), *inside]
        if path.is_file() and path.name != ".git" and path.suffix in kinds and "_cache/" not in _name(path)
    ]
    # A home or work folder at the start of a path, and wherever this checkout happens to lie.
    place = re.compile(rf"(?<![\w.}}])/(?:home|root|Users|work)/\w|{re.escape(f'{ROOT}/')}")
    named = [_name(path) for path in files if place.search(path.read_text(encoding="utf-8", errors="replace"))]
    assert not named
