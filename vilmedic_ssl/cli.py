"""The command line: one verb per job, exit codes that scripts can rely on."""

from __future__ import annotations

import argparse
import sys
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
              post_processing plug-ins     vilmedic_ssl/post_processing/

overrides are read as YAML: trainor.batch_size=64 ensemblor.splits=[train,test]
trainor.optim_params.lr=1e-3
exit codes: 0 done, 2 wrong input, 3 diverged, 4 training images in a scored split,
            130 interrupted (a checkpoint was written), 1 a bug of ours
"""


def _train(options: argparse.Namespace) -> None:
    from vilmedic_ssl.experiment import load_config, train

    train(load_config(options.config, options.overrides))


def _ensemble(options: argparse.Namespace) -> None:
    from vilmedic_ssl.experiment import ensemble, load_config

    ensemble(load_config(options.config, options.overrides))


def _download(options: argparse.Namespace) -> None:
    from pathlib import Path

    from vilmedic_ssl.data.download import download, listing

    if not options.names:
        console.result(listing())
        return
    for path in download(options.names, root=Path(options.root)):
        console.result(str(path))


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
    ):
        made = verb(name, run, told)
        made.add_argument("config", help="YAML file, for example config/SELFSUP/simclr-phantom.yml")
        made.add_argument(
            "overrides", nargs="*", metavar="key=value", help="dotted keys on top of the file"
        )
    made = verb("download", _download, "fetch or make data sets; without a name, list them")
    made.add_argument(
        "names", nargs="?", metavar="NAME[,NAME]", help="data sets, separated by commas"
    )
    made.add_argument("--root", default="data", help="folder to put them in (default: data)")
    made.epilog = None
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        options.run(options)
    except (UserError, Leak, Diverged, Interrupted) as error:
        console.fail(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.fail("interrupted")
        return 130
    finally:
        if "torch.distributed" in sys.modules:
            from vilmedic_ssl import dist

            dist.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
