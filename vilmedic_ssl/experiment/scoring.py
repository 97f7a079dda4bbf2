"""Scoring, from the checkpoints of a run to numbers, pictures and the report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import console
from vilmedic_ssl.data.splits import TRAIN
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.experiment.audit import audit_before
from vilmedic_ssl.experiment.data import (
    budget_of,
    dataset_of,
    division_of,
    refuse_another_division,
    take_classes,
    warn_if_few,
    warn_of_another_budget,
)
from vilmedic_ssl.experiment.evaluation import claimed, evaluation_of, seed_of_choice
from vilmedic_ssl.experiment.settings import Experiment, check, model_of, refuse_sweep, typed
from vilmedic_ssl.experiment.texts import pin_text, take_text, texts_for
from vilmedic_ssl.experiment.vae import pin_vae
from vilmedic_ssl.schema import plain

if TYPE_CHECKING:
    import torch

    from vilmedic_ssl.data.datasets.base import MedicalDataset
    from vilmedic_ssl.data.texts import Texts
    from vilmedic_ssl.executors.features import Features
    from vilmedic_ssl.models.base import PretrainingModel

SCORED = ("dataset", "split_file", "train_fraction", "budget", "audit", "ensemblor")


def ensemble(config: Mapping[str, Any]) -> dict[str, float | str]:
    """Score trained checkpoints with the plug-ins of `ensemblor.post_processing`; returns what
    results.json holds. Of a config with a `flow`, compare its stages anew and return the means.

    What the config of the run gives is written to the run folder, anything else below
    `evaluations/` in it; see `experiment/evaluation.py`.

    Raises:
        UserError: wrong config, data or checkpoint; none there; another process is at work on it;
            the name of another evaluation; a plug-in failed that finished in the report to be
            replaced.
    """
    from vilmedic_ssl.executors.run import Run

    _refuse_several_processes()
    if "flow" in config:
        from vilmedic_ssl.experiment.flow import compare_again

        return compare_again(config)
    experiment, node, files, contents = open_run(config)
    with ExitStack() as stack:
        for own in sorted({content["seed"] for content in contents}):
            stack.enter_context(Run(experiment.folder, own).owned("scored"))
        return _ensemble(experiment, node, files, contents)


def _ensemble(
    experiment: Experiment,
    node: dict[str, Any],
    files: list[Path],
    contents: list[dict[str, Any]],
) -> dict[str, float | str]:
    """`ensemble`, where nobody else trains or scores the same seeds."""
    from vilmedic_ssl.executors import checkpoint
    from vilmedic_ssl.executors.ensemblor import (
        headline,
        refuse_leaks,
        run_plugins,
        write_results,
    )
    from vilmedic_ssl.executors.run import read_log
    from vilmedic_ssl.report import write_report

    settings, seed = experiment.ensemblor, experiment.seed
    tag = f"{Path(experiment.ckpt or settings.mode).stem}_{seed}"
    features = features_of(experiment, node, contents, files, tag)
    for split in settings.splits:
        console.say(f"{split}: {len(features.dataset(split)):,} images")
        warn_if_few(split, len(features.dataset(split)))
    for content, path in zip(contents, files, strict=True):
        refuse_another_division(experiment, content, path)
        refuse_leaks(content, features, path)
        warn_of_another_budget(experiment, content, path)
    evaluation = evaluation_of(experiment, node, files, features)
    place = claimed(evaluation, experiment, node, files, contents[0])
    findings = audit_before(experiment, node, place.folder)
    if settings.post_processing:  # an unreadable image ends here, not in every plug-in
        for split in settings.splits:
            features.get(split)
    outcome = run_plugins(settings, features, place.folder / "post_processing")
    place.refuse_loss(outcome)
    metric = contents[0]["config"]["trainor"]["early_stop_metric"]
    if files[0] in checkpoint.best_files(experiment.folder) and metric != "training_loss":
        outcome.results[f"validate/{metric}"] = checkpoint.score_in(files[0])
    datasets = {split: features.dataset(split) for split in settings.splits}
    results = {**outcome.results, **division_of(experiment, datasets)}
    if experiment.budget is not None and features.has(TRAIN):
        datasets[TRAIN] = features.dataset(TRAIN)
    results |= budget_of(experiment, datasets.get(TRAIN))
    title = experiment.name + (f", evaluation {place.folder.name}" if place.why else "")
    report = write_report(
        place.folder,
        title=f"{title}, {_which(files, experiment)}, seed {_seeds(contents)}",
        results=outcome.results,
        figures=outcome.figures,
        config={**contents[0]["config"], **{key: node[key] for key in SCORED}},
        log=read_log(experiment.folder / f"log_{seed}.jsonl"),
        card={split: dataset.card() for split, dataset in datasets.items()},
        checkpoints=[path.name for path in files],
        failures=outcome.failures,
        audit=[item.as_dict() for item in findings],
    )
    write_results(place.folder, results)
    place.close(outcome)
    if table := headline(outcome.results):
        console.result(table)
    console.say(f"results {place.folder / 'results.json'}")
    if place.why:
        console.say(f"not in {experiment.folder} itself: {place.why}")
    console.result(f"report {report}")
    return results


def _refuse_several_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("ensembling runs in one process; start it with python, not torchrun")


def open_run(
    config: Mapping[str, Any], *, own_seed: bool = False
) -> tuple[Experiment, dict[str, Any], list[Path], list[dict[str, Any]]]:
    """The experiment of a config, with the seed of its best checkpoint, which a budget without one
    goes by; its checked config, where what training decided is filled in; the checkpoints that it
    names, best first, and their contents.

    Args:
        own_seed: only checkpoints of the config's seed; else a single one is of that seed where it
            was trained here, and several are of all seeds.

    Raises:
        UserError: wrong config, no run folder or checkpoint, or several processes.
    """
    from vilmedic_ssl.data.images import take_channels
    from vilmedic_ssl.executors import checkpoint
    from vilmedic_ssl.executors.ensemblor import choose_checkpoints

    _refuse_several_processes()
    node = check(plain(config))
    experiment = typed(node)
    refuse_sweep(experiment)
    if not experiment.folder.is_dir():
        raise UserError(
            f"there is no run folder {experiment.folder}; train it first, with `vilmedic-ssl train`"
            " and the same words, or correct ckpt_dir and name"
        )
    seed = experiment.seed if own_seed else seed_of_choice(experiment)
    files = choose_checkpoints(experiment.folder, experiment.ensemblor.mode, experiment.ckpt, seed)
    contents = [checkpoint.read_run(path, whole=True) for path in files]
    console.say(f"ensembling {len(files)} checkpoint(s): {', '.join(path.name for path in files)}")
    take_channels(node["dataset"], contents[0]["config"]["dataset"])
    take_classes(node["model"], contents[0]["config"]["model"])
    return replace(experiment, seed=contents[0]["seed"]), node, files, contents


def _which(files: list[Path], experiment: Experiment) -> str:
    """The scored checkpoints in words, for a title."""
    if experiment.ckpt is not None:
        return f"checkpoint {files[0].stem}"
    if experiment.ensemblor.mode == "last":
        return "last checkpoint"
    return "best checkpoint" if len(files) == 1 else f"{len(files)} checkpoints"


def _seeds(contents: list[dict[str, Any]]) -> str:
    return ", ".join(map(str, sorted({content["seed"] for content in contents})))


def features_of(
    experiment: Experiment,
    node: dict[str, Any],
    contents: list[dict[str, Any]],
    files: list[Path],
    tag: str,
    *,
    splits: list[str] | None = None,
    make_dataset: Callable[[str], MedicalDataset] | None = None,
) -> Features:
    """The models of some checkpoints, ready to be asked for features.

    Args:
        contents, files: what was read, and where.
        splits: those asked for; None = `ensemblor.splits`.
        make_dataset: a split in its evaluation view; None = as the experiment has it.
    """
    from vilmedic_ssl.executors import checkpoint

    texts = texts_for(node, contents[0])
    if any(content.get("tokenizer") != contents[0].get("tokenizer") for content in contents):
        raise UserError(
            "these checkpoints read reports with different tokenizers, so one cannot stand for the "
            "others; write ensemblor.mode=best-1"
        )
    take_text(node, contents[0], texts)
    models = []
    for content, path in zip(contents, files, strict=True):
        model = model_of(node, pretrained=False)
        checkpoint.load_weights(model, content["ema"] or content["model"], path)
        models.append(model)
    seed = contents[0]["seed"]
    return _features(experiment, node, models, seed, tag, splits, make_dataset, texts=texts)


def untrained_features(
    experiment: Experiment, node: dict[str, Any], seed: int, *, splits: list[str]
) -> Features:
    """The model of a config as it is before training: fresh weights, published ones, or those of
    `init_from`.

    Raises:
        Leak: those weights have learned from an image of a split.
    """
    from vilmedic_ssl.executors import checkpoint
    from vilmedic_ssl.executors.ensemblor import refuse_leaks
    from vilmedic_ssl.executors.init_weights import start_from

    texts = texts_for(node)
    if texts is not None:
        pin_text(node, texts, dataset_of(experiment, node, TRAIN, texts=texts).said or [])
    vae = pin_vae(node)
    checkpoint.seed_everything(seed)
    model = model_of(node)
    if vae is not None:
        vae.load(model.get_submodule("dalle.vae"))
    start = start_from(model, node["init_from"], seed=seed) if node["init_from"] else None
    tag = f"untrained_{seed}"
    features = _features(experiment, node, [model], seed, tag, splits, texts=texts)
    if start is not None:
        console.say(start.describe())
        refuse_leaks({"trained_on": start.trained_on, "seed": seed}, features, start.source)
    return features


def _features(
    experiment: Experiment,
    node: dict[str, Any],
    models: list[PretrainingModel],
    seed: int,
    tag: str,
    splits: list[str] | None,
    make_dataset: Callable[[str], MedicalDataset] | None = None,
    texts: Texts | None = None,
) -> Features:
    from vilmedic_ssl import dist
    from vilmedic_ssl.auto import AutoModel
    from vilmedic_ssl.executors import checkpoint
    from vilmedic_ssl.executors.features import Features

    device: torch.device = dist.choose_device(experiment.device)

    def dataset(split: str) -> Any:
        return dataset_of(experiment, node, split, texts=texts)

    def untrained() -> PretrainingModel:
        checkpoint.seed_everything(seed)
        return model_of(node, pretrained=False).to(device).eval()

    return Features(
        make_dataset or dataset,
        [model.to(device).eval() for model in models],
        untrained,
        splits=list(experiment.ensemblor.splits) if splits is None else splits,
        tag=tag,
        seed=seed,
        batch_size=experiment.ensemblor.batch_size,
        workers=experiment.workers,
        device=device,
        load=AutoModel.from_pretrained,
    )
