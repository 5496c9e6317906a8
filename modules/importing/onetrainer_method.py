"""OneTrainer's settings about the method and its layers; `onetrainer` has the others.

`modules/module/LoRAModule.py`, `modules/module/oft_utils.py`, `modules/util/ModuleFilter.py`, at commit 23df3832; pull
request 1335 (`dora_oft`), at commit c6b1d5c0.
"""

from modules.importing import base, methods
from modules.importing.ledger import Ledger

BLOCKS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "attn-mlp": (
        "attn,ff.net,proj_mlp",
        "attention-mlp",
        ("transformer.single_transformer_blocks.*.proj_out", "transformer.*.ff_context.*"),
    ),
    "attn-only": ("attn", "attention", ()),
    "blocks": ("transformer_block", "all", tuple(base.OUTSIDE)),
}
"""Of transformers of double and single blocks."""

LAYERS: dict[str, dict[str, tuple[str, str, tuple[str, ...]]]] = {
    "unet": {
        "attn-mlp": ("attentions", "attention-mlp", ()),
        "attn-only": ("attn", "attention", ()),
        "full": ("", "all", ()),
    },
    "sd3": {
        "attn-only": ("attn", "attention", ()),
        "blocks": ("transformer_block", "all", tuple(base.OUTSIDE)),
        "full": ("", "all", ()),
    },
    "flux": {**BLOCKS, "full": ("", "all", ())},
    "flux2": {"blocks": ("transformer_block", "attention-mlp", ()), "full": ("", "all", ())},
    "chroma": {**BLOCKS, "full": ("", "all, transformer.distilled_guidance_layer.*", ())},
    "qwenimage": {
        "attn-mlp": ("attn,img_mlp,txt_mlp", "attention-mlp", ()),
        "attn-only": ("attn", "attention", ()),
        "blocks": ("transformer_block", "all", tuple(base.outside("qwenimage"))),
        "full": ("", "all", ()),
    },
    "krea2": {
        "attn-mlp": ("attn,ff", "attention-mlp", ()),
        "attn-only": ("attn", "attention", ()),
        "blocks": ("transformer_blocks", "main-blocks", ()),
        "full": ("", "all", ()),
    },
    "anima": {
        "attn-mlp": ("attn1,attn2,ff", "attention-mlp", ()),
        "attn-only": ("attn1,attn2", "attention", ()),
        "blocks": ("transformer_block", "all", tuple(base.outside("anima"))),
        "full": ("", "all", ()),
    },
    "zimage": {
        "attn-mlp": (
            "^(?=.*attention)(?!.*refiner).*,^(?=.*feed_forward)(?!.*refiner).*",
            "main-blocks",
            (),
        ),
        "attn-only": ("^(?=.*attention)(?!.*refiner).*", "transformer.layers.*.attention.*", ()),
        "blocks": ("layers", "transformer.layers.*", ()),
        "full": ("", "all", ()),
    },
}
"""The window's layer presets: its patterns (regular expressions begin with ^), our set of layers, and what has to be
taken out of it."""


def convert(ledger: Ledger, optimizer: str, family: str, denoiser: str, wishes: base.Wishes) -> None:
    """Write these sections."""
    _method(ledger, optimizer, wishes)
    _layers(ledger, family, denoiser)
    _kernels(ledger, denoiser)


def _method(ledger: Ledger, optimizer: str, wishes: base.Wishes) -> None:
    kind = ledger.text("peft_type")
    own = {"LORA": "dora" if ledger.flag("lora_decompose") else "lora", "LOHA": "loha", "LOKR": "lokr",
           "OFT_2": "doft" if ledger.flag("dora_oft") else "oft"}
    if ledger.value("training_method") != "LORA":
        own, kind = {}, "full"
    method = methods.set_method(ledger, "peft_type", kind, own.get(kind, ""), wishes)
    rank, alpha = ("lora_rank", ledger.whole("lora_rank")), ("lora_alpha", ledger.number("lora_alpha"))
    if kind == "LOKR":
        rank = ("lokr_dim", ledger.whole("lokr_dim"))
    if kind == "LOKR" and method == "lokr":
        _kronecker(ledger, rank, alpha)
    elif method in methods.ROTATIONS:
        _rotation(ledger, kind, method, optimizer)
    else:
        methods.set_rank(ledger, method, rank, alpha)
    if kind == "LOKR":
        ledger.drop("lora_rank", "without effect there: lokr_dim is the rank of a LoKr")
    if kind == "LORA":
        switch = ledger.flag("lora_decompose")
        if method == "lora" and not switch:
            methods.set_dropout(ledger, "dropout_probability")
        ledger.to("lora_decompose", "adapter.method", method)
        if method in ("dora", "wora") and switch:
            methods.set_axis(
                ledger, "lora_decompose_output_axis", ledger.flag("lora_decompose_output_axis"), default=False
            )
    if kind in ("LOHA", "LOKR", "OFT_2"):
        ledger.drop("lora_decompose", f"without effect there beside {kind}")
    if kind == "OFT_2" and ledger.flag("dora_oft"):
        ledger.to("dora_oft", "adapter.method", method)
    ledger.drop("dora_oft", "without effect there: it goes with OFT_2")
    if ledger.text("lora_model_name"):
        ledger.to("lora_model_name", "adapter.start_from", ledger.text("lora_model_name"))


