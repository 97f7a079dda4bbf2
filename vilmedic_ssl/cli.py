"""The command line: one verb per job, exit codes that scripts can rely on."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from vilmedic_ssl import __version__, console
from vilmedic_ssl.errors import Diverged, Interrupted, Leak, UserError

SECTIONS = """\
sections of a config (keys: `docs/configuration.md`, or the signature named here):
  name, ckpt_dir, seed, ckpt, device ...   vilmedic_ssl.experiment.Experiment
  dataset     proto and its keys           vilmedic_ssl/data/datasets/
  model       proto and its keys           vilmedic_ssl/models/, vilmedic_ssl/nets/
  trainor     training                     vilmedic_ssl.executors.settings.TrainorSettings
  validator   scores while training        vilmedic_ssl.executors.settings.ValidatorSettings
  ensemblor   scores and plug-ins          vilmedic_ssl.executors.settings.EnsemblorSettings
  audit       what stops bad data          vilmedic_ssl.executors.settings.AuditSettings
  budget      labels that may be used      vilmedic_ssl.data.budget.Budget
  sweep       what varies over trainings   vilmedic_ssl.executors.sweep_settings.SweepSettings
              post_processing plug-ins     vilmedic_ssl/post_processing/

overrides: trainor.batch_size=64 trainor.optim_params.lr=1e-3 'dataset.root=my images'
'ensemblor.splits=[train, test]'; values in brackets or braces are YAML
exit codes: 0 done, 2 wrong input, 3 diverged, 4 a leak between splits that audit.allow does
            not name, 130 interrupted (a checkpoint was written), 1 a bug of ours
