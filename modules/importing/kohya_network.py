"""sd-scripts' settings about the method and its layers, those of LyCORIS among them; `kohya` has the others.

`networks/*.py` of sd-scripts at commit 48d368fa; LyCORIS 4, `lycoris/kohya.py`, `lycoris/config.py` and
`lycoris/modules/*.py`.
"""

import math
import re

from modules.importing import base, kohya_blocks, methods
from modules.importing.ledger import Ledger

MODULES = {
    "networks.lora": "",
    "networks.lora_flux": "flux",
    "networks.lora_sd3": "sd3",
    "networks.oft": "",
    "networks.oft_flux": "flux",
    "lycoris.kohya": "",
    "locon.locon_kohya": "",
    "networks.dylora": "",
    "networks.lora_fa": "",
    "networks.loha": "",
    "networks.lokr": "",
}
"""Network modules, and families where they are for one."""

ALGORITHMS = {"lora": "lora", "locon": "lora", "diag-oft": "oft", "loha": "loha", "lokr": "lokr", "boft": "boft"}
"""LyCORIS' names, and ours."""

THEIRS = {"networks.dylora": "dylora", "networks.lora_fa": "lora-fa", "networks.loha": "loha", "networks.lokr": "lokr"}
"""Modules of sd-scripts that have a method of their own, by LyCORIS' names."""

ARGS = "network_args."

SETS = {
    "full": "all",
    "unet-only": "all",
    "attn-only": "attention",
    "attn-mlp": "attention-mlp",
    "unet-transformer-only": "attention-mlp",
    "unet-convblock-only": "unet.*.resnets.*, unet.*samplers.*, unet.conv_in, unet.conv_out",
}
"""LyCORIS' sets of layers and ours, or patterns."""

BLOCKS = {"double": ("transformer.transformer_blocks", 19), "single": ("transformer.single_transformer_blocks", 38)}
"""Blocks of Flux by kohya's names, and how many there are."""


def algorithm(ledger: Ledger) -> tuple[str, str]:
    """The method by their name and by ours."""
    module = ledger.text("network_module")
    if module in THEIRS:
        return THEIRS[module], ALGORITHMS.get(THEIRS[module], "")
    if module in ("networks.oft", "networks.oft_flux"):
        return "oft", "oft"
    if module in ("lycoris.kohya", "locon.locon_kohya"):
        theirs = ledger.text(f"{ARGS}algo").lower() or "lora"
        own = ALGORITHMS.get(theirs, "")
        if own == "lora" and ledger.flag(f"{ARGS}dora_wd"):
            own = "dora"
        if own == "oft" and ledger.flag(f"{ARGS}rescaled"):
            own = "doft"
        return theirs, own
    return "lora", "lora"


def set_method(ledger: Ledger, wishes: base.Wishes) -> str:
    """Write the method with its rank, factor or block size; ours."""
    theirs, own = algorithm(ledger)
    module_key = f"{ARGS}algo" if ledger.written(f"{ARGS}algo") else "network_module"
    method = methods.set_method(ledger, module_key, theirs, own, wishes)
    if module_key != "network_module":
        ledger.agree("network_module", "network_args has the method")
    rank = 4 if ledger.maybe("network_dim") is None else ledger.whole("network_dim")
    if method in methods.ROTATIONS:
        _rotation(ledger, theirs, rank)
    elif method == methods.BUTTERFLY:
        _butterfly(ledger, theirs, rank)
    else:
        _product(ledger, method, theirs, rank)
    if method == "lora" and ledger.text("network_module").startswith("networks.lora") and theirs == "lora":
        _regularisation(ledger)
    elif ledger.text("network_module") == "lycoris.kohya":
        _left_out(ledger)
    if ledger.flag(f"{ARGS}dora_wd"):
        _magnitudes(ledger, method)
    for key in ("network_weights", "base_weights"):
        if ledger.value(key):
            _weights(ledger, key)
    return method


def _regularisation(ledger: Ledger) -> None:
    """Dropout and the largest norm of sd-scripts' own LoRA."""
    methods.set_dropout(ledger, "network_dropout")
    if rate := ledger.maybe(f"{ARGS}rank_dropout"):
        ledger.to(f"{ARGS}rank_dropout", "adapter.rank_dropout", rate)
    _left_out(ledger)
    if longest := ledger.maybe("scale_weight_norms"):
        ledger.to("scale_weight_norms", "adapter.max_norm", longest)


