"""ViLMedic's transform strings, read as data: parsed by Python's own grammar, never run.

Accepted: `transforms.NAME(...)` with plain numbers, texts and sequences; the nesting transforms;
and `lambda x: torch.cat([PIPELINE(x), PIPELINE(x)])`, which draws two views. Everything else is
refused with its column.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.registry import closest

MODULES = ("transforms", "T", "v2", "torchvision.transforms", "torchvision.transforms.v2")
RENAMED = {"Scale": "Resize", "RandomSizedCrop": "RandomResizedCrop"}  # removed from torchvision
RENAMED_KEYS = {"resample": "interpolation", "fillcolor": "fill"}
# Images are float tensors in [0, 1] from the start, so there is nothing left to convert.
DROPPED = ("ToTensor", "PILToTensor", "ToPILImage", "ToImage", "ConvertImageDtype", "ToDtype")
CODE = ("Lambda", "Transform")  # need a function
FLOATS = ("torch.float", "torch.float32")
# The numbers torchvision and Pillow share.
INTERPOLATION = {"NEAREST": 0, "LANCZOS": 1, "BILINEAR": 2, "BICUBIC": 3, "BOX": 4, "HAMMING": 5}
MODE_OWNERS = ("transforms.InterpolationMode", "InterpolationMode", "Image", "PIL.Image")
LONGEST = 10_000  # characters


@dataclass(frozen=True)
class Steps:
    """What a string says.

    Attributes:
        items: names and arguments, without the normalisation.
        views: how often they are drawn per image.
        mean, std: of the normalisation; 0 and 1 where there is none.
    """

    items: list[Any]
    views: int
    mean: list[float]
    std: list[float]


def is_text(chosen: Any) -> bool:
    """True for a ViLMedic string; the name of a preset holds no bracket."""
    return isinstance(chosen, str) and ("(" in chosen or chosen.lstrip().startswith("lambda"))


def parse_transforms(text: str, where: str = "transform") -> Steps:
    """A transform string as declarative steps.

    Raises:
        ConfigError: no such grammar, an unknown transform or argument, a normalisation that is
            not the last step, views drawn by different steps.
    """
    line = " ".join(text.split())
    try:
        if len(line) > LONGEST:
            raise ConfigError(f"{where}: longer than {LONGEST} characters; write a list instead")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(line, mode="eval")
        return _Reader(line, where).read(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        column = getattr(error, "offset", None)
        at = f" at column {column}" if column else ""
        raise ConfigError(
            f"{where}: this is no transform string{at}; write a preset or a list of transforms"
        ) from error


@cache
def known() -> dict[str, inspect.Signature]:
    """Every transform of torchvision v2 with its arguments."""
    from torchvision.transforms import v2

    return {
        name: inspect.signature(cls)
        for name, cls in vars(v2).items()
        if inspect.isclass(cls) and issubclass(cls, v2.Transform) and name not in CODE
    }


class _Reader:
    """Walks one syntax tree; what it does not know it refuses."""

    def __init__(self, text: str, where: str):
        self.text, self.where = text, where

    def refuse(self, node: ast.AST, why: str) -> ConfigError:
        piece = ast.get_source_segment(self.text, node) or ""
        piece = piece if len(piece) <= 40 else f"{piece[:37]}..."
        column = getattr(node, "col_offset", 0) + 1
        return ConfigError(f"{self.where}: {piece!r} at column {column}: {why}")

    def read(self, node: ast.expr) -> Steps:
        calls = self.views(node)
        drawn = [self.split(self.pipeline(call), call) for call in calls]
        for call, steps in zip(calls[1:], drawn[1:], strict=True):
            if steps != drawn[0]:
                raise self.refuse(
                    call, "differs from the first view; all views are drawn by the same steps here"
                )
        items, mean, std = drawn[0]
        return Steps(items, len(drawn), mean, std)

    def views(self, node: ast.expr) -> list[ast.expr]:
        """The pipelines of `lambda x: ...`, one per view; of anything else, itself."""
        if not isinstance(node, ast.Lambda):
            return [node]
        names = node.args
        plain = len(names.args) == 1 and not (
            names.posonlyargs or names.kwonlyargs or names.vararg or names.kwarg or names.defaults
        )
        if not plain:
            raise self.refuse(node, "a lambda takes one image, as in `lambda x: ...`")
        body = node.body
        if isinstance(body, ast.Call) and _dotted(body.func) in ("torch.cat", "torch.stack"):
            body = self.joined(body)
        parts = body.elts if isinstance(body, (ast.List, ast.Tuple)) else [body]
        if not parts:
            raise self.refuse(node, "draws no view")
        return [self.applied(part, names.args[0].arg) for part in parts]

    def joined(self, call: ast.Call) -> ast.expr:
        """The list inside `torch.cat([...], dim=0)`."""
        given = dict(zip(("tensors", "dim"), call.args, strict=False))
        given |= {str(keyword.arg): keyword.value for keyword in call.keywords}
        dim = given.pop("dim", None)
        if len(call.args) > 2 or list(given) != ["tensors"]:
            raise self.refuse(call, "expected a list of views, and dim=0 at most")
        if dim is not None and self.value(dim) != 0:
            raise self.refuse(dim, "views are joined along dim 0")
        if not isinstance(given["tensors"], (ast.List, ast.Tuple)):
            raise self.refuse(given["tensors"], "expected a list of views, written out")
        return given["tensors"]

    def applied(self, node: ast.expr, variable: str) -> ast.expr:
        """`PIPELINE(x)` -> PIPELINE."""
        if isinstance(node, ast.Call) and not node.keywords and len(node.args) == 1:
            argument = node.args[0]
            if isinstance(argument, ast.Name) and argument.id == variable:
                return node.func
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Call):
            method = ast.unparse(node).removeprefix(ast.unparse(called.value))  # .unsqueeze(0)
            raise self.refuse(node, f"remove {method}; views are stacked here without it")
        raise self.refuse(node, f"expected a pipeline applied to {variable}, as in P({variable})")

    def pipeline(self, node: ast.expr, *, nested: bool = False) -> list[tuple[ast.expr, Any]]:
        """(node, item) of every step; a Compose within a Compose is spelled out."""
        name = self.name(node)
        assert isinstance(node, ast.Call)
        if name in DROPPED:
            self.arguments(node, name)
            return []
        if nested and name == "Normalize":
            raise self.refuse(node, "cannot be drawn by chance; make it the last step")
        if name == "Compose" and not nested:
            return self.sequence(self.arguments(node, name).get("transforms", []))
        arguments = self.arguments(node, name)
        if "transforms" in arguments:
            parts = self.sequence(arguments["transforms"], nested=True)
            arguments["transforms"] = [item for _, item in parts]
        return [(node, {name: arguments} if arguments else name)]

    def sequence(self, nodes: list[ast.expr], *, nested: bool = False) -> list[Any]:
        return [step for node in nodes for step in self.pipeline(node, nested=nested)]

    def name(self, node: ast.expr) -> str:
        """NAME of `transforms.NAME(...)`."""
        if not isinstance(node, ast.Call):
            raise self.refuse(node, "expected a transform, as in transforms.Resize(256)")
        owner, _, name = (_dotted(node.func) or "").rpartition(".")
        name = RENAMED.get(name, name)
        if owner not in MODULES:
            raise self.refuse(node.func, "only transforms.NAME may be called here")
        if name not in known():
            raise self.refuse(node.func, f"no such transform; {closest(name, known())}")
        return name

    def arguments(self, call: ast.Call, name: str) -> dict[str, Any]:
        """Arguments by their names in torchvision v2."""
        keys = list(known()[name].parameters)
        if len(call.args) > len(keys):
            raise self.refuse(call, f"{name} takes at most {len(keys)} arguments")
        given = dict(zip(keys, call.args, strict=False))
        for keyword in call.keywords:
            key = RENAMED_KEYS.get(str(keyword.arg), keyword.arg)
            if key not in keys or key in given:
                raise self.refuse(
                    keyword, f"unknown or repeated argument of {name}; {closest(str(key), keys)}"
                )
            given[key] = keyword.value
        nodes = given.get("transforms")
        if nodes is not None and not isinstance(nodes, (ast.List, ast.Tuple)):
            raise self.refuse(nodes, "expected a list of transforms")
        return {k: v.elts if v is nodes else self.value(v) for k, v in given.items()}  # type: ignore[attr-defined]

    def value(self, node: ast.expr) -> Any:
        """A plain number, text or sequence."""
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, type(None))):
            return node.value
        if isinstance(node, (ast.List, ast.Tuple)):
            return [self.value(part) for part in node.elts]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inner = self.value(node.operand)
            if isinstance(inner, (int, float)):
                return -inner
        name = _dotted(node) or ""
        owner, _, mode = name.rpartition(".")
        if owner in MODE_OWNERS and mode in INTERPOLATION:
            return INTERPOLATION[mode]
        if name in FLOATS:
            return "float32"
        raise self.refuse(node, "only plain numbers, texts and lists may stand here")

    def split(
        self, steps: list[tuple[ast.expr, Any]], node: ast.expr
    ) -> tuple[list[Any], list[float], list[float]]:
        """Steps without their normalisation, its mean and its std."""
        items = [item for _, item in steps]
        for (at, _), item in zip(steps[1:], items, strict=False):
            if isinstance(item, dict) and "Normalize" in item:
                raise self.refuse(at, "stands after Normalize, which is the last step here")
        if not items or not isinstance(items[-1], dict) or "Normalize" not in items[-1]:
            return items, [0.0], [1.0]
        given = items.pop()["Normalize"]
        mean, std = given.get("mean"), given.get("std")
        if not (_numbers(mean) and _numbers(std) and len(mean) == len(std)):
            raise self.refuse(steps[-1][0], "expected as many means as standard deviations")
        if len(set(mean)) == len(set(std)) == 1:  # fits grey and colour alike
            mean, std = mean[:1], std[:1]
        return items, [float(v) for v in mean], [float(v) for v in std]


def _numbers(value: Any) -> bool:
    return (
        isinstance(value, list) and value != [] and all(isinstance(v, (int, float)) for v in value)
    )


def _dotted(node: ast.expr) -> str | None:
    """`a.b.c` as text, None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value)
        return f"{owner}.{node.attr}" if owner else None
    return None