"""

REPLACE = "replace what is at --out and was made from something else"


def _train(options: argparse.Namespace) -> None:
    from vilmedic_ssl.experiment import load_config, train

    train(load_config(options.config, options.overrides))


def _ensemble(options: argparse.Namespace) -> None:
    from vilmedic_ssl.experiment import ensemble, load_config

    ensemble(load_config(options.config, options.overrides))


def _audit(options: argparse.Namespace) -> None:
    from vilmedic_ssl.experiment.audit_verb import audit_target

    words = {name: vars(options)[name] for name in ("against", "out", "overwrite")}
    audit_target(options.target, options.overrides, **words)


def _audit_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("target", help="config (.yml), table (.csv, .parquet) or folder of images")
    made.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="keys of the config; of a table or folder: dataset.patient_pattern=..., "
        "dataset.root=..., dataset.label=..., audit.allow=[...]",
    )
    made.add_argument("--against", metavar="OTHER", help="another one: overlap between the two")
    made.add_argument("--out", metavar="DIR", help="for audit.json and audit.html")
    made.add_argument("--overwrite", action="store_true", help=REPLACE)


def _split(options: argparse.Namespace) -> None:
    from vilmedic_ssl.experiment import load_config
    from vilmedic_ssl.experiment.split_verb import split

    words = vars(options)
    names = ("method", "fractions", "folds", "nested", "keep_test", "seed", "out", "overwrite")
    config = load_config(options.config, options.overrides, name="split")
    split(config, **{name: words[name] for name in names})


def _split_options(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--method",
        choices=("own", "random", "stratified", "balanced"),
        help="default: stratified, without labels random; own keeps the data's splits",
    )
    made.add_argument("--fractions", help="default: train=0.7,validate=0.1,test=0.2")
    made.add_argument("--folds", type=int, help="so many folds, one file each, in the folder --out")
    made.add_argument("--nested", help="fractions of train inside each other, such as 0.01,0.1")
    made.add_argument("--keep-test", action="store_true", help="leave the data's own test alone")
    made.add_argument("--seed", type=int, default=0, help="of the division (default: 0)")
    made.add_argument("--out", required=True, help="JSON file to write, or the folder of the folds")
    made.add_argument("--overwrite", action="store_true", help="replace another division")


def _select(options: argparse.Namespace) -> None:
    from vilmedic_ssl.experiment import load_config
    from vilmedic_ssl.experiment.select_verb import select

    words = {name: vars(options)[name] for name in ("score", "add", "out", "labelled")}
    select(load_config(options.config, options.overrides), **words)


def _select_options(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--score",
        choices=("entropy", "disagreement"),
        required=True,
        help="entropy of the class scores, or variance between six views of an image",
    )
    made.add_argument("--add", type=int, required=True, metavar="N", help="images to pick")
    made.add_argument(
        "--labelled", metavar="FILE", help="ids that have labels (default: those of the budget)"
    )
    made.add_argument(
        "--out", required=True, metavar="FILE", help="the list with N more; scores go to FILE.csv"
    )


def _preview(options: argparse.Namespace) -> None:
    from vilmedic_ssl.experiment import load_config
    from vilmedic_ssl.experiment.preview import preview

    config = load_config(options.config, options.overrides, name="preview")
    words = {name: vars(options)[name] for name in ("images", "out", "overwrite")}
    console.result(str(preview(config, **words)))


def _preview_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("--images", type=int, default=6, metavar="N", help="how many (default: 6)")
    made.add_argument("--out", metavar="FILE.png", help="default: preview.png")
    made.add_argument("--overwrite", action="store_true", help=REPLACE)


def _sweep(options: argparse.Namespace) -> None:
    from vilmedic_ssl.experiment.sweep_verb import sweep

    sweep(options.config, options.overrides)


def _compare(options: argparse.Namespace) -> None:
    from vilmedic_ssl.experiment.compare_verb import compare

    compare(options.runs, out=options.out, overwrite=options.overwrite)


def _compare_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders of sweeps")
    made.add_argument("--out", metavar="DIR", help="for table and picture (default: compare)")
    made.add_argument("--overwrite", action="store_true", help=REPLACE)


def _explain(options: argparse.Namespace) -> None:
    from vilmedic_ssl.experiment.explain_verb import explain

    keys = {key: value for key, value in vars(options).items() if key not in ("verb", "run")}
    keys["plugins"] = options.plugins.split(",") if options.plugins else []
    console.result(str(explain(**keys)))


def _explain_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("image", metavar="IMAGE")
    made.add_argument(
        "--weights",
        required=True,
        metavar="FILE_OR_RUN",
        help="run folder, checkpoint, or a file of weights with a classifier, of --backbone",
    )
    made.add_argument("--backbone", metavar="NAME", help="timm network of foreign weights")
    made.add_argument("--size", type=int, metavar="PIXELS", help="side of their images")
    made.add_argument("--classes", metavar="NAME,NAME", help="names of the logits, in their order")
    made.add_argument(
        "--class", dest="wanted", metavar="NAME|N", help="default: that of the highest logit"
    )
    made.add_argument("--method", choices=("grad_cam", "occlusion"), default="grad_cam")
    made.add_argument("--layer", help="part of the encoder, for grad_cam (default: the last)")
    made.add_argument(
        "--square", type=int, metavar="PIXELS", help="what covers, for occlusion (default: 1/8)"
    )
    made.add_argument("--beside", choices=("random",), help="also the network before training")
    made.add_argument(
        "--data",
        metavar="CONFIG",
        help="config with the training images of a checkpoint without a classifier",
    )
    made.add_argument("--plugins", metavar="MODULE[,MODULE]", help="modules with further protos")
    made.add_argument("--out", metavar="FILE.png", help="default: explain.png")
    made.add_argument("--overwrite", action="store_true", help=REPLACE)


def _download(options: argparse.Namespace) -> None:
    from pathlib import Path

    from vilmedic_ssl.data.download import download, listing

    if not options.names:
        console.result(listing())
        return
    for path in download(options.names, root=Path(options.root)):
        console.result(str(path))


def _describe(options: argparse.Namespace) -> None:
    from vilmedic_ssl.describe import describe, listing
    from vilmedic_ssl.registry import load_plugins

    load_plugins(options.plugins.split(",") if options.plugins else [])
    console.result("\n\n".join(map(describe, options.names)) if options.names else listing())


def parser() -> argparse.ArgumentParser:
    """All verbs and their arguments."""
    top = argparse.ArgumentParser(
        prog="vilmedic-ssl",
        description="Self-supervised pretraining on medical images and reports. Research use only.",
    )
    top.add_argument("--version", action="version", version=f"vilmedic_ssl {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(
        name: str, run: Callable[[argparse.Namespace], None], told: str
    ) -> argparse.ArgumentParser:
        made = verbs.add_parser(
            name,
            help=told,
            description=told,
            epilog=SECTIONS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        return made

    for name, run, told in (
        ("train", _train, "train what a config describes"),
        (
            "ensemble",
            _ensemble,
            "score and plot trained checkpoints, write results.json and report.html",
        ),
        ("split", _split, "divide the data anew, by patient, and write the division to a file"),
        ("select", _select, "pick the training images whose labels would teach most"),
        ("preview", _preview, "draw the views that training will see, as one picture"),
        ("sweep", _sweep, "train or measure many times, with keys that vary; space={key: ...}"),
    ):
        made = verb(name, run, told)
        made.add_argument(
            "config",
            help="YAML file, for example config/SELFSUP/simclr-phantom.yml, or a run folder",
        )
        made.add_argument(
            "overrides", nargs="*", metavar="key=value", help="dotted keys on top of the file"
        )
        if name == "split":
            _split_options(made)
        if name == "preview":
            _preview_options(made)
        if name == "select":
            _select_options(made)
    told = "look for leaks between splits, spoilt images, repeated texts and shortcuts"
    _audit_options(verb("audit", _audit, told))
    told = "put many runs in one table: what differs, scores, results, curves"
    made = verb("compare", _compare, told)
    _compare_options(made)
    made.epilog = None
    told = "draw what in an image speaks for a class, from any file of weights"
    made = verb("explain", _explain, told)
    _explain_options(made)
    made.epilog = None
    made = verb("download", _download, "fetch or make data sets; without a name, list them")
    made.add_argument(
        "names", nargs="?", metavar="NAME[,NAME]", help="data sets, separated by commas"
    )
    made.add_argument("--root", default="data", help="folder to put them in (default: data)")
    made.epilog = None
    made = verb("describe", _describe, "show what may stand in a config, with defaults, as YAML")
    made.add_argument("names", nargs="*", metavar="NAME", help="protos; none = list them all")
    made.add_argument("--plugins", metavar="MODULE[,MODULE]", help="modules with further protos")
    made.epilog = None
    return top


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; overrides may also stand after options, where argparse leaves them over."""
    made = parser()
    options, rest = made.parse_known_args(argv)
    late = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(late) < len(rest) or (late and "overrides" not in options):
        made.error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        options.overrides += late
    return options


def _end(number: int, frame: object) -> None:
    """SIGTERM ends a run as Ctrl-C does, wherever it is."""
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    options = parse(argv)
    try:
        code = _run(options)
    finally:
        several = _leave_group()
    if several:
        # Threads of the process group sometimes outlive Python's own end, and abort a process whose
        # work is done and written; so it ends here.
        from vilmedic_ssl.data import loader

        loader.close_all()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _leave_group() -> bool:
    """Leave the process group; True when this was one of several processes."""
    if "torch.distributed" not in sys.modules:
        return False
    from vilmedic_ssl import dist

    several = dist.world_size() > 1
    dist.stop()
    return several


def _run(options: argparse.Namespace) -> int:
    mine = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _end) if mine else None
    try:
        options.run(options)
    except (UserError, Leak, Diverged, Interrupted) as error:
        console.fail(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.fail("interrupted")
        return 130
    except BrokenPipeError:  # `| head` has seen enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        if mine:
            signal.signal(signal.SIGTERM, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