def _left_out(ledger: Ledger) -> None:
    """Dropout of whole layers, which LyCORIS has for all of its methods."""
    key = f"{ARGS}module_dropout"
    if rate := ledger.maybe(key):
        if ledger.whole("train_batch_size") == 1:
            ledger.to(key, "adapter.module_dropout", rate)
        else:
            ledger.change(key, "A layer is left out for a whole batch there, and for single samples here.",
                          {"adapter.module_dropout": rate})


def _product(ledger: Ledger, method: str, theirs: str, rank: int) -> None:
    """Rank and alpha, which all but the rotations have."""
    alpha = ledger.number("network_alpha")
    if ledger.flag(f"{ARGS}rs_lora") and alpha:
        alpha = float(f"{alpha * math.sqrt(rank):.6g}")
        ledger.change(f"{ARGS}rs_lora", f"It divides alpha by the root of the rank; alpha becomes {alpha:g}.")
    named = ("network_dim", rank), ("network_alpha", alpha)
    if method == "lokr" and theirs == "lokr":
        whole = f"{ARGS}full_matrix" if ledger.flag(f"{ARGS}full_matrix") else ""
        methods.set_kronecker(ledger, *named, (f"{ARGS}factor", ledger.whole(f"{ARGS}factor")), whole)
        if ledger.flag(f"{ARGS}decompose_both"):
            _small_factor(ledger, rank)
        if ledger.flag(f"{ARGS}unbalanced_factorization"):
            sentence = "The small factor has the smaller divisor of both sizes here."
            ledger.change(f"{ARGS}unbalanced_factorization", sentence)
    else:
        methods.set_rank(ledger, method, *named)
        for key in ("factor", "decompose_both"):
            ledger.drop(f"{ARGS}{key}", f"without effect there: of another method than {theirs}")
    for key in ("use_tucker", "use_cp", "use_conv_cp"):
        if ledger.flag(f"{ARGS}{key}") and theirs in ("loha", "lokr") and "adapter.rank" in ledger.values:
            ledger.change(f"{ARGS}{key}", methods.TUCKER)


def _small_factor(ledger: Ledger, rank: int) -> None:
    key, factor = f"{ARGS}decompose_both", ledger.whole(f"{ARGS}factor")
    if 0 < factor <= 2 * rank:
        ledger.agree(key, f"the small factor is a whole matrix there too: it has at most {factor} rows and columns")
    else:
        ledger.change(key, methods.SMALL_FACTOR)


def _butterfly(ledger: Ledger, theirs: str, rank: int) -> None:
    if theirs != methods.BUTTERFLY:
        methods.set_butterfly(ledger, "network_dim", 16)
        ledger.change("network_dim", "A rank is no block size, so the usual one is taken.")
    else:
        methods.set_butterfly(ledger, "network_dim", rank)
    ledger.drop("network_alpha", "without effect there: a rotation is not scaled")
    if ledger.flag(f"{ARGS}rescaled"):
        ledger.change(f"{ARGS}rescaled", "There are no magnitudes beside this method here; the rotations alone learn.")
    _unconstrained(ledger)


def _rotation(ledger: Ledger, theirs: str, rank: int) -> None:
    """kohya's and LyCORIS' blocks rotate a layer's output."""
    if theirs == "oft":
        sentence = "network_dim is the number of blocks there, not their size; the usual size is taken."
        methods.set_blocks(ledger, "network_dim", 32, sentence)
        if ledger.number("network_alpha"):
            ledger.change("network_alpha", "It limits the rotation of a layer there, which is not limited here.")
    elif theirs == "diag-oft":
        sentence = (
            f"In layers with fewer than {rank**2} outputs LyCORIS takes smaller blocks, of outputs / {rank}; here all "
            f"have {rank}." if rank > 16 else ""
        )
        methods.set_blocks(ledger, "network_dim", rank, sentence)
        ledger.drop("network_alpha", "without effect there: a rotation is not scaled")
        if ledger.flag(f"{ARGS}rescaled"):
            ledger.agree(f"{ARGS}rescaled", "the magnitude per output feature")
        _unconstrained(ledger)
    else:
        methods.set_blocks(ledger, "network_dim", 32, "A rank is no block size, so the usual one is taken.")
        ledger.drop("network_alpha", "a rotation is not scaled")
        return
    ledger.set({"adapter.side": "output"}, "network_module")


