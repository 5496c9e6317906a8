"""Methods of other trainers: which of ours they are, and what their rank, alpha, factor and block size are here."""

import math

import annotated_types

from modules import adapters
from modules.importing.base import Wishes
from modules.importing.ledger import Ledger
from modules.preset.problems import enumerated

LOW_RANK = ("lora", "dora", "wora")
PRODUCTS = ("loha", "lokr")
BUTTERFLY = "boft"
ROTATIONS = ("oft", "doft")

WORDS = {
    "loha": "LoHa", "lokr": "LoKr", "dylora": "DyLoRA", "glora": "GLoRA", "lora-fa": "LoRA-FA", "boft": "BOFT",
    "lorm": "LoRM", "ia3": "IA3", "full": "training of all weights",
}  # fmt: skip
"""Their names for methods as sentences write them."""

NEAREST = {
    "dylora": ("lora",),
    "glora": ("lora", "dora"),
    "ia3": ("doft", "lora"),
    "full": ("lora", "dora"),
    "lorm": ("lora",),
    "lora-fa": ("lora",),
    "tlora": ("lora",),
}
"""Methods of other trainers that are none here, and what is nearest to them, best first."""


SMALL_FACTOR = "The small factor is a pair of a rank there where it is large, and always a whole matrix here."
TUCKER = "The large factor of a kernel is a core with two matrices there (Tucker), and a plain pair here."
NO_MAGNITUDES = "There are no magnitudes beside this method here; the change itself is learned."
"""What Kronecker and other products have there, in sentences."""


def chosen_method(ledger: Ledger, theirs: str, own: str, wishes: Wishes) -> str:
    """The method: the wished one, or `own`, ours for `theirs`; "" in `own` raises ValueError with what is nearest."""
    if wishes.method:
        return wishes.method
    if own:
        return own
    near = NEAREST.get(theirs.lower(), LOW_RANK)
    flags = enumerated([f"--method {name}" for name in near], "or")
    word = WORDS.get(theirs.lower(), theirs)
    raise ValueError(f"{ledger.path}: the method {word} is not one of Gimbal's; choose what is nearest with {flags}")


def set_method(ledger: Ledger, key: str, theirs: str, own: str, wishes: Wishes) -> str:
    """Write the method, and say so where it is another one."""
    method = chosen_method(ledger, theirs, own, wishes)
    if method == own:
        ledger.to(key, "adapter.method", method)
    else:
        word = WORDS.get(theirs.lower(), theirs)
        sentence = f"The method was {word} there; --method made it {method}, which learns something else."
        ledger.change(key, sentence, {"adapter.method": method})
    return method


def set_dropout(ledger: Ledger, key: str) -> None:
    """Their dropout of the values between the two factors of a plain LoRA."""
    rate = ledger.maybe(key)
    if rate:
        ledger.to(key, "adapter.dropout", rate)
        ledger.set({"adapter.dropout_of": "inner"}, key)


def most(method: str, field: str) -> int:
    """The largest value that a method's option may have; 0 if the method has no such option."""
    found = adapters.methods()[method].Config.model_fields.get(field)
    limits = [one.le for one in found.metadata if isinstance(one, annotated_types.Le)] if found else []
    return int(str(limits[0])) if limits else 0


def set_rank(ledger: Ledger, method: str, rank: tuple[str, int], alpha: tuple[str, float | None]) -> None:
    """Rank and alpha of any method that has them: each a key and its value; alpha None means alpha = rank there.

    Of a rotation's file, or for a method without a rank, both are said to have no counterpart.
    """
    (rank_key, r), (alpha_key, a) = rank, alpha
    largest = most(method, "rank")
    if not largest:
        ledger.drop(rank_key, f"no counterpart: {method} has no rank")
        ledger.drop(alpha_key, f"no counterpart: {method} has no alpha")
        return
    if not 1 <= r <= largest:
        sentence = f"A rank of {r} is not possible here, so the usual one is taken."
        ledger.change(rank_key, sentence, {"adapter.rank": 16})
        r, a = 16, None
    else:
        ledger.to(rank_key, "adapter.rank", r)
    if "alpha" not in adapters.methods()[method].Config.model_fields:
        ledger.drop(alpha_key, f"no counterpart: {method} has no alpha")
        return
    _set_alpha(ledger, method, r, alpha_key, a)


def _set_alpha(ledger: Ledger, method: str, r: int, key: str, a: float | None) -> None:
    if method not in LOW_RANK:  # whose steps are as published anyway
        ledger.set({"adapter.step_size": "raw"}, key)
    if a is None or a == r:
        ledger.to(key, "adapter.alpha", None)
        return
    if a <= 0:
        ledger.change(key, f"An alpha of {a:g} means alpha = rank there.", {"adapter.alpha": None})
        return
    where = "" if ledger.written(key) else f" The file does not say so, it is the default of {ledger.trainer}."
    sentence = (
        f"The update is multiplied by alpha / rank = {a:g} / {r} = {a / r:.4g}, as there, so the learning rate keeps "
        f"its meaning; with Gimbal's default, alpha = rank, it would be {r / a:.4g} times as strong.{where}"
    )
    ledger.change(key, sentence, {"adapter.alpha": a})


