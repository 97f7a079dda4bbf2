"""The torchvision guard: at work beside a torch it was not compiled for, idle where it loads."""

import subprocess
import sys
from pathlib import Path

import pytest

from vilmedic_ssl import compat
from vilmedic_ssl.errors import Unobtainable


def python(code):
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_timm_and_transformers_models_import():
    code = "import vilmedic_ssl, torchvision, timm; from transformers import BertModel; print('ok')"
    assert python(code) == "ok"


def test_installing_the_guard_imports_nothing():
    code = "import sys, vilmedic_ssl; print({'torch', 'torchvision'} & set(sys.modules))"
    assert python(code) == "set()"


def test_probing_for_torchvision_does_not_load_torch():
    code = (
        "import sys, vilmedic_ssl; from importlib.util import find_spec; "
        "assert find_spec('torchvision'); print('torch' in sys.modules)"
    )
    assert python(code) == "False"


@pytest.mark.parametrize("loads", [True, False])
def test_schemas_are_declared_only_when_the_library_does_not_load(tmp_path, monkeypatch, loads):
    import torch

    (tmp_path / "_C.so").touch()
    tried, declared = [], []

    def load_library(path):
        tried.append(Path(path).name)
        if not loads:
            raise OSError("libcudart.so: cannot open shared object file")

    class Library:
        def __init__(self, name, kind):
            declared.append((name, kind))

        def define(self, schema):
            declared.append(schema.split("(")[0])

    monkeypatch.setattr(torch.ops, "load_library", load_library)
    monkeypatch.setattr(torch.library, "Library", Library)
    compat.declare_torchvision_operators(tmp_path)
    assert tried == ["_C.so"]
    assert declared == ([] if loads else [("torchvision", "FRAGMENT"), "nms", "qnms"])


def test_the_guard_is_installed_once():
    compat.install_guard()
    assert sum(finder is compat.TorchvisionGuard for finder in sys.meta_path) == 1


def test_a_missing_package_is_one_sentence():
    with pytest.raises(Unobtainable, match=r"pip install 'vilmedic_ssl\[umap\]'"):
        compat.require("no_such_package_here", extra="umap")
