"""The documentation against the program: key tables, names in commands, links, the site."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from types import ModuleType

import pytest
import test_docs_commands
from conftest import REPOSITORY

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl.cli import parser
from vilmedic_ssl.data.download import RECIPES
from vilmedic_ssl.describe import meanings
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.experiment import check
from vilmedic_ssl.schema import schema

PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md"))]
SCRIPTS = {"bin/train.py": "train", "bin/ensemble.py": "ensemble", "data/download.py": "download"}


def refusal(line: str) -> str | None:
    """Why a command line could not work, None when it could: data need not be there."""
    words = shlex.split(line)
    if words[0] == "make":
        makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        unknown = [word for word in words[1:] if not re.search(rf"(?m)^{word}:", makefile)]
        return f"no target {unknown}" if unknown else None
    script = next((word for word in words if word.endswith(".py")), None)
    if script in SCRIPTS:
        words = [SCRIPTS[script], *words[words.index(script) + 1 :]]
    elif script:
        return None if (REPOSITORY / script).is_file() else f"no file {script}"
    else:
        words = words[1:]
    try:
        options = parser().parse_args(words)
        if options.verb == "download":
            unknown = set((options.names or "phantom").split(",")) - set(RECIPES)
            return f"no data set {unknown}" if unknown else None
        config = getattr(options, "config", "ckpt/")  # other verbs have none
        if config.startswith("ckpt/"):  # written by a run
            return None
        check(yaml_config.load(options.config, options.overrides))
    except (UserError, SystemExit) as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs/generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_key_tables_are_up_to_date(generator):
    page = generator.PAGE.read_text(encoding="utf-8")
    assert page == generator.render(page), "run `python docs/generate.py`"


def test_every_key_is_described(generator):
    objects = [obj for group in generator.groups().values() for obj in group]
    assert len(objects) > 20
    missing = [
        f"{obj.__name__}.{key}" for obj in objects for key in set(schema(obj)) - set(meanings(obj))
    ]
    assert not missing, "add a line under `Attributes:` or `Args:` of its docstring"


# Those that test_docs_commands.py does not run in every suite, or not as they stand.
SHOWN = [
    pytest.param(line, id=f"{page.name}: {line[:60]}")
    for page in test_docs_commands.PAGES
    for line in test_docs_commands.lines(page)
    if line.startswith(("python ", "make ", "vilmedic-ssl ", "torchrun "))
    if line in test_docs_commands.INSTEAD or test_docs_commands.online(page)
]


@pytest.mark.parametrize("line", SHOWN)
def test_commands_name_what_exists(line, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert refusal(line) is None


def test_the_check_sees_mistakes(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for line in (
        "make demonstration",
        "python bin/trian.py config/SELFSUP/simclr-phantom.yml",
        "python bin/train.py config/SELFSUP/simclr-fantom.yml",
        "python bin/train.py config/SELFSUP/simclr-phantom.yml trainor.epoch=1",
        "python bin/train.py config/SELFSUP/simclr-phantom.yml trainor.epochs=many",
        "torchrun --nproc_per_node=2 bin/train.py config/SELFSUP/simclr-phantom.yml sead=1",
        "vilmedic-ssl ensemble config/SELFSUP/simclr-phantom.yml ensemblor.split=[test]",
        "python data/download.py fantom",
    ):
        assert refusal(line), line


def anchors(text: str) -> set[str]:
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", text))
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            file = page.parent / name if name else page
            assert file.is_file(), target
            if anchor:
                assert anchor in anchors(file.read_text(encoding="utf-8")), target


def test_the_site_builds_and_asks_nothing_of_the_network(tmp_path):
    """What `make docs` does; then no page loads a script, style, font or picture from elsewhere."""
    build = ["-q", "-n", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "trees")]
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *build, str(REPOSITORY / "docs"), str(site)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (REPOSITORY / "docs").glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")} and (site / "search.html").is_file()
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=\"([^\"]+)", text
        )
        assert loaded and not [url for url in loaded if re.match(r"(https?:)?//", url)], path.name
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\([\"']?(https?:)?//", text), path.name
