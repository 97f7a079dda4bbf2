"""`vilmedic-ssl explain`: one image, one file of weights, a map of what speaks for a class."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vilmedic_ssl import console
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.experiment.outputs import output_place, write_picture
from vilmedic_ssl.registry import closest

if TYPE_CHECKING:
    from torch import Tensor

    from vilmedic_ssl.experiment.explain_subject import Logits, Subject

Method = Literal["grad_cam", "occlusion"]
DEFAULT = "explain.png"
CELL = 3.0  # inches


def explain(
    image: str | Path,
    weights: str | Path,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    backbone: str | None = None,
    classes: str | None = None,
    wanted: str | None = None,
    method: Method = "grad_cam",
    layer: str | None = None,
    square: int | None = None,
    size: int | None = None,
    beside: Literal["random"] | None = None,
    data: str | Path | None = None,
    plugins: Sequence[str] = (),
) -> Path:
    """Write the image beside a map of what speaks for a class; returns the file.

    Args:
        weights: a run folder, a checkpoint of ours, or a file of weights with a classifier of the
            timm network `backbone`.
        out: None = explain.png, or the next number that is free.
        overwrite: replace something else at `out`.
        classes: names in the order of the logits, separated by commas.
        wanted: name or number of the class; None = the one with the highest logit.
        layer: as in the plug-in `grad_cam`.  square: side of what covers, pixels; None = an eighth
            of the image.
        size: side of the image for foreign weights, pixels; None = as timm has it.
        beside: random = also the network before training.
        data: config whose training images a linear probe learns from, for a checkpoint of ours
            without a classifier; the config in a checkpoint is not asked for paths.
        plugins: modules that register the protos of a checkpoint of ours.

    Raises:
        UserError: unreadable image or weights, no such class, keys that do not fit the weights;
            something else at `out`.
    """
    from PIL import Image

    from vilmedic_ssl.executors.init_weights_read import read_weights
    from vilmedic_ssl.experiment.explain_subject import foreign_subject, own_subject
    from vilmedic_ssl.registry import load_plugins

    _refuse_unwritable(Path(out or DEFAULT))
    words = [backbone, classes, wanted, method, layer, square, size, beside]
    sources = ["explain", str(image), str(weights), *words]
    file, mark = output_place(out, DEFAULT, sources, overwrite=overwrite)
    if method == "grad_cam" and square is not None:
        raise UserError("--square is for --method occlusion; leave it out, or write that")
    if method == "occlusion" and layer is not None:
        raise UserError("--layer is for --method grad_cam; leave it out, or write that")
    load_plugins(plugins)
    try:
        held = read_weights(weights)
    except UserError as error:
        raise UserError(str(error).replace("init_from:", "--weights:", 1)) from error
    if held.judged is not None:
        for option, value in (("--backbone", backbone), ("--size", size)):
            if value is not None:
                raise UserError(f"{option}: {held.path} knows its own; leave it out")
        subject = own_subject(held.path, beside=beside is not None, data=data)
    else:
        if data is not None:
            raise UserError(f"--data: {held.path} is no checkpoint of ours; leave it out")
        subject = foreign_subject(held, backbone, size, beside=beside is not None)
    names = classes.split(",") if classes else subject.names
    with tempfile.TemporaryDirectory() as scratch:
        drawing = Path(scratch) / "explain.png"
        _draw(Path(image), subject, names, wanted, method, layer, square, drawing)
        with Image.open(drawing) as picture:
            write_picture(picture, file, mark)
    return file


def _refuse_unwritable(file: Path) -> None:
    if file.suffix.lower() != ".png":
        raise UserError(f"--out {file}: write the name of a .png file")
    if not file.parent.is_dir():
        raise UserError(f"--out {file}: there is no folder {file.parent}; make it, or name another")


def _draw(
    image: Path,
    subject: Subject,
    names: Sequence[str] | None,
    wanted: str | None,
    method: Method,
    layer: str | None,
    square: int | None,
    out: Path,
) -> None:
    import torch

    from vilmedic_ssl.data.images import ImageFiles
    from vilmedic_ssl.executors.sweep_plots import shortened
    from vilmedic_ssl.nets import saliency
    from vilmedic_ssl.post_processing._heat import Block, Strip, coloured, page

    files = ImageFiles([image], subject.transform, augment=False)
    inputs, shown = files.view(0, 0)[None], files.picture(0).mul(255).round().byte().numpy()
    picture = shown[0] if len(shown) == 1 else shown.transpose(1, 2, 0)
    with torch.no_grad():
        logit_C = next(iter(subject.networks.values()))[1](inputs)[0]
    if names is not None and len(names) != len(logit_C):
        raise UserError(f"--classes: {len(names)} names for {len(logit_C)} logits; write as many")
    names = names or [f"class {c}" for c in range(len(logit_C))]
    c = int(logit_C.argmax()) if wanted is None else _number(wanted, names)
    side = square or max(2, min(inputs.shape[-2:]) // 8)
    maps = []
    for model, logits in subject.networks.values():

        def score(x: Tensor, logits: Logits = logits) -> Tensor:
            return logits(x)[:, c]

        if method == "grad_cam":
            maps.append(saliency.grad_cam(model, score, inputs, layer=layer)[0])
        else:
            drop = saliency.occlusion(score, inputs, size=side, stride=max(1, side // 2))
            maps.append(saliency.normalised(drop)[0])
    cells = [picture, *(coloured(picture, one.numpy()) for one in maps)]
    rank = int((logit_C > logit_C[c]).sum()) + 1
    caption = (
        f"score (logit) {logit_C[c]:.2f}, rank {rank} of {len(logit_C)} classes; from "
        f"{subject.whose}"
    )
    heads = {name: shortened(name, 24) for name in subject.networks}
    for name, one in zip(subject.networks, maps, strict=True):
        if not one.any():
            heads[name] += ": nothing speaks for it"
            console.warn(f"nothing in the image speaks for {names[c]} in the map of {name}")
    page([Block(names[c], ["image", *heads.values()], [Strip(caption, cells)])], out, cell=CELL)


def _number(wanted: str, names: Sequence[str]) -> int:
    if wanted in names:
        return list(names).index(wanted)
    if wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    raise UserError(
        f"--class: no class {wanted!r}; write 0 to {len(names) - 1}, or {closest(wanted, names)}"
    )
