"""Foreign files on whole models: names of every tool, fused and exchanged layers, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file

from modules.families import load_class
from modules.files import forms, opening, reading, writer
from modules.preset.schema import Base
from tests import tiny_sd15
from tests.export import foreign
from tests.families import single_file_flux, single_file_sd3

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    folder = tiny_sd15.make_folder(tmp_path_factory.mktemp("sd15"))
    return load_class("sd15").load(Base(path=str(folder)), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    folder, _ = single_file_flux.make_pair(tmp_path_factory.mktemp("flux"))
    return load_class("flux").load(Base(path=str(folder)), torch.device("cpu"), torch.float32)


def module_of(model, name):
    network, _, path = name.partition(".")
    return model.networks[network].get_submodule(path)


def written(path, cases, metadata=None):
    save_file(foreign.named(cases), path, metadata)
    return opening.read(path)


def assert_changes(found, wanted):
    """`wanted`: adapted weights in the layers' own shapes, by full name."""
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        change = found[name]
        result = change.layer.native(forms.applied(change.terms, change.layer, change.layer.dense()))
        assert (result - weight).abs().max() <= 1e-5 * weight.abs().max(), name


@pytest.mark.parametrize("start, joined", [
    ("lora_unet_", True), ("unet.", False), ("lycoris_", True), ("base_model.model.", False),
    ("diffusion_model.", False),
])
def test_names_of_every_tool(tmp_path, unet, start, joined):
    layers = {f"{BLOCK}.attn1.to_q": f"{BLOCK}.attn1.to_q", "conv_in": "conv_in"}
    cases = {path: foreign.lora_of_kohya(module_of(unet, f"unet.{path}")) for path in layers}
    named = {start + (path.replace(".", "_") if joined else path): case for path, case in cases.items()}
    file = written(tmp_path / "a.safetensors", named)
    assert_changes(reading.changes(file, unet), {f"unet.{path}": case.weight for path, case in cases.items()})


def test_original_names_and_text_encoders(tmp_path, unet):
    to_q, text = f"unet.{BLOCK}.attn1.to_q", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    text = text if text in reading_names(unet) else text.replace("text_model.", "")
    cases = {to_q: foreign.lora_of_kohya(module_of(unet, to_q)), text: foreign.lora_of_kohya(module_of(unet, text))}
    file = written(tmp_path / "a.safetensors", {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": cases[to_q],
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": cases[text],
    })
    assert_changes(reading.changes(file, unet), {name: case.weight for name, case in cases.items()})


def reading_names(model):
    return {f"{network}.{name}" for network, module in model.networks.items() for name, _ in module.named_modules()}


# -- fused layers -----------------------------------------------------------------------------------------------------

QKV = [f"transformer.transformer_blocks.0.attn.to_{letter}" for letter in "qkv"]
SINGLE = "transformer.single_transformer_blocks.0"
LINEAR1 = [*(f"{SINGLE}.attn.to_{letter}" for letter in "qkv"), f"{SINGLE}.proj_mlp"]
FUSED = {"lora_unet_double_blocks_0_img_attn_qkv": QKV, "diffusion_model.single_blocks.0.linear1": LINEAR1}


