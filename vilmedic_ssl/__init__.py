"""Self-supervised pretraining on medical images and reports: one YAML names the data, the model
and how to score it.

Importing this package imports neither torch nor any other heavy library; the names below load on
first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vilmedic_ssl.compat import install_guard

if TYPE_CHECKING:
    from vilmedic_ssl.auto import AutoModel
    from vilmedic_ssl.experiment import ensemble, load_config, train
    from vilmedic_ssl.schema import build

__version__ = "0.1.0"
__all__ = ["AutoModel", "build", "ensemble", "load_config", "train"]

_HOME = {
    "AutoModel": "vilmedic_ssl.auto",
    "load_config": "vilmedic_ssl.experiment",
    "train": "vilmedic_ssl.experiment",
    "ensemble": "vilmedic_ssl.experiment",
    "build": "vilmedic_ssl.schema",
}

install_guard()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in {"losses", "metrics", "data", "models", "nets"}:
        return import_module(f"vilmedic_ssl.{name}")
    raise AttributeError(f"module 'vilmedic_ssl' has no attribute {name!r}")
