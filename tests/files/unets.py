"""Files that people have for Stable Diffusion 1 and SDXL, by what writes them: public key names on the tiny models."""

from collections.abc import Callable
from typing import Any

import torch

from tests.export import foreign
from tests.files.making import Sample, low_rank, lycoris, module, of_peft

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
Q, K, OUT, FF = f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn1.to_out.0", f"{BLOCK}.ff.net.2"
CONV, NORM, GROUP = "down_blocks.0.resnets.0.conv1", f"{BLOCK}.norm1", "down_blocks.0.resnets.0.norm1"
TEXT = "encoder.layers.0.self_attn.q_proj"
FC = "encoder.layers.1.mlp.fc1"
AB: Any = {"up": ".lora_B.weight", "down": ".lora_A.weight"}


def kohya(path: str, start: str = "lora_unet_") -> str:
    """kohya's spelling of a path."""
    return start + path.replace(".", "_")


def kohya_lora() -> Sample:
    """sd-scripts' networks.lora, with convolutions, and the text encoder."""
    sample = Sample("sd15", metadata={"ss_network_module": "networks.lora", "ss_network_dim": "3"})
    for path in (Q, K, OUT, FF, CONV):
        sample.put(f"unet.{path}", kohya(path), low_rank())
    return sample.put(f"text_encoder.{FC}", "lora_te_text_model_" + FC.replace(".", "_"), low_rank())


def kohya_oft() -> Sample:
    """sd-scripts' networks.oft."""
    sample = Sample("sd15", metadata={"ss_network_module": "networks.oft"})
    return sample.put(f"unet.{Q}", kohya(Q, "oft_unet_"), lambda base: foreign.oft_of_kohya(base, 4, 0.02))


def of_lycoris(algorithm: str, paths: tuple[str, ...] = (Q, FF, CONV), **options) -> Callable[[], Sample]:
    """LyCORIS in sd-scripts."""

    def make() -> Sample:
        sample = Sample("sd15", metadata={"ss_network_module": "lycoris.kohya"})
        for path in paths:
            sample.put(f"unet.{path}", kohya(path), lycoris(algorithm, **options))
        return sample

    return make


def lycoris_ia3() -> Sample:
    """IA3 of LyCORIS on inputs and on outputs; biases stay."""
    sample = Sample("sd15", metadata={"ss_network_module": "lycoris.kohya"})
    sample.put(f"unet.{K}", kohya(K), lycoris("ia3"))
    sample.put(f"unet.{CONV}", kohya(CONV), lycoris("ia3"))
    sample.put(f"unet.{GROUP.replace('norm1', 'conv2')}", kohya(GROUP.replace("norm1", "conv2")),
               lycoris("ia3", train_on_input=True))
    return sample.put(f"unet.{FF}", kohya(FF), lycoris("ia3", train_on_input=True))


def with_norms(sample: Sample) -> Sample:
    """LyCORIS' train_norm: differences of weights and biases of norms."""
    generator = torch.Generator().manual_seed(7)
    for path in (NORM, GROUP):
        norm = module("sd15", f"unet.{path}")
        w, b = (0.2 * torch.randn(len(norm.weight), generator=generator) for _ in "wb")
        sample.add(kohya(path), {".w_norm": w, ".b_norm": b})
        sample.weights[f"unet.{path}"], sample.biases[f"unet.{path}"] = norm.weight + w, norm.bias + b
    return sample


def lycoris_norms() -> Sample:
    """A LoCon with train_norm."""
    return with_norms(of_lycoris("locon", lora_dim=3, alpha=2)())


def lycoris_standalone() -> Sample:
    """SimpleTuner's and LyCORIS' own files: lycoris_, whole paths."""
    sample = Sample("sd15")
    return sample.put(f"unet.{Q}", kohya(Q, "lycoris_"), lycoris("lokr", lora_dim=2, alpha=1, factor=2))