def makers(size):
    return {
        "lora": foreign.lora_of_kohya,
        "input": lambda base: foreign.dora_of_onetrainer(base, "input"),
        "output": lambda base: foreign.dora_of_onetrainer(base, "output"),
        "input rotation": lambda base: foreign.of_onetrainer(base, 4, True, "log"),
        "output rotation": lambda base: foreign.oft_of_kohya(base, base.out_features // 4, 1e3),
        "rotation over edges": lambda base: foreign.oft_of_kohya(base, 2, 1e3),
        "loha": lambda base: foreign.of_lycoris("loha", base, {"lora_dim": 2, "alpha": 1}),
        "full": lambda base: foreign.of_lycoris("full", base, {}),
    }[size]


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize(
    "kind", ["lora", "input", "output", "input rotation", "output rotation", "rotation over edges", "loha", "full"]
)
def test_fused_layers_are_taken_apart(tmp_path, transformer, name, kind):
    parts = [module_of(transformer, layer) for layer in FUSED[name]]
    W = torch.cat([part.weight for part in parts])
    fused = torch.nn.Linear(W.shape[1], W.shape[0]).requires_grad_(False)
    fused.weight.copy_(W)
    case = makers(kind)(fused)
    case.tensors.pop(".diff_b", None)
    file = written(tmp_path / "a.safetensors", {name: case})
    sizes = [len(part.weight) for part in parts]
    wanted = dict(zip(FUSED[name], case.weight.split(sizes), strict=True))
    assert_changes(reading.changes(file, transformer), wanted)


def test_sd3s_fused_layers(tmp_path):
    folder, _ = single_file_sd3.make_pair(tmp_path, False)
    model = load_class("sd3").load(Base(path=str(folder)), torch.device("cpu"), torch.float32)
    layers = [f"transformer.transformer_blocks.0.attn.add_{letter}_proj" for letter in "qkv"]
    parts = [module_of(model, layer) for layer in layers]
    W = torch.cat([part.weight for part in parts])
    fused = torch.nn.Linear(W.shape[1], W.shape[0]).requires_grad_(False)
    fused.weight.copy_(W)
    case = foreign.dora_of_onetrainer(fused, "input")
    file = written(tmp_path / "a.safetensors", {"lora_unet_joint_blocks_0_context_block_attn_qkv": case})
    assert_changes(reading.changes(file, model), dict(zip(layers, case.weight.chunk(3), strict=True)))


@pytest.mark.parametrize("kind", ["lora", "input", "output", "output rotation", "full"])
def test_exchanged_halves(tmp_path, transformer, kind):
    layer = module_of(transformer, "transformer.norm_out.linear")
    base = torch.nn.Linear(layer.in_features, layer.out_features).requires_grad_(False)
    first, second = layer.weight.chunk(2)
    base.weight.copy_(torch.cat([second, first]))
    case = makers(kind)(base)
    bias = case.tensors.get(".diff_b")
    file = written(tmp_path / "a.safetensors", {"lora_unet_final_layer_adaLN_modulation_1": case})
    found = reading.changes(file, transformer)
    first, second = case.weight.chunk(2)
    assert_changes(found, {"transformer.norm_out.linear": torch.cat([second, first])})
    change = found["transformer.norm_out.linear"]
    assert change.given is None
    if bias is not None:
        assert torch.equal(change.terms.bias, torch.cat(bias.chunk(2)[::-1]))


# -- our own files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["original", "adapted"])
def test_compensation_of_our_own_files_is_undone(tmp_path, unet, norm):
    """Written for ComfyUI's norm of the base, a file still means what was trained."""
    name = f"unet.{BLOCK}.attn1.to_q"
    layer = module_of(unet, name)
    case = foreign.dora_of_onetrainer(layer, "output")
    if norm == "original":
        pair = foreign.Case(layer, {k: t for k, t in case.tensors.items() if k != ".dora_scale"}, case.weight)
        V = layer.weight + (2.0 / 3) * pair.tensors[".lora_up.weight"] @ pair.tensors[".lora_down.weight"]
        ratio = (layer.weight.norm(dim=1) / V.norm(dim=1))[:, None]
        case.tensors[".dora_scale"] = case.tensors[".dora_scale"] * ratio
    file = written(tmp_path / "a.safetensors", {"lora_unet_" + name[5:].replace(".", "_"): case},
                   {"gimbal.comfyui_norm": norm, "gimbal.host": "comfyui"})
    assert reading.place(file, unet).writer == writer.OURS
    assert_changes(reading.changes(file, unet), {name: case.weight})


# -- refusals ---------------------------------------------------------------------------------------------------------


def q_case(unet):
    return {"lora_unet_" + f"{BLOCK}.attn1.to_q".replace(".", "_"): foreign.lora_of_kohya(
        module_of(unet, f"unet.{BLOCK}.attn1.to_q"))}


def test_unknown_keys_and_names(tmp_path, unet):
    case = q_case(unet)
    nowhere, strange = foreign.lora_of_kohya(foreign.linear()), foreign.lora_of_kohya(foreign.linear())
    strange.tensors = {".is.this": torch.ones(1)}
    file = written(tmp_path / "a.safetensors", case | {"lora_unet_nowhere": nowhere, "what": strange})
    said = "what.is.this: no known adapter format.*lora_unet_nowhere: the model has no layers"
    with pytest.raises(ValueError, match=said):
        reading.changes(file, unet)
    assert len(reading.changes(file, unet, skip=True)) == 1


def test_another_familys_file(tmp_path, unet, transformer):
    file = written(tmp_path / "a.safetensors", q_case(unet))
    with pytest.raises(ValueError, match="is for a Stable Diffusion 1 or 2 model.*the base is a FLUX.1 model"):
        reading.changes(file, transformer)


def test_another_shape(tmp_path, unet):
    name = next(iter(q_case(unet)))
    file = written(tmp_path / "a.safetensors", {name: foreign.lora_of_kohya(foreign.linear())})
    with pytest.raises(ValueError, match="a.safetensors: .*12 x 16.*the file is for another model"):
        reading.changes(file, unet)


def test_two_names_for_one_layer(tmp_path, unet):
    case = q_case(unet)
    file = written(tmp_path / "a.safetensors", case | {f"unet.{BLOCK}.attn1.to_q": next(iter(case.values()))})
    with pytest.raises(ValueError, match="are both the layer"):
        reading.changes(file, unet)
