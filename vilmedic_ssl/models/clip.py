"""CLIP: the symmetric cross entropy with a temperature that is learned (Radford et al. 2021)."""

from __future__ import annotations

from vilmedic_ssl.models.pairs import DualEncoder, PairProjection
from vilmedic_ssl.nets.criteria import InfoNCELoss, PairLoss
from vilmedic_ssl.nets.freezing import Freeze
from vilmedic_ssl.nets.text import TextEncoder
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import proto


@proto
class CLIP(DualEncoder):
    """Two encoders, a linear projection each, and InfoNCE in both directions.

    Attributes:
        encoder: the text encoder.
        cnn: the image encoder.
        projection: what takes both into one space.
        loss: InfoNCELoss; the temperature is learned unless it says otherwise.
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
        projection: PairProjection = PairProjection(projection_dim=512, layers=1),  # noqa: B008 (frozen)
        loss: PairLoss = InfoNCELoss(),  # noqa: B008 (frozen)
        freeze: Freeze = Freeze(),  # noqa: B008 (frozen)
        forward_batch_size: int = 256,
    ):
        super().__init__(encoder, cnn, projection, loss, freeze, forward_batch_size)