def comfyui_saved() -> Sample:
    """ComfyUI's "Extract and Save Lora": generic names, full differences of norms, differences of biases."""
    sample, generator = Sample("sd15"), torch.Generator().manual_seed(8)
    places = {Q: "input_blocks.4.1.transformer_blocks.0.attn1.to_q", CONV: "input_blocks.1.0.in_layers.2"}
    for path, place in places.items():
        sample.put(f"unet.{path}", f"diffusion_model.{place}", low_rank(alpha=None))
    conv = module("sd15", f"unet.{CONV}")
    bias = 0.1 * torch.randn(len(conv.bias), generator=generator)
    sample.add(f"diffusion_model.{places[CONV]}", {".diff_b": bias})
    sample.biases[f"unet.{CONV}"] = conv.bias + bias
    norm, found = module("sd15", f"unet.{GROUP}"), 0.1 * torch.randn(8, generator=generator)
    sample.add("diffusion_model.input_blocks.1.0.in_layers.0", {".diff": found, ".diff_b": 2 * found})
    sample.weights[f"unet.{GROUP}"], sample.biases[f"unet.{GROUP}"] = norm.weight + found, norm.bias + 2 * found
    return sample.put(f"text_encoder.{FC}", f"text_encoders.clip_l.transformer.text_model.{FC}", low_rank(alpha=None))


def diffusers_processors(start: str, middle: str = ".processor") -> Callable[[], Sample]:
    """diffusers before 0.18: attention processors, with or without the network's name."""

    def make() -> Sample:
        sample = Sample("sd15")
        for path, part in ((Q, "to_q"), (OUT, "to_out")):
            name = f"{start}{BLOCK}.attn1{middle}.{part}"
            sample.put(f"unet.{path}", name, low_rank(alpha=None, up="_lora.up.weight", down="_lora.down.weight"))
        return sample

    return make


def diffusers_layers() -> Sample:
    """diffusers 0.18 to 0.21: `.lora.up.weight`, and `.lora_linear_layer.` in the text encoder."""
    sample = Sample("sd15")
    sample.put(f"unet.{Q}", f"unet.{Q}", low_rank(alpha=None, up=".lora.up.weight", down=".lora.down.weight"))
    linear = low_rank(alpha=None, up=".lora_linear_layer.up.weight", down=".lora_linear_layer.down.weight")
    sample.put(f"text_encoder.{TEXT}", f"text_encoder.text_model.{TEXT}", linear)
    return sample.put(f"text_encoder.{FC}", f"text_encoder.text_model.{FC}", linear)


def diffusers_old_text() -> Sample:
    """The text encoder of diffusers 0.17: `self_attn.to_q_lora.up.weight` for q_proj."""
    sample, old = Sample("sd15"), low_rank(alpha=None, up="_lora.up.weight", down="_lora.down.weight")
    for part, old_part in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
        name = f"text_encoder.text_model.encoder.layers.0.self_attn.{old_part}"
        sample.put(f"text_encoder.encoder.layers.0.self_attn.{part}", name, old)
    return sample


def diffusers_peft(middle: str = "") -> Callable[[], Sample]:
    """diffusers with peft; `middle`: an adapter's name in the keys, as in a raw state_dict."""

    def make() -> Sample:
        sample = Sample("sd15")
        layers = low_rank(alpha=None, up=f".lora_B{middle}.weight", down=f".lora_A{middle}.weight")
        for path in (Q, OUT, CONV):
            sample.put(f"unet.{path}", f"unet.{path}", layers)
        return sample.put(f"text_encoder.{TEXT}", f"text_encoder.text_model.{TEXT}", layers)

    return make


def two_adapters() -> Sample:
    """A raw state_dict with two of peft's adapters."""
    sample = diffusers_peft(".default_0")()
    sample.tensors |= diffusers_peft(".default_1")().tensors
    sample.weights, sample.refused = {}, "default_0 and default_1"
    return sample


def peft(make_config: Callable[[], object], network: str = "unet", start: str = "base_model.model.",
         **save) -> Callable[[], Sample]:
    """peft's own save_pretrained; `start` in place of what its names begin with."""

    def make() -> Sample:
        return of_peft("sd15", network, make_config(), save=save).renamed(("base_model.model.", start))

    return make


def lora_config(**options):
    """peft's LoRA of a few layers."""
    from peft import LoraConfig

    return LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": [Q, FF, CONV], **options})


def of_kind(kind: str, **options) -> Callable[[], object]:
    """Another config of peft."""

    def make():
        import peft

        return getattr(peft, kind)(**{"target_modules": [Q, FF], **options})

    return make


