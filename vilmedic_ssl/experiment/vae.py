"""The trained VAE whose codes a model learns: found, its sizes written into the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import console
from vilmedic_ssl.errors import ConfigError, UserError

if TYPE_CHECKING:
    from vilmedic_ssl.executors.dalle_files import VAEFile

WHERE = "model.vae.ckpt"


def pin_vae(node: Mapping[str, Any]) -> VAEFile | None:
    """Write the sizes of the VAE that a new training names into its config; None for models without
    one. Where `init_from` names a whole DALLE and no VAE, that one's is meant.

    Raises:
        UserError: no such file, or no VAE in it; none is named.
        ConfigError: keys that contradict the file.
    """
    from vilmedic_ssl.executors.dalle_files import read_vae

    keys = node["model"].get("vae")
    if not isinstance(keys, dict):
        return None
    source = keys["ckpt"] or node["init_from"]
    if source is None:
        raise UserError(
            f"{WHERE}: DALLE learns the codes of a trained VAE; train one (for example "
            f"config/SELFSUP/vae-manifest.yml) and write {WHERE}=FOLDER, its run folder or a "
            "checkpoint in it"
        )
    found = read_vae(source, node["seed"], where=WHERE if keys["ckpt"] else "init_from")
    for name, there in found.told.items():
        if keys.get(name) not in (None, there):
            raise ConfigError(
                f"model.vae.{name}: {keys[name]}, but {found.path} was trained with {there}; write "
                f"{there}, or leave the key out"
            )
    known = {name: value for name, value in found.told.items() if name in keys}
    keys |= {name: value for name, value in known.items() if keys[name] is None}
    if keys["image_size"] is None:
        raise ConfigError(
            f"model.vae.image_size: {found.path} does not tell how large its images were; write "
            "their side in pixels, for example 256"
        )
    sizes = ", ".join(f"{name} {value}" for name, value in sorted(known.items()))
    console.say(f"vae {found.path}, frozen; its weights are kept with the model's ({sizes})")
    return found
