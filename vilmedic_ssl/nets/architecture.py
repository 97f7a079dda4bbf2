"""What of a config may reach timm and transformers: numbers, switches and short words that describe
an architecture, and nothing that names a file, a folder, a class or a repository.

A config may lie in a checkpoint that a stranger wrote, and both libraries take arguments that make
them open or fetch what a config names: timm `checkpoint_path`, `pretrained_cfg` and others,
transformers the types that wrap timm, `auto_map`, and attention kernels of the hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.registry import closest

WORD = re.compile(r"[A-Za-z][\w-]{0,39}")  # no dot, slash, colon or blank: no path, no repository
DEEPEST = 3  # lists in lists: stages of blocks of numbers


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Arguments of timm's networks that are numbers, switches or words. What timm.create_model and its
# builder take for themselves (checkpoint_path, pretrained_cfg, cache_dir, features_only ...) is not
# among them, nor is what VisualEncoder gives (num_classes, in_chans).
OPTIONS = _words(
    """
    img_size patch_size strict_img_size dynamic_img_size dynamic_img_pad output_stride depth
    depths embed_dim embed_dims num_heads num_kv_heads head_dim mlp_ratio mlp_ratios dim dims
    layers channels widths hidden_sizes patch_sizes width depth_mult width_mult width_factor
    window_size window_ratio window_sizes pretrained_window_sizes kernel_size kernel_sizes
    cardinality base_width groups expand_ratio growth_rate growth_rates bn_size block_config
    num_features num_init_features stem_size stem_width stem_type stem_chs stem_stride
    stem_kernel_size down_kernel_size conv_mlp conv_bias use_grn sr_ratios focal_levels
    focal_windows serial_depths parallel_depth bottle_ratio avg_down replace_stem_pool
    block_reduce_first reduction downsamples down_ops drop_rate pos_drop_rate patch_drop_rate
    proj_drop_rate attn_drop_rate drop_path_rate drop_block_rate norm_layer norm_eps act_layer
    aa_layer pad_type mlp_layer swiglu_mlp scale_mlp scale_mlp_norm scale_attn_norm qkv_bias
    qkv_fused qk_norm proj_bias init_values ls_init_value layer_scale_init_value head_init_scale
    head_norm_first head_hidden_size weight_init fix_init zero_init_last global_pool
    pool_include_prefix class_token reg_tokens no_embed_class pos_embed use_pos_embed
    use_abs_pos_emb use_rel_pos_bias use_shared_rel_pos_bias rel_pos_type rope_type
    rope_temperature ref_feat_shape pre_norm final_norm fc_norm use_fc_norm use_post_norm
    embed_norm always_partition
    """
)
# Networks of transformers that read text alone and are built without opening or fetching anything.
TEXT_TYPES = _words(
    """
    albert bert bert-generation big_bird biogpt camembert convbert data2vec-text deberta
    deberta-v2 distilbert electra ernie esm eurobert flaubert fnet funnel gpt2 gpt_neo gpt_neox
    ibert llama longformer luke megatron-bert mistral mobilebert modernbert mpnet mra nomic_bert
    nystromformer opt qwen2 qwen3 rembert roberta roberta-prelayernorm roc_bert roformer
    squeezebert xlm xlm-roberta xlm-roberta-xl xmod yoso
    """
)

FROM_A_FILE = "to start from a file of weights write init_from=FILE"
ELSEWHERE = {  # what has a key of its own
    **dict.fromkeys(("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"), FROM_A_FILE),
    **dict.fromkeys(("features_only", "out_indices"), "write model.cnn.output_layer"),
    "pretrained": "write model.cnn.pretrained",
    "in_chans": "write model.cnn.in_chans",
    "num_classes": "leave it out",
    "cache_dir": "set the environment variable HF_HUB_CACHE",
}


def is_plain(value: Any, depth: int = DEEPEST) -> bool:
    """True for null, a switch, a number, a short word, and lists and mappings of these."""
    if value is None or isinstance(value, bool | int | float):
        return True
    if isinstance(value, str):
        return value == "" or WORD.fullmatch(value) is not None
    if depth == 0:
        return False
    if isinstance(value, Mapping):
        return all(is_plain(item, depth - 1) for item in (*value, *value.values()))
    return isinstance(value, list | tuple) and all(is_plain(item, depth - 1) for item in value)


def refuse_options(options: Mapping[str, Any], where: str = "cnn.options") -> None:
    """Raises:
    ConfigError: an option that is none of a timm network's architecture, or whose value is
        neither null, a number, a switch, a short word nor a list of these.
    """
    for name, value in options.items():
        if name in ELSEWHERE:
            raise ConfigError(
                f"{where}.{name}: options describe the architecture alone; {ELSEWHERE[name]}"
            )
        if name not in OPTIONS:
            raise ConfigError(
                f"{where}.{name}: no option of an architecture that is passed on to timm; "
                f"{_near(str(name), OPTIONS, 'leave it out')}"
            )
        if isinstance(value, Mapping) or not is_plain(value):
            raise ConfigError(
                f"{where}.{name}: {value!r}; write a number, true, false, null, a short word of "
                "letters and digits, or a list of these"
            )


def _near(word: str, known: frozenset[str], otherwise: str) -> str:
    """The end of a did-you-mean sentence, `otherwise` where nothing is near."""
    near = closest(word, known)
    return otherwise if near.startswith("known:") else near


def text_config(config: Mapping[str, Any]) -> Any:
    """The transformers configuration that plain data describes, made of the fields that belong to
    its type; what concerns other things than the architecture is left out.

    Raises:
        ConfigError: no type, one that is no text encoder, a field that is not plain, or values
            that transformers refuses.
    """
    from transformers import AutoConfig, PreTrainedConfig

    kind = config.get("model_type")
    if kind not in TEXT_TYPES:
        near = _near(str(kind), TEXT_TYPES, "bert, roberta and modernbert are, for example")
        raise ConfigError(
            f"model.encoder.config.model_type: {kind!r} is no text encoder that is read here; "
            f"{near}"
        )
    names = set(AutoConfig.for_model(kind).to_dict()) - set(PreTrainedConfig().to_dict())
    fields = {name: value for name, value in config.items() if name in names}
    for name, value in fields.items():
        if not is_plain(value):
            raise ConfigError(
                f"model.encoder.config.{name}: {value!r} is neither a number, a switch, a short "
                "word nor a list of these; take the config of the encoder's own folder"
            )
    try:
        return AutoConfig.for_model(kind, **fields)
    except Exception as error:  # transformers checks fields in a dozen ways
        raise ConfigError(
            f"model.encoder.config: transformers refuses it ({' '.join(str(error).split())[:200]});"
            " take the config of the encoder's own folder"
        ) from error