def _kronecker(ledger: Ledger, rank: tuple[str, int], alpha: tuple[str, float]) -> None:
    factor = ("lokr_decompose_factor", ledger.whole("lokr_decompose_factor"))
    whole = "lokr_full_matrix" if ledger.flag("lokr_full_matrix") else ""
    methods.set_kronecker(ledger, rank, alpha, factor, whole)
    if ledger.flag("lokr_decompose_both"):
        ledger.change("lokr_decompose_both", methods.SMALL_FACTOR)
    if ledger.flag("lokr_use_tucker"):
        ledger.change("lokr_use_tucker", methods.TUCKER)
    if ledger.flag("lokr_weight_decompose"):
        ledger.change("lokr_weight_decompose", methods.NO_MAGNITUDES)
        ledger.drop("lokr_dora_on_output", "goes with lokr_weight_decompose")
    ledger.drop("lokr_dora_on_output", "without effect there: lokr_weight_decompose is off")
    ledger.drop("lokr_vec_trick", "how it is computed, not what")


def _rotation(ledger: Ledger, kind: str, method: str, optimizer: str) -> None:
    key = "oft_block_size"
    methods.set_blocks(ledger, key, ledger.whole(key))
    ledger.drop("lora_rank", "not used: a rotation in blocks has no rank")
    if kind != "OFT_2":
        return
    ledger.to(key, "adapter.rotation.divisor", "nearest")
    ledger.to("peft_type", "adapter.rotation.map", "neumann_5")
    ledger.drop("lora_alpha", "not used: a rotation is not scaled")
    if ledger.flag("oft_block_share"):
        ledger.to("oft_block_share", "adapter.rotation.share", True)
    if not ledger.flag("oft_scaled"):
        ledger.to("oft_scaled", "adapter.step_size", "raw")
    else:
        ledger.to("oft_scaled", "adapter.step_size", "calibrated")
        if method == "doft" and optimizer != "prodigy":
            methods.shared_step(ledger, "dora_oft" if ledger.flag("dora_oft") else "peft_type")
    if ledger.flag("oft_coft"):
        ledger.drop("oft_coft", "no counterpart: the rotation is not constrained here")
    ledger.drop("coft_eps", "no counterpart: the rotation is not constrained here")


def _kernels(ledger: Ledger, denoiser: str) -> None:
    """Its rotation of convolutions with a kernel."""
    rotated = ledger.text("peft_type") == "OFT_2" and ledger.values["adapter.method"] in methods.ROTATIONS
    if rotated and denoiser == "unet" and ledger.values["targets.layers"] not in ("attention", "attention-mlp"):
        ledger.to("peft_type", "adapter.rotation.conv", "kernel")


def _layers(ledger: Ledger, family: str, denoiser: str) -> None:
    table = LAYERS["unet" if denoiser == "unet" else family]
    preset, key = ledger.text("layer_filter_preset"), "layer_filter"
    given = ",".join(part.strip() for part in ledger.text(key).split(",") if part.strip())
    by_filter = {patterns: (layers, out) for patterns, layers, out in table.values()}
    is_regex = bool(given) and ledger.flag(f"{key}_regex")
    if given in by_filter and (given or preset in ("full", "custom")) and is_regex == given.startswith("^"):
        layers, out = by_filter[given]
        ledger.to(key if given else "layer_filter_preset", "targets.layers", layers)
        if is_regex:
            ledger.drop(f"{key}_regex", "goes with the pattern")
        if given:
            ledger.drop("layer_filter_preset", f"without effect there: {key} decides")
    elif not given and preset in table:
        _, layers, out = table[preset]
        sentence = (
            f"Only OneTrainer's window turns the name {preset} into layers; its command line would have trained all "
            f"layers with this file. What the window means, {layers}, is taken."
        )
        ledger.change("layer_filter_preset", sentence, {"targets.layers": layers})
    elif given and not ledger.flag(f"{key}_regex"):
        out, layers = (), base.layer_patterns(ledger, (f"{denoiser}.*{part}*" for part in given.split(",")))
        ledger.to(key, "targets.layers", layers)
        ledger.drop("layer_filter_preset", f"without effect there: {key} decides")
    else:
        out, layers = (), base.nearest_layers(given or preset)
        sentence = (
            f"A regular expression cannot be used here; {layers} is taken. Compare the list of --check, and refine it "
            "with patterns in targets.layers."
        )
        ledger.change(key if given else "layer_filter_preset", sentence, {"targets.layers": layers})
        ledger.drop(f"{key}_regex", "goes with the pattern")
        if given:
            ledger.drop("layer_filter_preset", f"without effect there: {key} decides")
    if out and not ledger.values.get("targets.exclude"):
        ledger.set({"targets.exclude": list(out)}, key)
    elif out:
        ledger.set({"targets.exclude": [*ledger.values["targets.exclude"], *out]}, key)
