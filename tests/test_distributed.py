"""One process = N processes = chunks: the same global batch gives the same gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vilmedic_ssl.registry import protos

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import ranks  # noqa: E402
import resume  # noqa: E402

from vilmedic_ssl import losses  # noqa: E402


def launch(processes, path, *arguments):
    """Rank 0's results of ranks.py on several processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    places = os.pathsep.join(map(str, [HERE.parent, HERE, path.parent]))
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *torchrun, str(HERE / "ranks.py"), str(path), *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def single():
    return ranks.everything()


@pytest.fixture(scope="module", params=[2, 4])
def several(request, tmp_path_factory):
    """One launch, which covers every loss and every model."""
    return launch(request.param, tmp_path_factory.mktemp("ranks") / "found.pth")


def deviations(found, expected):
    """Of every gradient, and whatever moved, as a share of the largest gradient."""
    largest = max(t.abs().max() for n, t in expected.items() if not n.startswith("moved"))
    assert set(found) == set(expected)
    return {n: float((found[n] - t).abs().max() / largest) for n, t in expected.items()}


def close(found, expected, tolerance):
    """Every gradient, and whatever moved, up to a share of the largest gradient."""
    for name, error in deviations(found, expected).items():
        assert error < tolerance, f"{name}: off by {error:.1e} of the largest gradient"


def test_every_loss_and_model_has_a_case(single):
    assert set(ranks.PAIRS) | set(ranks.OF_LABELS) == set(losses.__all__) - {"dino"}
    for name in protos("models"):
        assert {f"{name}, no norm", f"{name}, chunks"} <= set(single)


def ranks_equal(several, single):
    """Float64 to 1e-9. In float32 both sides are rounded, by an amount that depends on the
    processor: there several ranks must be as near to float64 as one process, up to a factor.
    """
    for case in single:
        exact = single[case.removesuffix(", float32")]
        rounding = max(deviations(single[case], exact).values())
        close(several[case], exact, max(5 * rounding, 1e-6) if exact is not single[case] else 1e-9)


def test_ranks_equal_one_process(single, several):
    ranks_equal(several, single)


@pytest.mark.parametrize("name", protos("models"))
def test_chunks_equal_the_whole_batch(single, name):
    close(single[f"{name}, chunks"], single[f"{name}, no norm"], 1e-9)


def test_the_comparison_can_fail(single):
    wrong = {n: t * 0.5 for n, t in single["nt_xent"].items()}
    with pytest.raises(AssertionError):
        close(wrong, single["nt_xent"], 1e-9)


PLUGIN = '''"""Views of one image attract, those of others repel, by a squared hinge."""

import torch
import torch.nn.functional as F

from vilmedic_ssl import dist
from vilmedic_ssl.losses.exact import exact
from vilmedic_ssl.models.base import PretrainingModel, passes
from vilmedic_ssl.nets.ema import cosine_tau, follow, target_of
from vilmedic_ssl.nets.heads import Projector
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import proto


@exact
def hinge(z1_ND, z2_ND, *, margin):
    z1_ND, keys_MD = F.normalize(z1_ND, dim=1), dist.gather(F.normalize(z2_ND, dim=1))
    cos_NM = z1_ND @ keys_MD.T
    own = dist.first_row(len(z1_ND), z1_ND.device) + torch.arange(len(z1_ND))
    partner = cos_NM.gather(1, own[:, None])
    return dist.global_mean((cos_NM - partner + margin).clamp_min(0).square().mean(1))


@proto
class HingePairs(PretrainingModel):
    """Encoder, projector, a target that follows, and a squared hinge.

    Attributes:
        cnn: the image encoder.
        projector: the head whose output the loss compares.
        margin: by which the partner must be nearer than others.
    """

    coupled = True

    def __init__(self, *, cnn: VisualEncoder, projector: Projector = Projector(widths=(16, 8)),
                 margin: float = 0.5):
        super().__init__()
        self.cnn, self.projector, self.margin = cnn, projector.head(cnn.out_dim), margin
        self.target_cnn, self.target_projector = target_of(self.cnn), target_of(self.projector)

    def at_step(self, step, total):
        self.tau = cosine_tau(0.9, step, total)

    def after_step(self):
        follow(self.target_cnn, self.cnn, self.tau)
        follow(self.target_projector, self.projector, self.tau)

    def rows(self, images, **taken):
        views = images.unbind(1)
        with torch.no_grad():
            targets = passes(lambda x: self.target_projector(self.target_cnn.vector(x)), views,
                             together=True)
        online = lambda x: self.projector(self.cnn.vector(x))
        return *passes(online, views, together=True), *targets

    def score(self, *rows):
        a, b, c, d = rows
        return {"loss": hinge(a, d, margin=self.margin) + hinge(b, c, margin=self.margin)}

    def encode(self, images):
        features = self.cnn.vector(images)
        return {"encoder": features, "visual": self.projector(features)}
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A method of about sixty lines outside the package, gone from the registry afterwards."""
    from vilmedic_ssl import registry

    (tmp_path / "hinge_pairs.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    registry.load_plugins(["hinge_pairs"])
    yield "hinge_pairs"
    registry._plugins.pop("HingePairs")
    sys.modules.pop("hinge_pairs")


def test_a_model_of_a_plugin_gets_all_of_this(plugin, tmp_path, tiny):
    """Exact on ranks and in chunks, resumed bit for bit, scored; without another edit."""
    alone = ranks.everything(["HingePairs"])
    assert len(alone) == 7
    several = launch(2, tmp_path / "found.pth", plugin, "HingePairs")
    ranks_equal(several, alone)
    close(alone["HingePairs, chunks"], alone["HingePairs, no norm"], 1e-9)
    resume.assert_resumes("HingePairs", tiny, "plugins=[hinge_pairs]")


def test_two_processes_train_what_one_does(tiny, phantom, tmp_path):
    """The command line under torchrun: one run folder, the same weights up to float32 rounding;
    images from a cache that the first process makes, or from memory.
    """
    from vilmedic_ssl import load_config, train
    from vilmedic_ssl.executors import checkpoint

    config = HERE.parent / "config/SELFSUP/simclr-phantom.yml"
    # Small steps: after large ones a rounding error decides between equal pixels in max pooling.
    # The tolerance hides nothing: with batch norm per process the difference is 4e-1 of a step.
    sgd = ["trainor.optimizer=SGD", "trainor.optim_params={lr: 0.005}"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    cached = ["dataset.transform.load_memory=false", "dataset.transform.cache=true"]
    probe = ["validator.metrics=[probe]"]
    command = [sys.executable, *torchrun, "bin/train.py", str(config)]
    command += [*tiny("two"), *sgd, *cached, *probe]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent)
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stderr and done.stderr.count("done:") == 1
    two = checkpoint.read(tmp_path / "ckpt" / "two" / "last_0.pth")
    one = checkpoint.read(train(load_config(config, [*tiny("one"), *sgd, *probe])) / "last_0.pth")
    assert len(two["random"]) == 2 and two["progress"]["step"] == one["progress"]["step"] == 3
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, rtol=1e-4, atol=1e-5)
    probes = (two["probe"]["linear"]["weight"], one["probe"]["linear"]["weight"])
    torch.testing.assert_close(*probes, rtol=1e-3, atol=1e-5)
