"""ConVIRT: image and report agree, the other pairs of the batch repel (Zhang et al. 2022)."""

from __future__ import annotations

from vilmedic_ssl.models.pairs import DualEncoder, PairProjection
from vilmedic_ssl.nets.criteria import ConVIRTLoss, PairLoss
from vilmedic_ssl.nets.freezing import Freeze
from vilmedic_ssl.nets.text import TextEncoder
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import proto


@proto
class ConVIRT(DualEncoder):
    """Two encoders, a projection each, and the weighted cross entropies of both directions.

    Attributes:
        encoder: the text encoder.
        cnn: the image encoder.
        projection: what takes both into one space.
        loss: ConVIRTLoss; InfoNCELoss and SigmoidLoss are taken, too.
        freeze: which parts do not learn, by name; cnn.freeze, encoder.freeze and
            encoder.freeze_layers name whole ones.
        forward_batch_size: pairs per forward pass of one process; larger batches go through the
            gradient cache.
    """

    def __init__(
        self,
        *,
        encoder: TextEncoder,
        cnn: VisualEncoder,
        projection: PairProjection = PairProjection(projection_dim=512),  # noqa: B008 (frozen)
        loss: PairLoss = ConVIRTLoss(),  # noqa: B008 (frozen)
        freeze: Freeze = Freeze(),  # noqa: B008 (frozen)
        forward_batch_size: int = 256,
    ):
        super().__init__(encoder, cnn, projection, loss, freeze, forward_batch_size)
