"""The languages of reports."""

from __future__ import annotations

from vilmedic_ssl.errors import ConfigError

LANGUAGES = ("en", "es")


def known(language: str) -> str:
    """The language itself.

    Raises:
        ConfigError: no rules for it.
    """
    if language not in LANGUAGES:
        raise ConfigError(
            f"language: {language!r} is not one of 'en', 'es'; reports in other languages can be "
            "read with processing: none"
        )
    return language
