"""Reading, splitting and feeding images, reports and labels."""

from typing import Any

__all__ = ["audit", "read_image", "split_patients"]


def __getattr__(name: str) -> Any:
    if name == "read_image":
        from vilmedic_ssl.data.read import read_image

        return read_image
    if name == "audit":
        from vilmedic_ssl.data.auditing import audit

        return audit
    if name == "split_patients":
        from vilmedic_ssl.data.splits import split_patients

        return split_patients
    raise AttributeError(f"module 'vilmedic_ssl.data' has no attribute {name!r}")
