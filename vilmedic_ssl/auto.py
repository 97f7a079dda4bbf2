"""A trained model and what it takes to feed it: from a run folder, a checkpoint, a folder of
ViLMedic's model zoo, or the Hugging Face hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vilmedic_ssl import auto_vilmedic
from vilmedic_ssl.data.datasets.tok import ImageDataset
from vilmedic_ssl.data.images import ImageFiles
from vilmedic_ssl.data.legacy_keys import modern
from vilmedic_ssl.data.texts import Texts
from vilmedic_ssl.data.transforms import Pipeline, Transform
from vilmedic_ssl.errors import Unobtainable, UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.dalle_files import read_dalle_pytorch
from vilmedic_ssl.executors.stored import sealed
from vilmedic_ssl.experiment.texts import take_text, texts_for
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.models.dalle import DALLE
from vilmedic_ssl.models.vae import VAE
from vilmedic_ssl.registry import find, load_plugins
from vilmedic_ssl.schema import build, complete, schema

ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")
WANTED = ("*.pth", "*.ckpt", "*.yml", "*.json", "*.txt", "vocab*")  # of a repository
File = str | Path


class Processor:
    """Files as the model saw them in evaluation: the same reading, resizing and normalisation."""

    label_names: Sequence[str] = ()  # of the classes that the model tells apart

    def __init__(self, transform: Transform):
        self.transform = transform

    def inference(self, image: File | list[File]) -> dict[str, Tensor]:
        """Paths as a batch: `images` (N, C, H, W) float32.

        Raises:
            UserError: a file is missing or unreadable, or there is none.
        """
        paths = [Path(p) for p in (image if isinstance(image, list) else [image])]
        if not paths:
            raise UserError(
                "processor.inference: the list of images is empty; give one path at least"
            )
        files = ImageFiles(paths, self.transform, augment=False)
        return {"images": torch.stack([files.view(i, 0) for i in range(len(paths))])}

    def view_of(self, image: Tensor) -> Tensor:
        """A picture (C, H, W) float32 in [0, 1] as the model sees it in evaluation; grey ones are
        repeated for a model of colour, colours averaged for one of grey.
        """
        mode = "rgb" if self.transform.channels == "rgb" else "gray"
        if mode == "gray":
            image = image.mean(0, keepdim=True)
        pipeline = Pipeline(self.transform, channels=mode, random=False)
        whole = image if mode == "gray" else image.expand(3, -1, -1)
        return pipeline(pipeline.prepare(whole), 0)

    def __call__(self, *given: Any, **named: Any) -> dict[str, Tensor]:
        """The same as `inference`."""
        return self.inference(*given, **named)


class PairProcessor(Processor):
    """Files and texts; as many of each as one likes."""

    def __init__(self, transform: Transform, texts: Texts):
        super().__init__(transform)
        self.texts = texts
        self.whole = Texts(replace(texts.settings, sections=[]), texts.tokenizer)

    def inference(  # type: ignore[override]
        self, seq: str | list[str] | None = None, image: File | list[File] | None = None
    ) -> dict[str, Tensor]:
        """Texts and paths as a batch: `images` (N, C, H, W) float32, and `input_ids`,
        `attention_mask` and `words` (M, L) int64.

        Texts go through the processing of the training reports. One without the sections that were
        read of those is read whole: prompts have none.

        Raises:
            UserError: neither texts nor images; a text that says nothing; a missing or unreadable
                file.
        """
        if seq is None and image is None:
            raise UserError("processor.inference: give seq=, texts, or image=, paths, or both")
        batch = {} if image is None else super().inference(image)
        return batch if seq is None else batch | self._read([seq] if isinstance(seq, str) else seq)

    def _read(self, texts: list[str]) -> dict[str, Tensor]:
        said = [self.texts.prepare(text) or self.whole.prepare(text) for text in texts]
        if not said:
            raise UserError(
                "processor.inference: the list of texts is empty; give one text at least"
            )
        for text, rest in zip(texts, said, strict=True):
            if not rest:
                raise UserError(
                    f"processor.inference: of the text {text!r} nothing is left behind the "
                    f"processing {self.texts.settings.processing!r} of this model; write more words"
                )
        return self.texts.batch(said)


class AutoModel:
    """`AutoModel.from_pretrained(path)` gives (model in eval mode, processor)."""

    @staticmethod
    def from_pretrained(
        path: File, *, plugins: Sequence[str] = ()
    ) -> tuple[PretrainingModel, Processor]:
        """Load a model onto the CPU.

        `model(**processor.inference(image="film.png"))` has `encoder` (N, D) and `visual` (N, P);
        models that read reports take `seq="no effusion"`, too. Modules that register the model's
        proto must be named in `plugins`: a checkpoint alone never makes code run.

        Args:
            path: a run folder (its best checkpoint), a checkpoint, a folder of ViLMedic's zoo (one
                .pth, config.yml), or the name of one of these on the hub, owner/name; a vae.pt or
                dalle.pt of dalle-pytorch, whose tokenizer is not in the file. What exists here is
                not looked for there.

        Raises:
            UserError: nothing there, or not a checkpoint of ours, ViLMedic's or dalle-pytorch's.
        """
        load_plugins(plugins)
        place = Path(path).expanduser()
        if not place.exists():
            place = _fetched(str(path))
        names: list[str] = []
        if (place / auto_vilmedic.CONFIG).is_file():
            model, transform, texts = auto_vilmedic.load(place)
        else:
            model, transform, texts, names = _load(_file_in(place) if place.is_dir() else place)
        processor = Processor(transform) if texts is None else PairProcessor(transform, texts)
        processor.label_names = names
        return model.eval(), processor


def _load(file: Path) -> tuple[PretrainingModel, Transform, Texts | None, list[str]]:
    """What a checkpoint of ours holds, or a file of dalle-pytorch."""
    try:
        content = checkpoint.read_run(file)
    except UserError:
        theirs = read_dalle_pytorch(file) if file.is_file() else None
        if theirs is None:
            raise
        return theirs, _for_vae(theirs), None, []
    model, transform, texts = described(content, file)
    checkpoint.load_weights(model, content["ema"] or content["model"], file)
    return model, transform, texts, checkpoint.names_of(content)


def described(
    content: Mapping[str, Any], file: Path
) -> tuple[PretrainingModel, Transform, Texts | None]:
    """The model with fresh weights, the transform of its images and what reads its texts, as a
    checkpoint of a run describes them. Nothing that its config names is opened, fetched or
    imported.

    Raises:
        UserError: it describes no model.
    """
    stored = sealed(content["config"]["model"])
    made = find(stored["proto"], folder="models", where=f"{file}: model.proto")
    model_node = complete(stored, made, "model")
    node = {**content["config"], "model": model_node}
    texts = texts_for(node, content)
    take_text(node, content, texts)
    transform = transform_of(node.get("dataset") or {})
    model: PretrainingModel = build(model_node, where="model")
    return model, transform, texts


def _for_vae(model: VAE | DALLE) -> Transform:
    """Images as a VAE takes them."""
    vae: Any = model.vae if isinstance(model, VAE) else model.dalle.vae
    size, channels = vae.shape.image_size, "gray" if vae.shape.channels == 1 else "rgb"
    return Transform(resize=size, crop=size, channels=channels, mean=[0.0], std=[1.0])  # type: ignore[arg-type]


def _file_in(folder: Path) -> Path:
    """The best checkpoint, or the only one.

    Raises:
        UserError: none, or several that have no score.
    """
    files = sorted(folder.glob("*.pth"))
    if len(files) == 1:
        return files[0]
    if not checkpoint.best_files(folder):
        raise UserError(
            f"{folder}: there is no checkpoint to choose: neither one named by a score "
            f"(SCORE_EPOCH_SEED.pth), nor a single .pth, nor ViLMedic's {auto_vilmedic.CONFIG} "
            f"({len(files)} .pth there); name a run folder, or one of the files"
        )
    return checkpoint.find(folder, "best")


def _fetched(name: str) -> Path:
    """The folder of a repository of the hub, fetched unless it is in the cache.

    Raises:
        Unobtainable: no such name, or no way to the hub.
    """
    looked = (
        f"there is no file or folder {name!r}; write a run folder, a checkpoint (.pth), a folder "
        "of ViLMedic's model zoo, or the name of a repository on the Hugging Face hub (owner/name)"
    )
    kept = auto_vilmedic.cached(name)
    if kept is not None:
        return kept
    if not ON_THE_HUB.fullmatch(name) or name.startswith("."):
        raise Unobtainable(looked)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except Exception as error:  # a dozen kinds, of two libraries
        raise Unobtainable(
            f"{looked}; the hub gave nothing under this name ({type(error).__name__})"
        ) from error


def transform_of(node: Mapping[str, Any]) -> Transform:
    """The transform settings inside a dataset node, wherever its proto keeps them."""
    if isinstance(node.get("image"), Mapping):
        return transform_of(node["image"])
    flat = {ImageDataset.TRANSFORM_KEYS.get(key, key): value for key, value in node.items()}
    flat = {key: value for key, value in flat.items() if key in schema(Transform)}
    keys = node.get("transform") or (flat and modern(flat))
    if not keys:
        raise UserError(f"the dataset {node.get('proto')!r} of this checkpoint tells no transform")
    transform: Transform = build(keys, cls=Transform, where="dataset.transform")
    return transform
