"""The keys of the executor sections, with their types and defaults (no torch needed to read
them).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.schema import Kind, conform

PostProcessing = Annotated[dict, Kind("post_processing", single_key=True)]
FOLDER_NAME = re.compile(r"(?!seed-\d+$)[^\W_][\w.-]{0,99}")
TEXT_ONLY = "belongs to ViLMedic's models that write text, which are not here; leave it out"


def _positive(section: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{section}.{name}: {value}; write a number above 0")


@dataclass(frozen=True, kw_only=True)
class TrainorSettings:
    """How training runs.

    Attributes:
        optimizer: any class of torch.optim, or LARS.
        optim_params: its arguments, `lr` at least; weight decay spares parameters with one axis.
        batch_size: images per step over all processes.
        lr_scaling: linear = `lr` is for 256 images per step, so times batch_size * grad_accu / 256
            (Goyal et al. 2017); sqrt = `lr` is for one image, so times the root of batch_size *
            grad_accu (SimCLR).
        lr_biases: learning rate of parameters with one axis where it is not `lr`, for example
            0.0048 beside 0.2 (Barlow Twins); scaled and scheduled alike.
        layer_decay: learning rates fall with depth: times layer_decay for the encoder's last block,
            its square for the one before and so on down to the stem, for example 0.75 (Clark et al.
            2020).
        lr_scales: factors of learning rates by patterns of parameter names, for example
            {"head.*": 10}; of a parameter that several match, their product.
        weight_decay_end: weight decay at the last step, reached from that of optim_params along
            half a cosine, for example 0.4 from 0.04 (DINO).
        lr_decay: constant, warmup_cosine, multiplicative, exponential, step, multistep or plateau
            (torch's class names work too).
        lr_decay_params: arguments of the schedule.
        epochs: passes over the training split, numbered from 1.
        max_steps: stop after this many steps, whatever `epochs` says.
        eval_start: first epoch with an evaluation.
        eval_every: evaluate every so many epochs.
        eval_every_steps: evaluate every so many steps instead.
        early_stop: stop after this many evaluations without improvement; null or 0 = never.
        early_stop_metric: validation_loss (or loss), training_loss, or a metric of the validator.
        early_stop_start, decay_metric_start: first epoch whose evaluations count for stopping and
            for plateau.
        decay_on_training_loss: let plateau watch the training loss instead.
        grad_accu: one step of grad_accu x batch_size images, in passes of batch_size; exact for
            every loss.
        clip_grad_norm: largest L2 norm of the gradient, clipped once before the step.
        use_amp: mixed precision where the device gains from it (cuda: bf16, else fp16).
        amp_dtype: force bf16 or fp16 on any device; null = chosen by the device.
        channels_last: memory layout; faster or slower by network and size, so measure it.
        ema: decay of a running average of the weights, for example 0.999; evaluated and saved
            beside them.
        ema_end: that decay at the last step, reached along half a cosine; 1 = as the target network
            of BYOL.
        drop_last: leave out the last, smaller batch of an epoch; otherwise one of a single image,
            or shorter than an eighth, joins the batch before it.
        sampling: shuffle = every training image once per epoch; balanced = as many draws, each
            class equally often, so that images of rare classes come several times per epoch.
        save_every: write last_<seed>.pth every so many steps as well as after each epoch (of
            20 steps or more, or with an evaluation).
        log_every: steps between log records; the first step and each epoch's last have one too.
    """

    optimizer: str = "AdamW"
    optim_params: dict[str, Any]
    batch_size: int
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    lr_biases: float | None = None
    layer_decay: float | None = None
    lr_scales: dict[str, float] | None = None
    weight_decay_end: float | None = None
    lr_decay: str = "constant"
    lr_decay_params: dict[str, Any] | None = None
    epochs: int
    max_steps: int | None = None
    eval_start: int = 0
    eval_every: int = 1
    eval_every_steps: int | None = None
    early_stop: int | None = None
    early_stop_metric: str = "validation_loss"
    early_stop_start: int = 0
    decay_metric_start: int = 0
    decay_on_training_loss: bool = False
    grad_accu: int = 1
    clip_grad_norm: float | None = None
    use_amp: bool = False
    amp_dtype: Literal["bf16", "fp16"] | None = None
    channels_last: bool = False
    ema: float | None = None
    ema_end: float | None = None
    drop_last: bool = False
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    save_every: int | None = None
    log_every: int = 10

    REFUSED_KEYS: ClassVar = {
        name: f"no version of ViLMedic ever read this key; write lr_decay_params.{today}"
        for name, today in (
            ("lr_decay_factor", "factor"),
            ("lr_decay_patience", "patience"),
            ("lr_min", "min_lr"),
        )
    }

    def __post_init__(self) -> None:
        _positive(
            "trainor",
            lr_biases=self.lr_biases,
            batch_size=self.batch_size,
            epochs=self.epochs,
            max_steps=self.max_steps,
            eval_every=self.eval_every,
            eval_every_steps=self.eval_every_steps,
            grad_accu=self.grad_accu,
            clip_grad_norm=self.clip_grad_norm,
            save_every=self.save_every,
            log_every=self.log_every,
        )
        inner = dict(self.lr_decay_params or {})
        if "decay_on_training_loss" in inner:  # where ViLMedic kept it
            watched = conform(inner.pop("decay_on_training_loss"), bool, "trainor.lr_decay_params")
            object.__setattr__(self, "decay_on_training_loss", watched)
            object.__setattr__(self, "lr_decay_params", inner)
        if (self.early_stop or 0) < 0:
            raise ConfigError(f"trainor.early_stop: {self.early_stop}; write 0 (never) or more")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(
                f"trainor.ema: {self.ema}; write a decay between 0 and 1, for example 0.999"
            )
        if self.ema_end is not None and (self.ema is None or not 0 < self.ema_end <= 1):
            raise ConfigError(
                f"trainor.ema_end: {self.ema_end}; write a decay above 0 and up to 1, beside "
                "trainor.ema, from which it starts"
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ConfigError(
                f"trainor.layer_decay: {self.layer_decay}; write a factor above 0 and up to 1, for "
                "example 0.75"
            )
        for pattern, factor in (self.lr_scales or {}).items():
            if not factor > 0:
                raise ConfigError(
                    f"trainor.lr_scales.{pattern}: {factor}; write a factor above 0, or list what "
                    "is not to learn in model.freeze.names"
                )
        if self.weight_decay_end is not None and not self.weight_decay_end >= 0:
            raise ConfigError(
                f"trainor.weight_decay_end: {self.weight_decay_end}; write 0 or more, for example "
                "0.4"
            )

    @property
    def images_per_step(self) -> int:
        """The batch of one optimizer step, over all processes."""
        return self.batch_size * self.grad_accu

    @property
    def lr_scale(self) -> float:
        """What `lr_scaling` multiplies learning rates by."""
        images = self.images_per_step
        return {"none": 1.0, "linear": images / 256, "sqrt": math.sqrt(images)}[self.lr_scaling]


@dataclass(frozen=True, kw_only=True)
class ValidatorSettings:
    """How the model is scored while it trains.

    Attributes:
        batch_size: images per batch over all processes; null = the trainor's, so that losses
            compare.
        splits: splits to score; the score is their plain mean.
        metrics: knn (by images of other patients of the split), probe (a linear layer that learns
            the labels of train beside the encoder), accuracy, balanced_accuracy, auroc (of the
            model's own class scores), top1, top5, mean_rank (does a view find its partner
            among the second views), all_top1, all_top5, all_mean_rank (among all views),
            effective_rank, feature_std, alignment, uniformity; of VAE and DALLE codebook_usage (the
            share of it that the split needs) and code_perplexity (as if so many were equally used).
        reconstructions: images of the first split that the model draws again at every evaluation,
            into the run folder; of methods that draw (VAE, MAE).
    """

    batch_size: int | None = None
    splits: list[str] = ("validate",)  # type: ignore[assignment]
    metrics: list[str] | None = None
    reconstructions: int = 0

    REFUSED_KEYS: ClassVar = {"beam_width": TEXT_ONLY}

    def __post_init__(self) -> None:
        _positive("validator", batch_size=self.batch_size)
        if self.reconstructions < 0:
            raise ConfigError("validator.reconstructions: write a number of images, or 0")
        if not self.splits:
            raise ConfigError("validator.splits: name one split at least")


@dataclass(frozen=True, kw_only=True)
class EnsemblorSettings:
    """How trained checkpoints are scored.

    Attributes:
        batch_size: images per batch.
        splits: splits whose features and pictures are wanted.
        mode: best-N (or best = best-1), all, last, or the path of a checkpoint; best and last are
            of the config's seed where that was trained here, several are of all seeds.
        post_processing: plug-ins, in order.
        generate_images: draw images from reports with the plug-in of this name, where the list does
            not have it already; of DALLE.
        num_images: how many of each report.
        name: folder below <run>/evaluations/ for this evaluation; null = the run folder for what
            the config of the run gives, for anything else a folder named by a hash.
    """

    batch_size: int = 64
    splits: list[str] = ("validate", "test")  # type: ignore[assignment]
    mode: str = "best-1"
    post_processing: list[PostProcessing] | None = ()  # type: ignore[assignment]
    generate_images: bool = False
    num_images: int = 5
    name: str | None = None

    REFUSED_KEYS: ClassVar = {
        "beam_width": TEXT_ONLY,
        "metrics": "scores after training are plug-ins; list them under post_processing",
    }

    def __post_init__(self) -> None:
        _positive("ensemblor", batch_size=self.batch_size, num_images=self.num_images)
        listed = list(self.post_processing or ())
        if self.generate_images and not any("generate_images" in item for item in listed):
            listed.append({"generate_images": {}})
        name = "generate_images"
        for i, item in enumerate(listed):
            if name in item:
                listed[i] = {name: {"num_images": self.num_images, **(item[name] or {})}}
        object.__setattr__(self, "post_processing", listed)
        if self.mode.startswith("best-") and not self.mode.removeprefix("best-").strip("0"):
            raise ConfigError(f"ensemblor.mode: {self.mode!r}; write best-N with N from 1")
        if self.name is not None and not FOLDER_NAME.fullmatch(self.name):
            raise ConfigError(
                f"ensemblor.name: {self.name!r}; write a folder name of letters, digits, ., _ and "
                "-, which begins with a letter or digit and is not seed-N"
            )


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """What is looked for in the data before it is trained on or scored.

    Attributes:
        allow: kinds of leak that are only warned of: patient, study, file, pixels, near_duplicate.
        images: read every image once (what is known of unchanged files is kept); false compares
            tables and paths only.
        distance: bits of 64 in which the difference hashes of near-duplicates may differ.
    """

    allow: list[str] = ()  # type: ignore[assignment]
    images: bool = True
    distance: int = 6

    def __post_init__(self) -> None:
        from vilmedic_ssl.data.auditing.findings import refuse_settings

        refuse_settings(self.allow, self.distance)
