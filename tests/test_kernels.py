"""The quick transforms equal torchvision's: same draws, same pictures, many seeds and shapes."""

import pytest
import torch
from torchvision.transforms import v2

from vilmedic_ssl.data.compose import compose
from vilmedic_ssl.data.kernels import quick
from vilmedic_ssl.data.presets import preset

ONES = {
    "zoom": lambda: v2.RandomResizedCrop(17, (0.08, 1.0)),
    "zoom to a rectangle": lambda: v2.RandomResizedCrop((12, 20), (0.5, 0.9), (0.5, 2.0)),
    "zoom that cannot fit": lambda: v2.RandomResizedCrop(16, (0.99, 1.0), (3.0, 4.0)),
    "zoom that cannot fit either": lambda: v2.RandomResizedCrop(16, (0.99, 1.0), (0.1, 0.2)),
    "resize": lambda: v2.Resize((20, 11)),
    "flips": lambda: v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(0.3)]),
    "jitter": lambda: v2.ColorJitter(0.5, 0.5),
    "brightness": lambda: v2.ColorJitter(brightness=0.8),
    "contrast": lambda: v2.ColorJitter(contrast=0.8),
    "four jitters": lambda: v2.ColorJitter(0.8, 0.8, 0.8, 0.2),
    "grey now and then": lambda: v2.RandomGrayscale(0.4),
    "blur": lambda: v2.GaussianBlur(5, (0.1, 2.0)),
    "blur of two widths": lambda: v2.GaussianBlur((3, 9), (0.1, 2.0)),
    "sometimes": lambda: v2.RandomApply([v2.GaussianBlur(3), v2.ColorJitter(0.1)], p=0.6),
    "what has no counterpart": lambda: v2.Compose(
        [v2.RandomRotation(10), v2.ColorJitter(0.1, 0.1, 0.1, 0.1), v2.Resize(20)]
    ),
}
SHAPES = [(1, 32, 32), (3, 32, 32), (1, 48, 29), (3, 31, 64)]


@pytest.mark.parametrize("name", ONES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_to_torchvision(name, shape):
    original = ONES[name]()
    own = quick(original)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    kept = image.clone()
    for seed in range(40):
        torch.manual_seed(seed)
        theirs, after_theirs = original(image), torch.rand(1)
        torch.manual_seed(seed)
        ours, after_ours = own(image), torch.rand(1)
        assert after_theirs == after_ours, "another number of draws"
        assert theirs.shape == ours.shape
        assert (theirs - ours).abs().max() < 3e-6
        assert torch.equal(image, kept), "the input was written to"


def test_a_blur_of_every_height_agrees():
    for height in (8, 16, 24, 30, 56, 61, 64, 96, 97, 112, 120, 224):
        image = torch.rand(1, height, 9)
        original = v2.GaussianBlur(7, (1.3, 1.3))
        assert torch.allclose(original(image), quick(original)(image), atol=2e-6), height


def test_the_presets_for_grey_images_run_on_counterparts_alone():
    for name in ("simclr", "evaluate"):
        for part in compose(preset(name, 64), "here").parts:  # type: ignore[attr-defined]
            assert not isinstance(part, v2.Transform), part