def set_kronecker(
    ledger: Ledger, rank: tuple[str, int], alpha: tuple[str, float | None], factor: tuple[str, int], whole: str = ""
) -> None:
    """Rank, alpha and factor of a Kronecker product. `whole`: the key that asks for the large factor as a full matrix,
    or "". A rank from half of the factor's longer side on is a full matrix in all programs, and then alpha has no
    effect."""
    (rank_key, r), (factor_key, n) = rank, factor
    largest = most("lokr", "rank")
    ledger.set({"adapter.step_size": "raw"}, rank_key)
    if whole or r > largest:
        key = whole or rank_key
        sentence = f"The large factor is a full matrix in every layer, which is said with a rank of {largest} here."
        ledger.change(key, sentence, {"adapter.rank": largest, "adapter.alpha": None})
        ledger.drop(alpha[0], "without effect there: the large factor is a full matrix, which is not scaled")
        if whole:
            ledger.drop(rank_key, f"without effect there: {whole} decides")
    else:
        set_rank(ledger, "lokr", rank, alpha)
    ledger.to(factor_key, "adapter.factor", n if n > 0 else None)


def set_butterfly(ledger: Ledger, key: str, size: int) -> None:
    """Block size of a butterfly of rotations; with raw steps one of Adam's moves it as there."""
    taken = min(max(size, 2), most(BUTTERFLY, "block_size"))
    ours = {"adapter.block_size": taken, "adapter.step_size": "raw"}
    if taken == size:
        ledger.set(ours, key)
        ledger.to(key, "adapter.block_size", taken)
    else:
        ledger.change(key, f"Blocks have 2 to {most(BUTTERFLY, 'block_size')} outputs here.", ours)


def set_axis(ledger: Ledger, key: str, output: bool, default: bool) -> None:
    """Axis of the magnitudes; `default` is the trainer's usual axis, True for output."""
    axis, other = ("output", "input") if output else ("input", "output")
    usual = f"the default of {ledger.trainer}" if output == default else f"not the default of {ledger.trainer}"
    each = "output feature" if output else "input channel"
    sentence = (
        f"The magnitudes are per {each} ({usual}), and so they are here; other trainers may mean {other} by DoRA, "
        "and diffusers reads output only."
    )
    ledger.change(key, sentence, {"adapter.axis": axis})


def set_blocks(ledger: Ledger, key: str, size: int, sentence: str = "") -> int:
    """Block size of a rotation; the size that was taken."""
    taken = min(max(size, 2), 1024)
    ours = {"adapter.rotation.kind": "blocks", "adapter.rotation.block_size": taken}
    if taken != size:
        sentence = f"Blocks have 2 to 1024 channels here. {sentence}".strip()
    if sentence:
        ledger.change(key, sentence, ours)
    else:
        ledger.set({"adapter.rotation.kind": "blocks"}, key)
        ledger.to(key, "adapter.rotation.block_size", taken)
    return taken


def unscaled_rotation(ledger: Ledger, lr_key: str, block_size: int, per_entry: int = 1, parts: int = 1) -> None:
    """Rotations elsewhere move by the learning rate per entry of Q (`per_entry` times: kohya's and LyCORIS' Q is the
    difference of a matrix and its transpose, which both learn), here by a calibrated part of it; beside magnitudes
    (`parts` 2) by that over the root of 2."""
    factor = 2 * per_entry * math.sqrt((block_size - 1) * parts)
    rate = ledger.values["training.learning_rate"]
    beside = " The magnitudes' steps, which were the learning rate there, grow with it." if parts > 1 else ""
    ledger.change(
        lr_key,
        f"The rotation's step is not calibrated there: one step changes a weight by "
        f"{2 * per_entry * math.sqrt(block_size - 1):.3g} times the learning rate with blocks of {block_size}, here by "
        f"{'the learning rate itself' if parts == 1 else 'the learning rate over the root of 2'}; it is multiplied by "
        f"{factor:.3g} so that the steps are as large as there.{beside}",
        {"training.learning_rate": float(f"{min(rate * factor, 10.0):.4g}")},
    )


def shared_step(ledger: Ledger, key: str) -> None:
    """A rotation and magnitudes that each move by the whole learning rate there, and here by it over the root of 2."""
    rate = ledger.values["training.learning_rate"]
    sentence = (
        "Rotation and magnitudes each move by the learning rate there, and share it here: it is multiplied by the root "
        "of 2 so that both steps are as large as there."
    )
    ledger.change(key, sentence, {"training.learning_rate": float(f"{min(rate * math.sqrt(2), 10.0):.4g}")})
