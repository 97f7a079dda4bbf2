"""The training loop: it owns time (steps, schedules, checkpoints) and knows no model by name."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vilmedic_ssl import __version__, console, dist
from vilmedic_ssl.data.loader import Loader
from vilmedic_ssl.errors import ConfigError, Interrupted, UserError
from vilmedic_ssl.executors import checkpoint, gradient_cache, health, preflight
from vilmedic_ssl.executors.amp import amp_dtype
from vilmedic_ssl.executors.monitors import LOSSES
from vilmedic_ssl.executors.online_probe import OnlineProbe
from vilmedic_ssl.executors.optim import Pace, optimizer_of
from vilmedic_ssl.executors.progress import Progress
from vilmedic_ssl.executors.reconstructions import Gallery
from vilmedic_ssl.executors.resume import refuse_changes
from vilmedic_ssl.executors.run import Log, Run
from vilmedic_ssl.executors.schedules import Clock, best_of, find_schedule, improves, stale
from vilmedic_ssl.executors.settings import TrainorSettings
from vilmedic_ssl.executors.signals import Signals
from vilmedic_ssl.executors.validator import Validator, to_device
from vilmedic_ssl.models.base import PretrainingModel, as_views
from vilmedic_ssl.nets.ema import WeightAverage
from vilmedic_ssl.schema import complete

SHORT = 20  # steps: epochs of few images are not written one by one


class Trainor:
    """Trains a model and leaves checkpoints, a log and a config in the run folder.

    Args:
        run: where to write.
        settings: the `trainor` section.
        model: on its device already.
        loader: training batches of `grad_accu * batch_size` images.
        validator: scores the model.
        lower_is_better: direction of `early_stop_metric`.
        config: the resolved config; data: hash per split; kept: trained_on, the training samples
            as `MedicalDataset.members`; labels_of, those whose labels the weights learn from;
            label_names, of the classes; tokenizer. All of them go into every checkpoint.
        gallery: draws what the model makes of some images, at every evaluation.
    """

    def __init__(
        self,
        run: Run,
        settings: TrainorSettings,
        model: PretrainingModel,
        loader: Loader,
        validator: Validator,
        *,
        lower_is_better: bool,
        config: dict[str, Any],
        data: dict[str, str],
        kept: Mapping[str, Any],
        gallery: Gallery | None = None,
    ):
        self.run, self.settings, self.loader, self.validator = run, settings, loader, validator
        self.config, self.data, self.kept, self.gallery = config, data, kept, gallery
        self.device = next(model.parameters()).device
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: PretrainingModel = dist.globalise_batch_norm(model)  # type: ignore[assignment]
        self.wrapped: nn.Module = dist.wrap(self.model)
        self.optimizer = optimizer_of(self.model, settings)
        self.pace = Pace(self.optimizer, settings)
        self.schedule = find_schedule(settings.lr_decay)
        self.schedule_keys = complete(
            settings.lr_decay_params or {}, self.schedule, "trainor.lr_decay_params"
        )
        self.amp_dtype = amp_dtype(settings, self.device)
        scaled = self.amp_dtype == torch.float16 and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.ema = WeightAverage(self.model, settings.ema) if settings.ema else None
        probed = "probe" in validator.names
        self.probe = OnlineProbe.beside(loader.dataset, self.device) if probed else None
        self.progress = Progress(lower_is_better=lower_is_better)
        self.saved_at = 0
        self.epoch_steps = len(loader)
        self.total_steps = min(settings.epochs * self.epoch_steps, settings.max_steps or 2**62)
        self._lr_factor()  # refuses wrong arguments before older files are removed
        self.chunk = self._chunk()
        preflight.refuse_single_images(self.model, loader, settings, self.chunk, self.cast)
        self.monitor, self.meter = health.CollapseMonitor(), health.Meter()
        self.signals = Signals()

    def tell_never(self) -> None:
        """Warn of what is planned for a time after the end."""
        preflight.tell_never(
            self.settings,
            self.schedule_keys,
            epoch_steps=self.epoch_steps,
            total=self.total_steps,
        )

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def cast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
        )

    # -- one state in, one state out ---------------------------------------------------------------

    def save(self, *, best: bool = False) -> None:
        """Write last_<seed>.pth and, if the score of this step is the best, the same under its
        name; then remove best checkpoints that it beats.
        """
        self.saved_at = self.progress.step
        states = dist.gather_objects(checkpoint.random_state())
        if dist.rank() != 0:
            return
        content = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "probe": self.probe.state_dict() if self.probe else None,
            "random": states,
            "progress": vars(self.progress).copy(),
            "config": self.config,
            "data": self.data,
            **self.kept,
            "seed": self.run.seed,
            "version": __version__,
        }
        folder, name = self.run.folder, self._best_name()
        if best and name:  # first: `last` remembers the score, and would not write it once more
            checkpoint.write(content, folder / name)
        checkpoint.write(content, self.run.last)
        if name and (folder / name).is_file():  # also what a killed run had no time for
            others = checkpoint.best_files(folder, self.run.seed)
            checkpoint.remove([path for path in others if path.name != name])

    def load(self, content: dict[str, Any], source: Any) -> None:
        """Continue from a checkpoint.

        Raises:
            UserError: it belongs to another model, optimizer or data, or other scores.
        """
        for split, fingerprint in content["data"].items():
            if self.data.get(split, fingerprint) != fingerprint:
                what = "split file" if split == "split_file" else f"{split} split"
                raise UserError(
                    f"{source}: the {what} was another one then (hash {fingerprint}, now "
                    f"{self.data[split]}); give the dataset and budget keys of "
                    f"{self.run.config_file}, restore the files, or take another name"
                )
        checkpoint.load_weights(self.model, content["model"], source)
        refuse_changes(content["config"], self.config, source)
        if self.ema:
            checkpoint.load_weights(self.ema.model, content["ema"] or content["model"], source)
        self.progress = Progress(**content["progress"])
        if self.progress.position >= self.epoch_steps:  # of versions that saved before they moved
            self.progress.next_epoch()
        self.saved_at = self.progress.step
        try:
            self._restore(content)
        except Exception as error:  # torch and Python raise half a dozen kinds for odd states
            told = " ".join(str(error).split())[:200]
            raise UserError(
                f"{source}: the state of its training does not fit ({told}); keep `freeze` and "
                "`fix_predictor_rate` as they were, or start from its weights with init_from"
            ) from error

    def _restore(self, content: dict[str, Any]) -> None:
        """The states of optimizer, scaler, probe and generators."""
        # The state is the checkpoint's, the arguments (lr, weight decay ...) are this config's.
        arguments = [{k: v for k, v in g.items() if k != "params"} for g in self._groups]
        self.optimizer.load_state_dict(content["optimizer"])
        for group, keys in zip(self._groups, arguments, strict=True):
            group.update(keys)
        if content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        if self.probe:
            self.probe.load_state_dict(content.get("probe"))
        states = content["random"]
        checkpoint.set_random_state(states[dist.rank() % len(states)])

    # -- the loop ----------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train from `self.progress` to the end.

        Raises:
            Diverged: the loss stopped being finite.
            Interrupted: SIGINT or SIGTERM; last_<seed>.pth was written.
        """
        console.say(self.pace.describe())
        log = Log(self.run, resumed_at=self.progress.step)
        bar = console.Bar(
            self.total_steps, desc=self.run.folder.name, unit="step", initial=self.progress.step
        )
        try:
            self.signals.catch()
            while not self.over():
                self._epoch(log, bar)
            if self.progress.step < self.total_steps:
                console.say(self.over() or "")
        finally:
            bar.close()
            log.close()
            self.signals.restore()

    def over(self) -> str | None:
        """Why no step follows, and what would let one follow; None = one does."""
        at, limit = self.progress, self.settings.early_stop
        if at.step >= self.total_steps:
            return f"step {at.step} of {self.total_steps}; raise trainor.epochs or max_steps"
        if limit and self._waits() >= limit:
            return (
                f"stopped early at step {at.step}: {limit} evaluations without improvement; raise "
                "trainor.early_stop"
            )
        return None

    def _epoch(self, log: Log, bar: console.Bar) -> None:
        """The rest of the epoch in progress."""
        at, epoch = self.progress, self.progress.epoch
        self.wrapped.train()
        self.meter.reset()
        batches = self.loader.epoch(at.epoch, at.position)
        while at.epoch == epoch and not self.over():
            asked = time.perf_counter()
            batch = to_device(next(batches), self.device)
            waited = time.perf_counter() - asked
            self._step(batch, waited, log)
            bar.note(self._line())
            bar.advance()
            self._after_step(log)

    def _after_step(self, log: Log) -> None:
        """Evaluate, then move the counters, then write one checkpoint of all that: whenever a run
        is killed, it goes on from a state in which an undisturbed one was too.
        """
        at, settings = self.progress, self.settings
        whole, ends = at.position >= self.epoch_steps, at.step >= self.total_steps
        often = settings.eval_every_steps
        due = at.step % often == 0 if often else whole and at.epoch % settings.eval_every == 0
        evaluated = (due or ends) and at.epoch >= settings.eval_start
        told = ends or (whole and (evaluated or at.step - self.saved_at >= SHORT))
        if told:
            console.say(self._line())
        best = self._evaluate(log) if evaluated else False
        if whole:
            at.next_epoch()
        regular = bool(settings.save_every) and at.step % (settings.save_every or 1) == 0
        if told or best or regular or self.over():
            self.save(best=best)
        self._stop_if_asked()

    def _step(self, batch: dict[str, Any], waited: float, log: Log) -> None:
        """One optimizer step on one global batch."""
        at, settings = self.progress, self.settings
        self.pace.set(self._lr_factor(), at.step, self.total_steps)
        self.model.at_step(at.step, self.total_steps)
        if self.ema:
            self.ema.model.at_step(at.step, self.total_steps)
        if self.chunk and at.step == 0:
            self._tell_norm_gap(batch, self.chunk)
        self.optimizer.zero_grad(set_to_none=True)
        out = gradient_cache.backward(
            self.wrapped, batch, chunk=self.chunk, cast=self.cast, scale=self.scaler.scale
        )
        if "loss" not in out:
            raise UserError(
                "the dataset gives plain images, from which no loss can be made; write views: 2 "
                "in dataset"
            )
        loss = health.check_finite(
            out["loss"], health.ids_of(batch), epoch=at.epoch, step=at.step + 1
        )
        if settings.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.model.after_step()
        if self.ema:
            self.ema.decay = self.pace.average(at.step, self.total_steps)
            self.ema.update(self.model)
        if self.probe:
            judged = self.ema.model if self.ema else self.model
            self.probe.learn(judged, batch, self.cast)  # type: ignore[arg-type]
        at.step, at.position = at.step + 1, at.position + 1
        at.losses, at.batches = at.losses + loss, at.batches + 1
        at.chances += out.get("chance", math.nan)
        images = sum(dist.counts_of(len(batch["images"]), self.device))
        self.meter.add(images=images, waited=waited, loss=loss)
        if at.step % settings.log_every == 0 or at.step == 1 or at.position == self.epoch_steps:
            self._log(log, loss, out)

    def _log(self, log: Log, loss: float, out: dict[str, Any]) -> None:
        at, reading = self.progress, self.meter.read()
        reading["loss"] = loss
        lr = self._groups[0]["lr"]
        known = {"chance": None, "floor": None, **gradient_cache.parts_of(out)}
        log.write("step", at.step, epoch=at.epoch, lr=lr, **known, **reading)
        regular = at.step == 1 or at.step % self.settings.log_every == 0  # not a short last batch
        if regular and len(out["visual"]) > 1:
            found = health.embedding_health(out["visual"])
            log.write("health", at.step, **found)
            if self.model.spreads:
                self.monitor.look(found)

    def _evaluate(self, log: Log) -> bool:
        """Score and remember; True for a new best."""
        at, settings = self.progress, self.settings
        scored = self.ema.model if self.ema else self.model
        scores = self.validator(scored, self.cast, self.probe)  # type: ignore[arg-type]
        chance = scores.pop("chance")
        found = torch.tensor(scores["validation_loss"])
        health.check_finite(found, ["the validation splits"], epoch=at.epoch, step=at.step)
        scores["training_loss"] = at.losses / max(1, at.batches)
        score = scores[LOSSES.get(settings.early_stop_metric, settings.early_stop_metric)]
        best = best_of(at.scores, at.lower_is_better)
        at.remember(score, scores["training_loss"])
        if self.gallery is not None and dist.rank() == 0:
            self.gallery.draw(scored, epoch=at.epoch, step=at.step)  # type: ignore[arg-type]
        log.write("eval", at.step, epoch=at.epoch, chance=chance, scores=scores)
        told = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        if math.isfinite(chance):
            told = told.replace(",", f" (chance {chance:.2f}),", 1)
        waits = self._waits()
        metric = settings.early_stop_metric
        since = f"{waits} evaluations since the best {metric}" if waits else f"best {metric} so far"
        if math.isnan(score):
            console.warn(f"{metric} is undefined at step {at.step}: nothing is saved as best")
        console.say(f"evaluation at epoch {at.epoch}, step {at.step}: {told}; {since}")
        return improves(score, best, at.lower_is_better)

    # -- small questions ---------------------------------------------------------------------------

    def _chunk(self) -> int | None:
        """Images per pass of this process; None = the whole batch."""
        settings, ranks = self.settings, dist.world_size()
        own = self.model.forward_batch_size
        if own is not None and own < 1:
            raise ConfigError(f"model.forward_batch_size: {own}; write 1 or more, or null")
        limits = [own] if own else []
        if settings.grad_accu > 1:
            limits.append(max(1, settings.batch_size // ranks))
        whole = -(-settings.images_per_step // ranks)
        chunk = min(limits, default=whole)
        if chunk >= whole:
            return None
        console.say(
            f"a batch of {whole} images per process goes through the network {chunk} at a time, "
            "with the gradient of the whole"
        )
        return chunk

    def _lr_factor(self) -> float:
        at = self.progress
        clock = Clock(
            step=at.step,
            total=self.total_steps,
            steps_per_epoch=self.epoch_steps,
            base_lr=self.pace.base,
            scores=at.since(
                self.settings.decay_metric_start, training=self.settings.decay_on_training_loss
            ),
            lower=at.lower_is_better or self.settings.decay_on_training_loss,
        )
        return self.schedule(clock, **self.schedule_keys)

    def _tell_norm_gap(self, batch: dict[str, Any], chunk: int) -> None:
        if not gradient_cache.has_batch_norm(self.model) or as_views(batch["images"]) is None:
            return
        with self.cast():
            gap = gradient_cache.norm_gap(self.model, batch, chunk)
        some = min(4 * chunk, len(batch["images"]))
        console.say(
            f"batch norm sees {chunk} images at a time: on the first batch that moves embeddings "
            f"by {gap:.1e} (mean cosine distance, 0 = none) from those of {some} at a time"
        )

    def _waits(self) -> int:
        """Evaluations since the best one."""
        at = self.progress
        return stale(at.since(self.settings.early_stop_start), at.lower_is_better)

    def _best_name(self) -> str | None:
        """The file name of the best checkpoint so far; None before the first score."""
        at = self.progress
        best = best_of(at.scores, at.lower_is_better)
        if best is None:
            return None
        return checkpoint.name_of(best, at.score_epochs[at.scores.index(best)], self.run.seed)

    def _line(self) -> str:
        at = self.progress
        batches = max(1, at.batches)
        reading = {**self.meter.read(), "loss": at.losses / batches, "chance": at.chances / batches}
        return health.line(at.epoch, self.settings.epochs, reading, lr=self._groups[0]["lr"])

    def _stop_if_asked(self) -> None:
        asked = float(self.signals.asked)
        if dist.active():
            asked = float(dist.total(torch.tensor(asked, device=self.device)))
        if asked:
            if self.saved_at != self.progress.step:
                self.save()
            dist.gather_objects(None)  # all wait until the file is whole
            raise Interrupted(f"interrupted; saved {self.run.last}, continue with ckpt=last")
