"""Imports go one way, and some things are touched in one place only: read off the source, not off what runs."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import sidestep
from sidestep.methods import METHODS

ROOT = Path(sidestep.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def module_name(file: Path) -> str:
    return ".".join(("sidestep", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def imports(file: Path) -> set[str]:
    """What a file imports anywhere in it, as absolute names: of `from a import b` a.b if that is a module, else a."""
    package = module_name(file).split(".")
    if file.name != "__init__.py":
        package.pop()
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            inner = {f"{base}.{alias.name}" for alias in node.names} & MODULES
            found.update(inner or {base})
    return found


MODULES = {module_name(file) for file in FILES}

THIRD_PARTY = {"torch", "numpy", "pyarrow", "PIL", "sklearn", "datasets", "huggingface_hub"}

# What a folder may import, besides the standard library and itself.
ALLOWED: dict[str, set[str]] = {
    "core": {"torch", "sidestep.errors"},
    "nn": {"torch", "sidestep.families", "sidestep.errors"},
    "families": {"torch", "sidestep.errors", "sidestep.named"},
    "methods": {"torch", "sidestep.core", "sidestep.nn", "sidestep.families", "sidestep.errors", "sidestep.named"},
    "engines": {"torch", "sidestep.core", "sidestep.errors"},
    "models": {"torch", "sidestep.errors", "sidestep.named"},
    "data": {*THIRD_PARTY, "sidestep.core.keys", "sidestep.errors"},
    # It reads what runs have left, and measures nothing.
    "report": {
        "numpy",
        "matplotlib",
        "jinja2",
        *(f"sidestep.{name}" for name in ("config", "errors", "files", "folder", "layout")),
    },
}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_what_lies_below_it(folder: str) -> None:
    allowed = ALLOWED[folder] | {f"sidestep.{folder}"}
    for file in (ROOT / folder).rglob("*.py"):
        for name in imports(file):
            standard = name.split(".")[0] in sys.stdlib_module_names
            assert standard or any(within(name, package) for package in allowed), f"{module_name(file)} imports {name}"


def test_the_rule_sees_relative_lazy_and_plain_imports() -> None:
    """Guards the test above: imports it is known to have to find."""
    assert "sidestep.core.keys" in imports(ROOT / "core" / "cell.py")  # from .keys import
    assert "sidestep.methods.local_heads" in imports(ROOT / "methods" / "deep_supervision.py")
    assert "sidestep.core.method" in imports(ROOT / "methods" / "__init__.py")  # for the type checker only
    assert "sklearn.datasets" in imports(ROOT / "data" / "files.py")  # inside a function
    assert "hashlib" in imports(ROOT / "core" / "keys.py")


def test_nothing_imports_the_command_line() -> None:
    for module, user in (("sidestep.cli", "sidestep.__main__"), ("sidestep.commands", "sidestep.cli")):
        users = {module_name(file) for file in FILES if any(within(name, module) for name in imports(file))}
        assert users <= {user}


def test_errors_import_nothing_of_the_package() -> None:
    assert not any(within(name, "sidestep") for name in imports(ROOT / "errors.py"))


def classes(folder: str) -> set[str]:
    trees = [ast.parse(file.read_text()) for file in (ROOT / folder).rglob("*.py")]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def named(folder: str, words: set[str]) -> set[str]:
    """Which of the words stand anywhere in a folder's source, comments included."""
    text = "\n".join(file.read_text() for file in (ROOT / folder).rglob("*.py"))
    return words & set(re.findall(r"\w+", text))


def test_an_engine_never_names_a_method() -> None:
    methods = {where.partition(":")[2] for where in METHODS.values()} | set(METHODS)
    assert named("engines", methods | {"METHODS"}) == set()


def test_a_method_never_names_an_engine() -> None:
    engines = classes("engines")
    assert "Streaming" in engines
    assert named("methods", engines | {"engines"}) == set()
    assert named("core", engines | {"engines", "METHODS"}) == set()


GLOBAL_RANDOMNESS = re.compile(
    r"""\btorch\.(manual_seed|seed|initial_seed|random|default_generator|get_rng_state|set_rng_state)\b
      | \btorch\.(cuda|mps|xpu)\.(manual_seed|seed|default_generators|get_rng_state|set_rng_state|random)
      | (?<![\w.])random\.(?!Random\b)\w+  # the module's own functions share one generator
      | \b(np|numpy)\.random\.(?!default_rng|Generator)""",
    re.VERBOSE,
)


def code(file: Path) -> str:
    """A file's code without its comments."""
    return ast.unparse(ast.parse(file.read_text()))


def test_only_keys_touches_the_global_generators() -> None:
    users = {module_name(file) for file in FILES if GLOBAL_RANDOMNESS.search(code(file))}
    assert users == {"sidestep.core.keys"}


@pytest.mark.parametrize(
    ("line", "touches"),
    [
        ("torch.manual_seed(0)", True),
        ("torch.cuda.manual_seed_all(0)", True),
        ("random.seed(0)", True),
        ("np.random.rand(3)", True),
        ("random.Random(3).random()", False),
        ("np.random.default_rng(3)", False),
        ("torch.randn(3, generator=g)", False),
    ],
)
def test_the_search_for_global_randomness_finds_what_it_should(line: str, touches: bool) -> None:
    assert bool(GLOBAL_RANDOMNESS.search(line)) == touches


def test_no_public_name_is_also_a_module() -> None:
    """Importing a module `sidestep.fit` would put it in the place of the function `sidestep.fit`."""
    assert not [name for name in sidestep.__all__ if (ROOT / f"{name}.py").exists() or (ROOT / name).is_dir()]
    assert all(callable(getattr(sidestep, name)) for name in sidestep.__all__)