def _unconstrained(ledger: Ledger) -> None:
    for key in (f"{ARGS}constraint", f"{ARGS}constrain"):
        if ledger.value(key) and ledger.number(key):
            ledger.change(key, "The rotation is limited there, and not here.")


def _magnitudes(ledger: Ledger, method: str) -> None:
    key = f"{ARGS}dora_wd"
    if method not in ("lora", "dora", "wora"):
        ledger.change(key, methods.NO_MAGNITUDES)
        ledger.drop(f"{ARGS}wd_on_output", "goes with dora_wd")
        return
    ledger.to(key, "adapter.method", method)
    if method != "lora":
        axis = f"{ARGS}wd_on_output"
        methods.set_axis(ledger, axis, ledger.flag(axis), default=True)


def _weights(ledger: Ledger, key: str) -> None:
    """Files of adapters to begin with."""
    if key == "base_weights":
        sentence = (
            "These are merged into the base before training there; merge them first, with scripts/merge.py, and give "
            "the result as base.path."
        )
        ledger.change(key, sentence)
        ledger.drop("base_weights_multiplier", "goes with base_weights")
        return
    ledger.to(key, "adapter.start_from", ledger.text(key))
    if ledger.flag("dim_from_weights"):
        sentence = "The rank is the file's there; here it is set, and --check says if it differs."
        ledger.change("dim_from_weights", sentence)


def set_step(ledger: Ledger, method: str) -> None:
    """The learning rate of a rotation, whose steps are not calibrated there."""
    if method in methods.ROTATIONS and algorithm(ledger)[1] in methods.ROTATIONS:
        size, key = ledger.values["adapter.rotation.block_size"], ledger.origin["training.learning_rate"]
        methods.unscaled_rotation(ledger, key, size, per_entry=2, parts=2 if method == "doft" else 1)


# -- layers -----------------------------------------------------------------------------------------------------------


def set_layers(ledger: Ledger, family: str, method: str) -> None:
    """Write which layers are adapted."""
    preset, is_lycoris = ledger.text(f"{ARGS}preset"), ledger.text("network_module") == "lycoris.kohya"
    conv, out = ledger.maybe(f"{ARGS}conv_dim"), ledger.values.get("targets.exclude", [])
    if algorithm(ledger)[0] == "oft":
        layers, out = _rotated_layers(ledger, family, out)
    elif base.is_flow(family):
        layers, out = _transformer_layers(ledger, family, out)
    elif is_lycoris:
        layers = SETS.get(preset, "attention-mlp")
        out = [*out, "unet.add_embedding.*"] if layers == "all" and family == "sdxl" else out
        if preset in SETS:
            ledger.to(f"{ARGS}preset", "targets.layers", layers)
        else:
            sentence = f"There is no set of layers {preset} here; {layers} is taken."
            ledger.change(f"{ARGS}preset", sentence, {"targets.layers": layers})
        if preset.startswith("unet-") and ledger.values.get("targets.text_encoders"):
            ledger.change(f"{ARGS}preset", "It has no layers of text encoders.", {"targets.text_encoders": False})
    else:
        layers = "attention-mlp-conv" if conv else "attention-mlp"
    ledger.set({"targets.layers": layers}, "network_module")
    if out:
        ledger.set({"targets.exclude": out}, "network_module")
    if conv and not base.is_flow(family) and layers in ("all", "attention-mlp", "attention-mlp-conv"):
        _conv(ledger, int(conv), method, layers)
    if not is_lycoris:
        kohya_blocks.convert(ledger, family, layers == "attention-mlp-conv")


def _rotated_layers(ledger: Ledger, family: str, out: list[str]) -> tuple[str, list[str]]:
    """networks.oft trains no text encoders, and only attention unless told otherwise; any value turns a switch on."""
    if ledger.values.get("targets.text_encoders"):
        sentence = "networks.oft has no layers of text encoders."
        ledger.change("network_module", sentence, {"targets.text_encoders": False})
    out = [pattern for pattern in out if not pattern.startswith("text_encoder")]
    if not out:
        ledger.values.pop("targets.exclude", None)
    linear, conv = f"{ARGS}enable_all_linear", f"{ARGS}enable_conv"
    everything = ledger.value(linear) is not None
    if base.is_flow(family):
        layers = "all" if everything else "transformer.transformer_blocks.*.attn.*"
        out = [*out, *base.OUTSIDE] if everything else out
    else:
        layers = "attention-mlp" if everything else "attention"
        if ledger.value(conv) is not None:
            layers = f"{layers}, unet.*.resnets.*, unet.*samplers.*"
            ledger.to(conv, "targets.layers", layers)
    if everything:
        ledger.to(linear, "targets.layers", layers)
    return layers, out


