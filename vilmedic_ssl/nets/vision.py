"""Image encoders: any timm network behind ViLMedic's keys."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from torch import Tensor, nn

from vilmedic_ssl.errors import ConfigError, Unobtainable, UserError
from vilmedic_ssl.nets.architecture import refuse_options
from vilmedic_ssl.nets.resnet import Stem, changes, rebuild
from vilmedic_ssl.registry import proto

NAME = re.compile(r"\w+(\.\w+)?")  # of a network and its weights; no folder, no repository
POOLED, UNPOOLED, WHOLE = "avgpool", "features", "classifier"


@proto("CNN")
class VisualEncoder(nn.Module):
    """A timm network from images (B, C, H, W) float to features.

    Attributes:
        backbone: a timm model name, for example resnet50 or vit_small_patch16_224.
        output_layer: avgpool = pooled vector; features = last map or token sequence; layer1 ...
            layer4 of a ResNet, blocks.5 of a transformer, stages.2 of a ConvNeXt and so on = the
            map or tokens behind that part; classifier or null = the whole network with its 1000
            classes.
        dropout_out: dropout on the output, probability in [0, 1).
        permute: batch_first gives (B, S, D), or (B, D) when there is one position; spatial_first
            (S, B, D); no_permute (B, D, H, W) for maps and (B, D, 1, 1) for pooled vectors.
        freeze: parameters get no gradient and the network stays in eval mode, batch norm included.
        pretrained: start from the weights timm publishes (needs a download or a filled cache).
        in_chans: channels of the first convolution; grey images are repeated when it is 3.
        stem: standard; small = 3x3 stride 2 without pooling, for 28 to 64 px; cifar = 3x3 stride 1;
            deep = three 3x3, and shortcuts that average before they halve a map (ResNet-D). All
            but standard are for ResNets.
        width: channels of every layer of a plain ResNet, the stem included, times this.
        selective_kernels: SimCLRv2's selective kernels (ratio 1/16) in the blocks of resnet50,
            resnet101 or resnet152, whose shortcuts and stem become those of `deep`, unless stem is
            small or cifar.
        options: further arguments of the timm network, for example {img_size: 64, patch_size: 8}:
            numbers, true or false, short words and lists of these that describe the architecture;
            those that are null are left out.

    Raises:
        ConfigError: unknown backbone, layer or option.
        Unobtainable: the pretrained weights cannot be had.
        UserError: colour images meet a one-channel network.
    """

    def __init__(
        self,
        *,
        backbone: str,
        output_layer: str | None = POOLED,
        dropout_out: float = 0.0,
        permute: Literal["batch_first", "spatial_first", "no_permute"] = "batch_first",
        freeze: bool = False,
        pretrained: bool = False,
        in_chans: Literal[1, 3] = 3,
        stem: Stem = "standard",
        width: int = 1,
        selective_kernels: bool = False,
        options: dict[str, Any] = {},  # noqa: B006 (never written to)
    ):
        super().__init__()
        if not 0 <= dropout_out < 1:
            raise ConfigError(f"cnn.dropout_out: {dropout_out}; write a number in [0, 1)")
        whole = output_layer in (None, WHOLE)
        form: Any = {"width": width, "selective_kernels": selective_kernels, "stem": stem}
        self.net: Any = _create(
            backbone,
            pretrained,
            options,
            in_chans=in_chans,
            num_classes=1000 if whole else 0,
            **changes(backbone, pretrained=pretrained, **form),
        )
        rebuild(self.net, backbone, in_chans=in_chans, **form)
        self.output_layer = WHOLE if output_layer is None else output_layer
        self.backbone, self.permute = backbone, permute
        self.freeze, self.in_chans = freeze, in_chans
        self.out_dim = self._cut(backbone)
        self.dropout = nn.Dropout(dropout_out)
        if freeze:
            self.requires_grad_(False).eval()

    def _cut(self, backbone: str) -> int:
        """Drop what comes after `output_layer`; returns the width of what is left."""
        if self.output_layer == WHOLE:
            return int(self.net.num_classes)
        if self.output_layer in (POOLED, UNPOOLED):
            width = self.net.num_features
            if self.output_layer == POOLED:  # some networks widen behind the pooling
                width = getattr(self.net, "head_hidden_size", None) or width
            return int(width)
        layers = [info["module"] for info in self.net.feature_info]
        if self.output_layer not in layers:
            raise ConfigError(
                f"cnn.output_layer: {backbone} has no {self.output_layer!r}; write one of "
                f"{', '.join([POOLED, UNPOOLED, WHOLE, *layers])}"
            )
        place = layers.index(self.output_layer)
        width = int(self.net.feature_info[place]["num_chs"])
        children = dict(self.net.named_children())
        if self.output_layer in children and "layer4" in children:
            names = list(children)
            kept = names[: names.index(self.output_layer) + 1]
            self.net = nn.Sequential(*[children[name] for name in kept])
        else:
            self.net.prune_intermediate_layers([place], prune_norm=True, prune_head=True)
        return width

    def train(self, mode: bool = True) -> VisualEncoder:
        """Frozen encoders stay in eval mode whatever is asked."""
        return super().train(mode and not self.freeze)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> what `output_layer` and `permute` say."""
        return self._arrange(self._run(images_BCHW), self.permute)

    def vector(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_dim): the mean over positions, whatever `permute` says."""
        x = self._arrange(self._run(images_BCHW), "batch_first")
        return x if x.dim() == 2 else x.mean(dim=1)

    def places(self, images_BCHW: Tensor, layer: str | None = None) -> tuple[Tensor, Tensor]:
        """Images -> their vectors (B, out_dim) and a map of them, (B, D, h, w), in one pass.

        Args:
            layer: the part whose map is wanted; null = the last map, before it is pooled.

        Raises:
            UserError: `output_layer` is not avgpool, or the network has no such part.
        """
        if self.output_layer != POOLED:
            raise UserError(
                f"model.cnn.output_layer: {self.output_layer}, but places and the whole are read "
                "from one network; write avgpool"
            )
        size = images_BCHW.shape[-2], images_BCHW.shape[-1]
        images_BCHW = self._checked(images_BCHW)
        if layer is None:
            last = self.net.forward_features(images_BCHW)
            found = as_map(last, self.net, size)
        else:
            last, (found,) = self.net.forward_intermediates(
                images_BCHW, indices=[self.number_of(layer)], output_fmt="NCHW"
            )
        return self.dropout(self.net.forward_head(last, pre_logits=True)), found

    def number_of(self, layer: str) -> int:
        """The place of a part among those timm knows.

        Raises:
            ConfigError: it knows none of this name.
        """
        known = [info["module"] for info in self.net.feature_info]
        if layer not in known:
            raise ConfigError(
                f"layer: {self.backbone} has no {layer!r}; write one of {', '.join(known)}"
            )
        return known.index(layer)

    def _checked(self, images_BCHW: Tensor) -> Tensor:
        if images_BCHW.shape[1] == 1 and self.in_chans == 3:
            images_BCHW = images_BCHW.expand(-1, 3, -1, -1)
        if images_BCHW.shape[1] != self.in_chans:
            raise UserError(
                f"images have {images_BCHW.shape[1]} channels but model.cnn.in_chans is "
                f"{self.in_chans}; "
                "write model.cnn.in_chans=3, or read the images as grey"
            )
        return images_BCHW

    def _run(self, images_BCHW: Tensor) -> Tensor:
        images_BCHW = self._checked(images_BCHW)
        try:
            x = self._features(images_BCHW)
        except AssertionError as error:  # how timm refuses an image size
            raise UserError(
                f"model.cnn: {str(error).rstrip('.')}; write dataset.transform.crop (and "
                "local_crop) as the network wants it, model.cnn.options.img_size as the crop, or "
                "model.cnn.options.dynamic_img_size=true for crops of several sizes"
            ) from error
        return self.dropout(x)

    def _features(self, images_BCHW: Tensor) -> Tensor:
        if self.output_layer == POOLED:
            return self.net.forward_head(self.net.forward_features(images_BCHW), pre_logits=True)
        if self.output_layer == WHOLE or isinstance(self.net, nn.Sequential):
            return self.net(images_BCHW)
        return self.net.forward_features(images_BCHW)

    def _arrange(self, x: Tensor, permute: str) -> Tensor:
        if permute == "no_permute":
            return x[:, :, None, None] if x.dim() == 2 else x
        if x.dim() == 4 and getattr(self.net, "output_fmt", "NCHW") == "NHWC":
            x = x.permute(0, 3, 1, 2)
        if x.dim() == 4:
            x = x.flatten(2).transpose(1, 2)
        elif x.dim() == 2:
            x = x[:, None]
        if permute == "spatial_first":
            return x.transpose(0, 1)
        return x[:, 0] if x.shape[1] == 1 else x


def as_map(x: Tensor, net: Any, size: tuple[int, int]) -> Tensor:
    """A map (B, K, h, w) or (B, h, w, K), or tokens (B, T, K) of images of `size` pixels, as
    (B, K, h, w).

    Raises:
        UserError: it has no positions.
    """
    if x.dim() == 4:
        return x.permute(0, 3, 1, 2) if getattr(net, "output_fmt", "NCHW") == "NHWC" else x
    if x.dim() == 3:
        for first in (getattr(net, "num_prefix_tokens", 0), 0):  # some add the class token late
            tokens = x[:, first:]
            h = round(math.sqrt(tokens.shape[1] * size[0] / size[1]))
            if h and tokens.shape[1] % h == 0:
                return tokens.transpose(1, 2).unflatten(2, (h, -1))
    raise UserError(f"layer: what passes there has the shape {tuple(x.shape)}, not that of a map")


def _create(backbone: str, pretrained: bool, options: dict[str, Any], **given: Any) -> nn.Module:
    import timm

    if not NAME.fullmatch(backbone) or not timm.is_model(backbone):
        near = timm.list_models(f"{backbone[:6]}*")[:5]
        raise ConfigError(
            f"cnn.backbone: timm has no {backbone!r}; for example {', '.join(near or ['resnet50'])}"
        )
    refuse_options(options)
    options = {name: value for name, value in options.items() if value is not None}
    try:
        return timm.create_model(backbone, pretrained=pretrained, **given, **options)
    except TypeError as error:
        raise ConfigError(
            f"cnn.options: {backbone} does not take {options} ({error}); set what it does not "
            "know to null, or write another backbone; a transformer's options do not fit a CNN"
        ) from error
    except Exception as error:  # networks refuse nonsense in all kinds of ways
        if not pretrained and not options:
            if "." not in backbone:
                raise
            raise ConfigError(
                f"cnn.backbone: timm cannot make {backbone!r} ({error}); leave out what stands "
                "behind the dot"
            ) from error
        if not pretrained:
            raise ConfigError(
                f"cnn.options: {backbone} cannot be made with {options} ({type(error).__name__}: "
                f"{error}); correct them"
            ) from error
        if options:
            _create(backbone, False, options, **given)  # refuses those that never do
        raise Unobtainable(
            f"cnn.pretrained: the published weights of {backbone} cannot be had here "
            f"({type(error).__name__}); write model.cnn.pretrained=false"
        ) from error
