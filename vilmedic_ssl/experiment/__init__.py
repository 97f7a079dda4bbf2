"""An experiment end to end: a checked config in, a run folder or results out. The wiring is here
and nowhere else.
"""

from vilmedic_ssl.experiment.data import dataset_of
from vilmedic_ssl.experiment.scoring import ensemble
from vilmedic_ssl.experiment.settings import Experiment, check, load_config
from vilmedic_ssl.experiment.training import train

__all__ = ["Experiment", "check", "dataset_of", "ensemble", "load_config", "train"]
