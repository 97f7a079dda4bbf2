"""SimSiam: BYOL without a target network; the gradient stops at the other view (Chen and He
2021).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vilmedic_ssl.losses import sim_siam
from vilmedic_ssl.models.base import passes
from vilmedic_ssl.models.siamese import Predicting
from vilmedic_ssl.nets.heads import Predictor, Projector
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import proto


@proto
class SimSiam(Predicting):
    """Encoder, three-layer projector and bottleneck predictor.

    Attributes:
        cnn: the image encoder; `output_layer` chooses where it is cut.
        projector: 2048-2048-2048 with batch norm after every layer in the paper.
        predictor: 512-2048 in the paper.
        fix_predictor_rate: the predictor's learning rate follows no schedule (the authors' choice,
            section 4.2).
        together: both views in one pass, so that batch norm sees them together; the paper has a
            pass per view.
        forward_batch_size: images per forward pass of one process; null = the whole batch.
    """

    def __init__(
        self,
        *,
        cnn: VisualEncoder,
        projector: Projector = Projector(widths=(2048, 2048, 2048), last_norm="plain"),  # noqa: B008 (frozen)
        predictor: Predictor = Predictor(widths=(512, 2048), last_bias=True),  # noqa: B008 (frozen)
        fix_predictor_rate: bool = True,
        together: bool = False,
        forward_batch_size: int | None = None,
    ):
        super().__init__(cnn, projector, predictor, forward_batch_size)
        self.fix_predictor_rate, self.together = fix_predictor_rate, together

    def fixed_rate(self) -> set[str]:
        names = {f"predictor.{name}" for name, _ in self.predictor.named_parameters()}
        return names if self.fix_predictor_rate else set()

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """Projections of both views, then the predictions from them."""
        rows = passes(self.project, images.unbind(1), together=self.together)
        return *rows, *passes(self.predictor, rows, together=self.together)

    def score(self, *rows: Tensor) -> dict[str, Any]:
        """The loss lies in [-1, 1]: -1 when every prediction points where its target does."""
        z1, z2, prediction1, prediction2 = rows
        return {"loss": (sim_siam(prediction1, z2) + sim_siam(prediction2, z1)) / 2}
