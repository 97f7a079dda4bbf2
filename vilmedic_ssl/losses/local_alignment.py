"""GLoRIA: words against the places of an image (Huang et al. 2021). Shapes: n = rows of this rank,
N = rows of all ranks, D = width, H and W = places of an image, L = columns of words, M = texts.

Words that count are the first `cap_lens` columns of each text: [CLS] and the words, see nets/words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vilmedic_ssl import dist
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.losses.exact import exact
from vilmedic_ssl.losses.pairs import EPS, own_rows, soft_cross_entropies
from vilmedic_ssl.losses.word_cosines import Packed, word_cosines


@exact
def gloria(
    img_global: Tensor,
    sent: Tensor,
    img_local: Tensor,
    words: Tensor,
    cap_lens: Tensor,
    *,
    temp1: float,
    temp2: float,
    temp3: float,
    local_loss_weight: float,
    global_loss_weight: float,
    agg: str = "sum",
    chunk: int | None = None,
    positives: Tensor | None = None,
    left_out: Tensor | None = None,
) -> Tensor:
    """Global and local contrast of images and reports (GLoRIA, section 3.2 and 3.3), over the
    global batch.

    For image b and text i, a word's dot products with the places of the image give, by a softmax
    over the words of the text and then, times `temp1`, one over the places, an attention map; c is
    the mean of the image's places under it. The local score is the logarithm of the sum (`agg`:
    "mean": mean) over words of exp(temp2 * cos(word, c)), the global one the cosine of image and
    sentence, both times `temp3`. Cross entropies of both scores, in both directions, each the mean
    over all rows, are added with the two weights. Chance level is 2 * (local_loss_weight +
    global_loss_weight) * ln N; N = 1 gives 0.

    Args:
        img_global, sent: (n, D) image and sentence; any float dtype, as all of these.
        img_local: (n, D, H, W) places of the image.
        words: (n, D, L) word vectors; L may differ between ranks.
        cap_lens: (n,) int64, how many of them count, 1 ... L.
        temp1, temp2, temp3: the paper's are 4, 5 and 10.
        agg: "sum" | "mean" | "max", which is temp2 times the largest cosine.
        chunk: pairs of an image and a text scored at once, at most; None: as many as a buffer of
            8 MB holds (64 MB on a GPU). Memory grows with it, the result does not depend on it.
        positives, left_out: (n, N) bool, as in losses/pairs, for all four cross entropies.

    Returns:
        Scalar loss of the global batch, the same on every rank.
    """
    image_ND, text_ND = (F.normalize(z, dim=1, eps=EPS) for z in (img_global, sent))
    words_MDL = dist.gather(F.pad(words, (0, _most(words) - words.shape[2])))
    near_NM = local_similarity(
        img_local, words_MDL, dist.gather(cap_lens), temp1=temp1, temp2=temp2, agg=agg, chunk=chunk
    )
    loss_N = local_loss_weight * _both_directions(temp3 * near_NM, positives, left_out)
    far_NM = temp3 * image_ND @ dist.gather(text_ND).T
    loss_N = loss_N + global_loss_weight * _both_directions(far_NM, positives, left_out)
    return dist.global_mean(loss_N)


@exact
def local_similarity(
    img_local: Tensor,
    words: Tensor,
    cap_lens: Tensor,
    *,
    temp1: float,
    temp2: float,
    agg: str = "max",
    chunk: int | None = None,
) -> Tensor:
    """Local score of every image with every text: the logarithm of the sum, mean or largest (`agg`)
    over words of exp(temp2 * cosine); between -temp2 and temp2, with "sum" ln(words) more.

    The words are those of the loss, [CLS] first. The authors' zero-shot classification takes "max",
    no [CLS], and as many columns behind it as a prompt has characters, [SEP] and padding included.

    Args:
        img_local: (N, D, H, W) float.  words: (M, D, L) float.  cap_lens: (M,) int64, 1 ... L.
        agg: "max" | "sum" | "mean".
        chunk: as in `gloria`.

    Returns:
        (N, M), with gradients to images and words.
    """
    if agg not in ("max", "sum", "mean"):
        raise UserError(f"agg: {agg!r} is not known; write sum, mean or max")
    v_NPD = img_local.flatten(2).mT
    sizes = {"columns": words.shape[2], "places": v_NPD.shape[1], "width": v_NPD.shape[2]}
    packed = Packed(cap_lens, **sizes, chunk=chunk)
    cos_NML = word_cosines(v_NPD, words.mT, packed, temp1=temp1)
    score_NML = (temp2 * cos_NML).masked_fill(~packed.real_ML, -torch.inf)
    if agg == "max":
        return score_NML.amax(2)
    score_NM = score_NML.logsumexp(2)
    return score_NM if agg == "sum" else score_NM - cap_lens.to(score_NM).log()


@exact
def gloria_attention(img_local: Tensor, words: Tensor, cap_lens: Tensor, *, temp1: float) -> Tensor:
    """Attention maps of each image for the words of its own text.

    Args:
        img_local: (K, D, H, W) float.  words: (K, D, L) float.  cap_lens: (K,) int64, 1 ... L.

    Returns:
        (K, L, H, W) >= 0, each map sums to 1; 0 beyond `cap_lens`.
    """
    real_KL = torch.arange(words.shape[2], device=words.device) < cap_lens[:, None]
    scores_KLP = words.mT @ img_local.flatten(2)
    among_words = scores_KLP.masked_fill(~real_KL[:, :, None], -torch.inf).softmax(1)
    maps_KLP = (among_words * temp1).softmax(2) * real_KL[:, :, None]
    return maps_KLP.unflatten(2, img_local.shape[2:])


def _most(words: Tensor) -> int:
    """Columns of words on the rank that has most."""
    return max(dist.counts_of(words.shape[2], words.device))


def _both_directions(
    scores_NM: Tensor, positives: Tensor | None, left_out: Tensor | None
) -> Tensor:
    """Cross entropies of this rank's images among all texts plus of its texts among all images,
    (n,), from the scores of its images.
    """
    own_N = own_rows(scores_NM)
    back_NM = dist.gather(scores_NM)[:, own_N].T
    from_image, from_text = (
        soft_cross_entropies(x, own_N, positives, left_out) for x in (scores_NM, back_NM)
    )
    return from_image + from_text