def wora() -> Sample:
    """peft's pull request 2872: `m (beta W + alpha s B A) / ||.||` per output, alpha and beta single numbers."""
    sample = Sample("sd15", config={"peft_type": "LORA", "r": 3, "lora_alpha": 6, "use_wora": True})
    for number, (path, alpha, beta) in enumerate([(Q, 1.4, 0.7), (FF, 0.6, -0.8), (CONV, -1.2, 1.1)]):
        base = module("sd15", f"unet.{path}")
        case = foreign.lora_of_kohya(base, 3, None, number)
        up, down = case.tensors[".lora_up.weight"], case.tensors[".lora_down.weight"]
        W, change = base.weight.double(), 2 * (up.flatten(1) @ down.flatten(1)).reshape(base.weight.shape).double()
        V = beta * W + alpha * change
        m = torch.rand(len(W), generator=torch.Generator().manual_seed(number)) + 0.5
        sides = [1] * (W.dim() - 1)
        length = V.flatten(1).norm(dim=1)
        sample.weights[f"unet.{path}"] = ((m / length).view(-1, *sides) * V).float()
        stored = m if W.dim() == 2 else m.view(1, -1, 1, 1)
        sample.add(f"base_model.model.{path}", {
            ".lora_A.weight": down, ".lora_B.weight": up, ".lora_magnitude_vector": stored,
            ".lora_wora_alpha": torch.tensor(alpha), ".lora_wora_beta": torch.tensor(beta),
        })
    return sample


def onetrainer_bundle() -> Sample:
    """OneTrainer with embeddings in the file."""
    sample = kohya_lora()
    sample.metadata = {"ot_branch": "master"}
    sample.tensors |= {"bundle_emb.<cat>.clip_l": torch.ones(2, 16), "bundle_emb.dog.clip_l": torch.ones(1, 16)}
    sample.refused = "bundle_emb.<cat>.clip_l"
    return sample


def onetrainer_dora(axis: str) -> Callable[[], Sample]:
    """OneTrainer's DoRA along either axis."""

    def make() -> Sample:
        sample = Sample("sd15", metadata={"ot_branch": "master"})
        for path in (Q, CONV):
            sample.put(f"unet.{path}", kohya(path), lambda base: foreign.dora_of_onetrainer(base, axis))
        return sample

    return make


def onetrainer_oft() -> Sample:
    """OneTrainer's OFT."""
    sample = Sample("sd15", metadata={"ot_branch": "master"})
    return sample.put(f"unet.{Q}", kohya(Q), lambda base: foreign.of_onetrainer(base, 4, True))


# -- SDXL -------------------------------------------------------------------------------------------------------------

XL_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
XL_ORIGINAL = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"


