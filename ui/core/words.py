"""Numbers, sizes, times and values as people read them."""

from datetime import datetime, timezone
from typing import Any

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
NONE = "none"


def size(count: float) -> str:
    """A number of bytes: `1.1 MiB`."""
    for unit in UNITS[:-1]:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {UNITS[-1]}"


def duration(seconds: float) -> str:
    """A time span in its two largest units: `3 min 20 s`."""
    whole = max(0, round(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole % 60} s"
    return f"{whole} s"


def count(value: float) -> str:
    """A number with its thousands apart, and at most two decimal places: `551,626`, `0.33`."""
    return f"{round(value, 2):,}"


def plural(value: float, noun: str) -> str:
    """`1 picture`, `32 pictures`."""
    return f"{count(value)} {noun}" if value == 1 else f"{count(value)} {noun}s"


def number(value: float) -> str:
    """The shortest text that reads back as the same number: `0.0001`, `1e-8`, `2000`."""
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    mantissa, _, exponent = repr(float(value)).partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def when(moment: datetime | str, now: datetime | None = None) -> str:
    """A time in this machine's zone: `today 13:05`, `2026-11-21 09:30`."""
    now = now or datetime.now(timezone.utc)
    try:
        local = (datetime.fromisoformat(moment) if isinstance(moment, str) else moment).astimezone()
    except (ValueError, OverflowError):  # of a damaged file: no time, or one before all others in this zone
        return shortened(f"{moment}", 40)
    today = now.astimezone().date()
    return f"today {local:%H:%M}" if local.date() == today else f"{local:%Y-%m-%d %H:%M}"


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and end: `a_long…name`."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) + 1 - (most + 1) // 2 :]}"


def value(thing: Any) -> str:
    """Any value of a preset."""
    if thing is None:
        return NONE
    if isinstance(thing, bool):
        return "on" if thing else "off"
    if isinstance(thing, int | float):
        return number(thing)
    if isinstance(thing, list | tuple):
        return ", ".join(value(one) for one in thing) or "nothing"
    if isinstance(thing, dict):
        return ", ".join(f"{name} {value(one)}" for name, one in thing.items() if one is not None)
    return str(thing) or "empty"
