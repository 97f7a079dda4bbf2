"""ViLMedic's layout: `<root>/<split>.<file>`, line n of every file is sample n."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from vilmedic_ssl.data.datasets.base import Context, ImageRecords, MedicalDataset
from vilmedic_ssl.data.images import ImageFiles
from vilmedic_ssl.data.legacy_keys import modern
from vilmedic_ssl.data.lines import lines_of
from vilmedic_ssl.data.paths import locate
from vilmedic_ssl.data.patients import patients_of
from vilmedic_ssl.data.transforms import Transform
from vilmedic_ssl.errors import ConfigError, MissingSplit, UserError
from vilmedic_ssl.registry import proto

SPLITS = ("train", "validate", "test")


def read_lines(root: str, split: str, file: str, *, blank: bool = False) -> list[str]:
    """The lines of `<root>/<split>.<file>`, as `lines_of` reads them.

    Args:
        blank: keep blank lines at the end, which can be empty reports; elsewhere they are kept
            anyway, so that line n of each file stays the same sample.

    Raises:
        MissingSplit: no such file; the sentence lists the splits there are.
        UserError: empty, not UTF-8, or with lone carriage returns.
    """
    path = Path(root) / f"{split}.{file}"
    if not path.is_file():
        there = sorted(p.name.removesuffix(f".{file}") for p in Path(root).glob(f"*.{file}"))
        hint = f"splits there: {', '.join(there)}" if there else "set dataset root and file"
        raise MissingSplit(f"there is no {path}; {hint}")
    lines = lines_of(path)
    while lines and not blank and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"{path} is empty; write one line per sample, or leave the split out")
    return lines


def same_length(split: str, **parts: MedicalDataset) -> None:
    """Refuse paired files of different length."""
    lengths = {name: len(part) for name, part in parts.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise UserError(
            f"split {split!r}: paired files differ in their number of lines ({told}); align them"
        )


@proto
class ImageDataset(ImageRecords):
    """Images named line by line.

    Attributes:
        root, file: `<root>/<split>.<file>` lists one image path per line.
        image_path: folder the lines are relative to.
        ext: appended to lines that carry no extension, for example .jpg.
        resize, crop: short side after reading and side of the crop, pixels; "(224,224)" works too.
        custom_transform_train, custom_transform_validate: preset name, list of transforms, or
            ViLMedic's `transforms.Compose([...])` text; null = resize, random crop, flip for
            training and resize to the crop for evaluation.
        views: random views per image in training; null = 1, or those of a two-view text.
        before, second, local, local_views, local_crop: as in `transform` of the other datasets.
        channels, mean, std, load_memory, cache, cache_gb: as in `transform` of the other datasets.
        patient_pattern: regular expression whose group 1 (or match) in the line names the patient.
    """

    KEY_ALIASES = {"custom_transform_val": "custom_transform_validate"}
    TRANSFORM_KEYS = {"custom_transform_train": "train", "custom_transform_validate": "evaluate"}

    def __init__(
        self,
        context: Context,
        *,
        root: str,
        file: str,
        image_path: str = "",
        ext: str | None = None,
        resize: int | list[int] | str = 256,
        crop: int | list[int] | str = 224,
        custom_transform_train: str | list[Any] | None = None,
        custom_transform_validate: str | list[Any] | None = None,
        views: int | None = None,
        before: list[Any] = (),  # type: ignore[assignment]
        second: str | list[Any] | None = None,
        local: str | list[Any] | None = None,
        local_views: int = 0,
        local_crop: int | list[int] = 96,
        channels: str = "auto",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        load_memory: bool = False,
        cache: bool = False,
        cache_gb: float = 50,
        patient_pattern: str | None = None,
    ):
        if channels not in ("auto", "gray", "rgb"):
            raise ConfigError(f"dataset.channels: {channels!r} is not one of 'auto', 'gray', 'rgb'")
        lines = read_lines(root, context.split, file)
        folder = Path(image_path)
        paths = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                raise UserError(
                    f"{root}/{context.split}.{file}, line {number}: blank; every line names an "
                    "image"
                )
            path = locate(folder, line.strip())
            paths.append(path.with_name(path.name + ext) if ext and not path.suffix else path)
        self.split, self.ids = context.split, [line.strip() for line in lines]
        self.augment = context.augment
        everything = [line for name in SPLITS for line in _if_there(root, name, file)]
        self.patients = patients_of(self.ids, patient_pattern, among=everything)
        keys = modern(
            {
                "resize": resize,
                "crop": crop,
                "train": custom_transform_train,
                "evaluate": custom_transform_validate,
                "views": views,
                "before": before,
                "second": second,
                "local": local,
                "local_views": local_views,
                "local_crop": local_crop,
                "channels": channels,
                "mean": mean,
                "std": std,
            }
        )
        transform = Transform(**keys, load_memory=load_memory, cache=cache, cache_gb=cache_gb)
        self.files = ImageFiles(paths, transform, augment=context.augment)


@proto
class TextDataset(MedicalDataset):
    """Reports line by line.

    Attributes:
        root, file: `<root>/<split>.<file>` holds one report per line.
        tokenizer, tokenizer_max_len, vocab_size: as in `text` of the Manifest.
        processing, language, sections, sentence: likewise.
        min_words, drop_priors, mirror: likewise.
    """

    REFUSED_KEYS: ClassVar = {
        "source": "texts have their special tokens always; leave it out",
        "vocab_file": "without a tokenizer word pieces are trained on the reports; leave it out",
        "show_length": "no picture of text lengths is made; leave it out",
    }
    reports: list[str]

    def __init__(
        self,
        context: Context,
        *,
        root: str,
        file: str,
        tokenizer: str | None = None,
        tokenizer_max_len: int | None = None,
        vocab_size: int = 8192,
        processing: str = "clean",
        language: Literal["en", "es"] = "en",
        sections: list[str] = (),  # type: ignore[assignment]
        sentence: Literal["all", "random"] = "all",
        min_words: int = 3,
        drop_priors: bool = False,
        mirror: float = 0.0,
    ):
        self.split, self.texts = context.split, context.texts
        lines = read_lines(root, context.split, file, blank=True)
        self.reports = [" ".join(line.split()) for line in lines]
        self.ids = [f"{context.split}:{i}" for i in range(len(self.reports))]
        if self.texts is not None:
            self.said = self.texts.prepare_all(self.reports, self.split)

    def cut(self, count: int) -> None:
        """Take blank lines behind the first `count` for the end of the file, not for reports."""
        if not any(self.reports[count:]):
            self.reports, self.ids = self.reports[:count], self.ids[:count]
            self.said = self.said and self.said[:count]

    def item(self, index: int, seed: int) -> dict[str, Any]:
        return {"text": (self.said or self.reports)[index]}

    def content(self) -> Any:
        return [super().content(), self.reports]


@proto
class LabelDataset(MedicalDataset):
    """Class names line by line, comma-separated where a sample has several.

    The classes are those of all splits' files, sorted; the task is multi-label when any line has
    more than one name.

    Attributes:
        root, file: `<root>/<split>.<file>`.
        label_file: file with one class name per line, to fix their order; null collects them from
            the splits.
    """

    def __init__(self, context: Context, *, root: str, file: str, label_file: str | None = None):
        self.split = context.split
        named = [_names(line) for line in read_lines(root, context.split, file)]
        known = [_names(line) for split in SPLITS for line in _if_there(root, split, file)] + named
        self.label_names = (
            _fixed(label_file) if label_file else sorted({n for names in known for n in names})
        )
        self.ids = [f"{context.split}:{i}" for i in range(len(named))]
        number = {name: i for i, name in enumerate(self.label_names)}
        for line, names in enumerate(named, start=1):
            unknown = [name for name in names if name not in number]
            if unknown or not names:
                what = f"{unknown[0]!r} is not in {label_file}" if unknown else "no label"
                raise UserError(
                    f"{root}/{context.split}.{file}, line {line}: {what}; correct the line"
                )
        if any(len(names) > 1 for names in known):
            self.labels = np.zeros((len(named), len(number)), dtype=np.float32)
            for row, names in enumerate(named):
                self.labels[row, [number[name] for name in names]] = 1
        else:
            self.labels = np.array([number[names[0]] for names in named], dtype=np.int64)

    def item(self, index: int, seed: int) -> dict[str, Any]:
        return {}


def _names(line: str) -> list[str]:
    return [name.strip() for name in line.split(",") if name.strip()]


def _if_there(root: str, split: str, file: str) -> list[str]:
    return read_lines(root, split, file) if (Path(root) / f"{split}.{file}").is_file() else []


def _fixed(label_file: str) -> list[str]:
    path, key = Path(label_file), "dataset.label.label_file"
    if not path.is_file():
        raise UserError(f"{key}: there is no {label_file}")
    names = [line.strip() for line in lines_of(path, key) if line.strip()]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise UserError(f"{key}: {label_file} names {twice!r} twice; keep one")
    return names


class _Paired(ImageRecords):
    """Images and what is line-aligned with them, as one."""

    def __init__(self, *, image: ImageDataset, **others: MedicalDataset):
        parts = {"image": image, **others}
        self.parts: list[MedicalDataset] = list(parts.values())
        text = next((part for part in self.parts if isinstance(part, TextDataset)), None)
        if text is not None:
            text.cut(len(image))
        same_length(image.split, **parts)
        self.split, self.ids, self.patients = image.split, image.ids, image.patients
        for part in self.parts:
            if part.labels is not None:
                self.labels, self.label_names = part.labels, part.label_names
        if text is not None:
            self.reports, self.said, self.texts = text.reports, text.said, text.texts
        self.files, self.augment = image.files, image.augment

    def content(self) -> Any:
        return [MedicalDataset.content(self), [part.content() for part in self.parts]]


@proto
class ImSeq(_Paired):
    """Images with reports.

    Attributes:
        image: one image path per line, the keys of ImageDataset.
        seq: one report per line, the keys of TextDataset.
    """

    def __init__(self, context: Context, *, image: ImageDataset, seq: TextDataset):
        super().__init__(image=image, seq=seq)


@proto
class ImLabel(_Paired):
    """Images with labels.

    Attributes:
        image: one image path per line, the keys of ImageDataset.
        label: class names per line, the keys of LabelDataset.
    """

    def __init__(self, context: Context, *, image: ImageDataset, label: LabelDataset):
        super().__init__(image=image, label=label)


@proto
class ImSeqLabel(_Paired):
    """Images with reports and labels.

    Attributes:
        image: one image path per line, the keys of ImageDataset.
        seq: one report per line, the keys of TextDataset.
        label: class names per line, the keys of LabelDataset.
    """

    def __init__(
        self, context: Context, *, image: ImageDataset, seq: TextDataset, label: LabelDataset
    ):
        super().__init__(image=image, seq=seq, label=label)