def sdxl_kohya(start: str, separator: str) -> Callable[[], Sample]:
    """The original checkpoint's paths: kohya, OneTrainer's `unet.` and `ORIGINAL`, ComfyUI."""

    def make() -> Sample:
        sample = Sample("sdxl")
        for path, place in ((XL_Q, XL_ORIGINAL), ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op")):
            sample.put(f"unet.{path}", start + place.replace(".", separator), low_rank())
        return sample

    return make


def sdxl_lcm() -> Sample:
    """LCM and Hyper-SD: kohya's prefix with diffusers' paths, time embeddings among them."""
    sample = Sample("sdxl")
    for path in (XL_Q, "time_embedding.linear_1", "conv_in"):
        sample.put(f"unet.{path}", kohya(path), low_rank(alpha=3))
    return sample


def sdxl_texts(first: str, second: str, separator: str = ".") -> Callable[[], Sample]:
    """Both text encoders; ai-toolkit writes `lora_te1.` and peft's suffixes."""

    def make() -> Sample:
        sample, ab = Sample("sdxl"), low_rank(alpha=None, **AB)
        sample.put(f"unet.{XL_Q}", f"unet.{XL_Q}", ab)
        sample.put(f"text_encoder.{FC}", first + f"text_model.{FC}".replace(".", separator), ab)
        return sample.put(f"text_encoder_2.text_model.{FC}", second + f"text_model.{FC}".replace(".", separator), ab)

    return make


SAMPLES: dict[str, Callable[[], Sample]] = {
    "kohya LoRA": kohya_lora,
    "kohya OFT": kohya_oft,
    "LyCORIS LoCon Tucker": of_lycoris("locon", (CONV,), lora_dim=2, alpha=1, use_tucker=True),
    "LyCORIS LoHa": of_lycoris("loha", lora_dim=2, alpha=1),
    "LyCORIS LoHa Tucker": of_lycoris("loha", (CONV,), lora_dim=2, alpha=1, use_tucker=True),
    "LyCORIS LoKr": of_lycoris("lokr", lora_dim=2, alpha=1, factor=2),
    "LyCORIS LoKr whole": of_lycoris("lokr", lora_dim=100, alpha=1, factor=2),
    "LyCORIS LoKr Tucker": of_lycoris("lokr", (CONV,), lora_dim=2, alpha=1, factor=2, use_tucker=True),
    "LyCORIS LoKr Tucker DoRA": of_lycoris(
        "lokr", (CONV,), lora_dim=2, alpha=1, factor=2, use_tucker=True, weight_decompose=True),
    "LyCORIS LoKr both Tucker": of_lycoris(
        "lokr", (CONV,), lora_dim=1, alpha=2, factor=2, use_tucker=True, decompose_both=True),
    "LyCORIS full": of_lycoris("full"),
    "LyCORIS Diag-OFT": of_lycoris("diag-oft", lora_dim=4, constraint=0.02),
    "LyCORIS Diag-OFT rescaled": of_lycoris("diag-oft", lora_dim=4, constraint=0, rescaled=True),
    "LyCORIS BOFT": of_lycoris("boft", lora_dim=4, constraint=0),
    "LyCORIS BOFT rescaled": of_lycoris("boft", lora_dim=4, constraint=0.05, rescaled=True),
    "LyCORIS GLoRA": of_lycoris("glora", lora_dim=2, alpha=1),
    "LyCORIS IA3": lycoris_ia3,
    "LyCORIS norms": lycoris_norms,
    "LyCORIS alone": lycoris_standalone,
    "ComfyUI saved": comfyui_saved,
    "diffusers processors": diffusers_processors("unet."),
    "diffusers processors, bare": diffusers_processors(""),
    "diffusers layers of processors": diffusers_processors("unet.", ""),
    "diffusers 0.20": diffusers_layers,
    "diffusers 0.17 text encoder": diffusers_old_text,
    "diffusers peft": diffusers_peft(),
    "peft default name": diffusers_peft(".default"),
    "peft default_0": diffusers_peft(".default_0"),
    "peft own name": diffusers_peft(".my-style"),
    "peft two adapters": two_adapters,
    "peft LoRA": peft(lora_config),
    "peft LoRA, unet.base_model": peft(lora_config, start="unet.base_model.model."),
    "peft DoRA": peft(lambda: lora_config(use_dora=True)),
    "peft lora_bias": peft(lambda: lora_config(lora_bias=True, target_modules=[FF, CONV])),
    "peft modules_to_save": peft(lambda: lora_config(modules_to_save=["conv_in", GROUP])),
    "peft bias lora_only": peft(lambda: lora_config(bias="lora_only")),
    "peft text encoder": peft(lambda: lora_config(target_modules=[TEXT, FC]), "text_encoder"),
    "peft embedding": peft(
        lambda: lora_config(target_modules=["token_embedding", FC]), "text_encoder", save_embedding_layers=False),
    "peft AdaLoRA": peft(of_kind("AdaLoraConfig", init_r=4, target_r=2, lora_alpha=6, total_step=10)),
    "peft IA3": peft(of_kind("IA3Config", target_modules=[Q, FF, CONV], feedforward_modules=[FF])),
    "peft LoHa": peft(of_kind("LoHaConfig", r=2, alpha=3)),
    "peft LoKr": peft(of_kind("LoKrConfig", r=2, alpha=3)),
    "peft OFT": peft(of_kind("OFTConfig", oft_block_size=4)),
    "peft DeLoRA": peft(of_kind("DeloraConfig", r=3)),
    "peft VeRA": peft(of_kind("VeraConfig", r=4)),
    "peft WoRA": wora,
    "OneTrainer embeddings": onetrainer_bundle,
    "OneTrainer DoRA input": onetrainer_dora("input"),
    "OneTrainer DoRA output": onetrainer_dora("output"),
    "OneTrainer OFT": onetrainer_oft,
    "SDXL kohya": sdxl_kohya("lora_unet_", "_"),
    "SDXL OneTrainer unet.": sdxl_kohya("unet.", "."),
    "SDXL OneTrainer original": sdxl_kohya("", "."),
    "SDXL ComfyUI": sdxl_kohya("diffusion_model.", "."),
    "SDXL LCM": sdxl_lcm,
    "SDXL diffusers texts": sdxl_texts("text_encoder.", "text_encoder_2."),
    "SDXL ai-toolkit texts": sdxl_texts("lora_te1.", "lora_te2."),
    "SDXL kohya texts": sdxl_texts("lora_te1_", "lora_te2_", "_"),
    "SDXL peft texts": sdxl_texts("text_encoder.base_model.model.", "text_encoder_2.base_model.model."),
}
