"""Times and sizes as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Its two largest units: ``3h5m``."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def size(count: float) -> str:
    """Bytes with a unit: ``1.2 MiB``."""
    if count < 1_000:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        count /= 1_024
        if count < 1_000 or unit == "TiB":
            break
    return f"{count:.1f} {unit}"


def rate(count: float) -> str:
    """Bytes per second; nothing is a dash, so that what moves is seen."""
    return f"{size(count)}/s" if count else "-"
