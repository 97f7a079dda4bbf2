"""The house plan as tests: who may import whom, what no file may do, and what must stay cheap."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "vilmedic_ssl"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [*sorted((REPOSITORY / "bin").glob("*.py")), REPOSITORY / "data/download.py"]
# Imports point down or stay on the floor; the longest matching name counts.
FLOORS = {
    "errors": 0,
    "registry": 0,
    "schema": 0,
    "scalars": 0,
    "settle": 0,
    "config": 0,
    "compat": 0,
    "dist": 0,
    "locks": 0,
    "files": 0,
    "console": 0,
    "losses": 1,
    "nets": 1,
    "data": 1,
    "metrics": 1,
    "models": 2,
    "executors": 3,
    "post_processing": 4,
    "report": 4,
    "serve": 4,
    "experiment": 5,
    "auto": 5,
    "describe": 5,
    "cli": 5,
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "print", "breakpoint"}
FORBIDDEN_MODULES = {"pickle", "dill", "joblib", "shelve", "marshal", "pandas"}
UNSAFE = {("allow_pickle", True), ("weights_only", False), ("shell", True)}
VAGUE = {"NotImplementedError", "Exception", "BaseException"}


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def floor_of(module: str) -> int:
    """vilmedic_ssl.data.read -> 1; report_charts counts as report."""
    room = module.split(".")[1]
    return FLOORS[room if room in FLOORS else room.split("_")[0]]


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module of this package) for every import in a file, also inside functions."""
    package = module_of(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.startswith("vilmedic_ssl."))


def fresh(code: str) -> str:
    """Standard output of a new interpreter."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_down(path):
    if path.parent == PACKAGE and path.name == "__init__.py":
        return  # the front door names what it loads on first use
    own = floor_of(module_of(path))
    for line, name in own_imports(path):
        if name.split(".")[1] == "__version__":
            continue
        assert floor_of(name) <= own, f"{relative(path)}, line {line}: {name} is a floor above"


def offence(node: ast.AST) -> str | None:
    """What is wrong with one node of a syntax tree, if anything."""
    match node:
        case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
            return f"{name}()"
        case ast.Call(func=ast.Attribute(attr="cuda")):
            return ".cuda() instead of .to(device)"
        case ast.Import(names=names) if {n.name.split(".")[0] for n in names} & FORBIDDEN_MODULES:
            return "a forbidden import"
        case ast.ImportFrom(module=str(name)) if name.split(".")[0] in FORBIDDEN_MODULES:
            return "a forbidden import"
        case ast.keyword(arg=str(name), value=ast.Constant(value=value)) if (name, value) in UNSAFE:
            return f"{name}={value}"
        case ast.Raise(exc=ast.Name(id=name) | ast.Call(func=ast.Name(id=name))) if name in VAGUE:
            return f"raise {name}"
        case ast.ExceptHandler(type=None):
            return "a bare except"
    return None


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=relative)
def test_no_file_does_what_is_forbidden(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 600
    assert "TODO" not in text and "FIXME" not in text
    for node in ast.walk(ast.parse(text)):
        found = offence(node)
        if not (found == "print()" and path.name == "console.py"):
            assert found is None, f"{relative(path)}, line {getattr(node, 'lineno', '?')}: {found}"


def test_the_check_itself_sees_offences():
    for text in (
        "eval('1')",
        "print(1)",
        "model.cuda()",
        "import pickle",
        "from pickle import loads",
        "load(path, weights_only=False)",
        "load(path, allow_pickle=True)",
        "raise NotImplementedError('later')",
        "try: pass\nexcept: pass",
    ):
        assert [node for node in ast.walk(ast.parse(text)) if offence(node)], text


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_scripts_are_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 30


def test_import_and_help_load_nothing_heavy():
    heavy = "{'torch', 'torchvision', 'timm', 'transformers', 'sklearn', 'matplotlib', 'numpy'}"
    assert fresh(f"import sys, vilmedic_ssl; print({heavy} & set(sys.modules))").strip() == "set()"
    for verb in ([], ["train"], ["ensemble"], ["download"], ["describe"], ["audit"]):
        code = (
            "import sys\nfrom vilmedic_ssl.cli import main\n"
            f"try: main({[*verb, '--help']})\nexcept SystemExit as end: code = end.code\n"
            f"print('exit', code, {heavy} & set(sys.modules))"
        )
        assert fresh(code).splitlines()[-1] == "exit 0 set()"


def test_reading_a_config_needs_no_torch_before_its_protos():
    code = (
        "import sys\nfrom vilmedic_ssl import config\n"
        "config.load('config/SELFSUP/simclr-phantom.yml')\n"
        "print({'torch', 'timm', 'transformers', 'numpy'} & set(sys.modules))"
    )
    assert fresh(code).strip() == "set()"


def test_building_a_model_loads_only_what_it_needs():
    code = (
        "import sys\nfrom vilmedic_ssl import build\n"
        "build({'proto': 'SimCLR', 'cnn': {'proto': 'CNN', 'backbone': 'test_resnet'}})\n"
        "print({'transformers', 'sklearn', 'matplotlib', 'pydicom', 'omegaconf'} & "
        "set(sys.modules))"
    )
    assert fresh(code).strip() == "set()"


def test_lazy_names():
    code = (
        "import vilmedic_ssl\n"
        "names = vilmedic_ssl.build, vilmedic_ssl.load_config, vilmedic_ssl.losses.nt_xent\n"
        "names += vilmedic_ssl.metrics.knn, vilmedic_ssl.data.read_image, vilmedic_ssl.train\n"
        "assert all(map(callable, names)) and callable(vilmedic_ssl.ensemble)\n"
        "try: vilmedic_ssl.nothing_like_it\nexcept AttributeError as error: print(error)"
    )
    assert "nothing_like_it" in fresh(code)
