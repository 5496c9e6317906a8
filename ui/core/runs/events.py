"""Which of what stands in a run's `events.jsonl` is an event: all fields of its kind, each of its type
(docs/events.md). Everything else is counted, and nothing of it is shown."""

from typing import Any

Event = dict[str, Any]

MOST_STEPS, MOST = 2**31 - 1, 1e300
"""No step and no number of a run is larger. Beyond the first, Qt has no progress bar."""

MOST_CURVES = 500
"""What the adapters show of themselves, in one event."""

STEPS, NUMBERS, PERHAPS, TEXTS, PERHAPS_TEXTS = range(5)
"""Places in an entry of `FIELDS`: steps, finite numbers, such or null, texts, texts or null."""

FIELDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "stage": ((), (), (), ("name", "detail"), ()),
    "step": (
        ("step", "steps"),
        ("epoch", "seconds_left", "learning_rate", "seconds_per_step", "memory_mb"),
        ("loss", "loss_average", "grad_norm"),
        (),
        (),
    ),
    "sample": (("step",), (), (), ("path", "prompt"), ()),
    "spectrum": (("step",), ("spectral_norm", "stable_rank", "effective_rank"), (), (), ()),
    "judged": (("step",), ("subject", "style", "unnamed"), (), (), ()),
    "saved": (("step",), ("bytes",), (), ("what", "path"), ()),
    "validation": (("step",), (), ("loss", "baseline"), (), ()),
    "due": (("step",), ("minute",), (), ("what",), ()),
    "warning": ((), (), (), ("message", "detail"), ()),
    "error": ((), (), (), ("message", "detail"), ()),
    "finished": (("step",), ("exit_code",), (), ("outcome",), ("path",)),
}
"""Fields of each kind of event that are read, by their types."""


def is_sound(event: Event) -> bool:
    """Whether this is an event; one of an unknown kind only needs a kind and a time."""
    try:
        _check(event)
    except (KeyError, ValueError):
        return False
    return True


def _check(event: Event) -> None:
    kind = event["event"]
    if type(kind) is not str or type(event["time"]) is not str:
        raise ValueError("kind and time are texts")
    fields = FIELDS.get(kind)
    if fields is None:
        return
    for name in fields[STEPS]:  # spelled out: this runs a million times for a long run
        if type(value := event[name]) is not int or not 0 <= value <= MOST_STEPS:
            raise ValueError(name)
    for name in fields[NUMBERS]:
        if not ((kind_of := type(value := event[name])) is float or kind_of is int) or not -MOST < value < MOST:
            raise ValueError(name)
    shown = event["adapter"] if kind == "step" else {}
    if type(shown) is not dict or len(shown) > MOST_CURVES:
        raise ValueError("adapter")
    for value in (*[event[name] for name in fields[PERHAPS]], *shown.values()):
        if value is not None and (type(value) not in (float, int) or not -MOST < value < MOST):
            raise ValueError(value)
    for name in fields[TEXTS]:
        if type(event[name]) is not str:
            raise ValueError(name)
    for name in fields[PERHAPS_TEXTS]:
        if event[name] is not None and type(event[name]) is not str:
            raise ValueError(name)