def _transformer_layers(ledger: Ledger, family: str, out: list[str]) -> tuple[str, list[str]]:
    if not ledger.flag(f"{ARGS}split_qkv"):
        sentence = "Queries, keys and values share one update there, and have one each here; the file is larger."
        ledger.change("network_module", sentence)
    else:
        ledger.agree(f"{ARGS}split_qkv", "queries, keys and values have one update each here")
    patterns = _blocks(ledger) if family in ("flux", "chroma") else None
    if patterns is None:
        return "all", [*out, *base.OUTSIDE]
    return base.layer_patterns(ledger, patterns), out


def _blocks(ledger: Ledger) -> list[str] | None:
    """Patterns of Flux's blocks where only some are trained; None for all of them."""
    kinds, chosen = ledger.text(f"{ARGS}train_blocks") or "all", False
    patterns: list[str] = []
    for kind, (name, count) in BLOCKS.items():
        key = f"{ARGS}train_{kind}_block_indices"
        if kinds not in ("all", kind):
            continue
        picked = None if ledger.value(key) is None else _picked(ledger, key, count)
        patterns += [f"{name}.*"] if picked is None else [f"{name}.{number}.*" for number in picked]
        chosen = chosen or picked is not None
    if not patterns:
        raise ValueError(f"{ledger.path}: network_args choose no block to train; correct train_double_block_indices")
    layers = base.layer_patterns(ledger, patterns)
    for key in (f"{ARGS}train_blocks", *(f"{ARGS}train_{kind}_block_indices" for kind in BLOCKS)):
        if ledger.differs(key):
            ledger.to(key, "targets.layers", layers)
    return patterns if chosen or kinds != "all" else None


def _picked(ledger: Ledger, key: str, count: int) -> list[int]:
    """`7,20`, `0-3,8`, `all` and `none` as numbers of blocks. Raises ValueError."""
    text = ledger.text(key).replace(" ", "").lower()
    if text in ("all", "none", ""):
        return list(range(count)) if text == "all" else []
    found: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not first <= last < count:
            raise ledger.wrong(key, f"a list of blocks, such as 0-3,7, below {count}")
        found |= set(range(first, last + 1))
    return sorted(found)


def _conv(ledger: Ledger, size: int, method: str, layers: str) -> None:
    """Rank and alpha of convolutions with a kernel, which have their own there."""
    key, alpha_key = f"{ARGS}conv_dim", f"{ARGS}conv_alpha"
    if layers == "attention-mlp":
        for one in (key, alpha_key):
            ledger.drop(one, "without effect there: no convolutions are trained")
        return
    if "adapter.rank" not in ledger.values:
        if size != ledger.whole("network_dim"):
            ledger.change(key, "Convolutions have blocks of their own size there; here all blocks have network_dim.")
        else:
            ledger.agree(key, "convolutions are trained, with blocks of the same size")
        ledger.drop(alpha_key, "without effect there: a rotation is not scaled")
        return
    ledger.agree(key, "convolutions are trained")
    rank = min(size, methods.most(method, "rank"))
    base.conv_rank(ledger, key, rank)
    if method == "lokr" and rank == methods.most(method, "rank"):
        ledger.drop(alpha_key, "without effect there: the large factor is a full matrix, which is not scaled")
        return
    own = ledger.maybe(alpha_key)
    alpha = (ledger.number("network_alpha") if _inherits(ledger) else 1.0) if own is None else own
    scale = ledger.values.get("adapter.alpha")
    here = 1.0 if scale is None else scale / rank
    if math.isclose(alpha / size, here):
        ledger.agree(alpha_key, "the same scale as here")
        return
    sentence = (
        f"Convolutions are scaled by conv_alpha / conv_dim = {alpha / size:.4g} there; alpha is one number "
        f"here, so it is {here:.4g}."
    )
    ledger.change(alpha_key, sentence)


def _inherits(ledger: Ledger) -> bool:
    """LyCORIS' convolutions take alpha from the others; sd-scripts' own have 1."""
    return ledger.text("network_module") == "lycoris.kohya"
