"""Files of other programs, by name: what is in each, and what it means. See `making.Sample`.

`CORPUS[name]()` makes one: its tensors under the public key names, metadata, peft's options, the exact adapted weights
of the tiny model `making.TINY[family]`, and the words of the sentence where it cannot be used.
"""

from collections.abc import Callable

from tests.files import flows, unets, unreadable
from tests.files.making import Sample

READ: dict[str, Callable[[], Sample]] = unets.SAMPLES | flows.SAMPLES
"""Files with a meaning, some beside extras that are refused unless they are left out."""

UNREADABLE: dict[str, Callable[[], Sample]] = unreadable.SAMPLES
"""Files without one."""

CORPUS = READ | UNREADABLE
