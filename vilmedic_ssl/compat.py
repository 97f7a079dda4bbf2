"""Guards around packages that may be missing or only half there."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from vilmedic_ssl.errors import Unobtainable

_kept_alive: list[Any] = []  # torch drops operator schemas together with their Library object


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package.

    Raises:
        Unobtainable: it is not there, and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unobtainable(
            f"{module.split('.')[0]} is not installed ({error}): "
            f"write `pip install 'vilmedic_ssl[{extra}]'`"
        ) from error


def declare_torchvision_operators(folder: Path) -> None:
    """Make torchvision importable beside a torch it was not compiled for.

    torchvision registers meta kernels for its own `nms` at import. Its compiled library declares
    that operator, but a CUDA build cannot be loaded by a CPU-only torch; then, and only then, the
    two schemas are declared here. Transforms and models work; calling the operators themselves
    still raises.
    """
    import torch

    libraries = [path for pattern in ("_C*.so", "_C*.pyd") for path in folder.glob(pattern)]
    try:
        for path in libraries:
            torch.ops.load_library(str(path))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(library)


class TorchvisionGuard:
    """Import finder that answers to the one name `torchvision` and prepares its operators first.

    The work happens in `exec_module`: libraries that merely probe with `find_spec` must not load
    torch.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None or spec.origin is None:
            return spec
        folder, run = Path(spec.origin).parent, spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            declare_torchvision_operators(folder)
            run(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install_guard() -> None:
    """Put the torchvision guard in front of the import system, once. Imports nothing itself."""
    if not any(finder is TorchvisionGuard for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionGuard)  # type: ignore[arg-type]
