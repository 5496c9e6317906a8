"""What inspect says of each program, by the faults of files.md 13 to 15, and which models it names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.files import opening
from modules.tools import inspect_file
from modules.tools.inspect_file import ALL, NOTHING, PART, UNJUDGED

KOHYA = (".lora_up.weight", ".lora_down.weight")
PEFT = (".lora_B.weight", ".lora_A.weight")
UNET = "down_blocks.1.attentions.0.transformer_blocks.{}.attn1.to_q"
FLUX = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_out")


def pair(name, ends=KOHYA, alpha=True, out=8, inputs=8):
    """One layer's tensors."""
    found = {f"{name}{ends[0]}": torch.randn(out, 2), f"{name}{ends[1]}": torch.randn(2, inputs)}
    return found | ({f"{name}.alpha": torch.tensor(1.0)} if alpha else {})


def inspected(folder: Path, *layers, metadata=None):
    """The file with these tensors."""
    path = folder / "file.safetensors"
    save_file({key: tensor for layer in layers for key, tensor in layer.items()}, path, metadata)
    return inspect_file.inspect(opening.read(path))


def sdxl(body=UNET):
    return [body.format(number) for number in (0, 1)]


def loads(found):
    return {host: statement.loads for host, statement in found.hosts.items()}


# -- files.md 13: it said that programs load all of what they load nothing or a part of ------------------------------


def test_an_embedding_beside_the_layers_ends_diffusers_loading(tmp_path):
    layers = [pair(f"unet.{path}", PEFT, False) for path in sdxl()]
    found = inspected(tmp_path, *layers, {"bundle_emb.word.clip_l": torch.randn(2, 768)})
    assert found.hosts["diffusers"].loads == NOTHING and "Invalid LoRA checkpoint" in found.hosts["diffusers"].raises


def test_default_in_pefts_names_is_read_by_comfyui_and_not_by_diffusers(tmp_path):
    ends = (".lora_B.default.weight", ".lora_A.default.weight")
    found = inspected(tmp_path, *(pair(f"transformer.{path}", ends, False) for path in FLUX))
    assert loads(found)["comfyui"] == ALL
    assert found.hosts["diffusers"].loads == NOTHING and not found.hosts["diffusers"].raises


@pytest.mark.parametrize("start, paths", [("transformer.base_model.model.", FLUX),
                                          ("unet.base_model.model.", sdxl())])
def test_pefts_first_words_inside_of_a_name(tmp_path, start, paths):
    found = inspected(tmp_path, *(pair(start + path, PEFT, False) for path in paths))
    assert loads(found)["comfyui"] == NOTHING
    assert found.hosts["diffusers"].loads == NOTHING and found.hosts["diffusers"].raises


def test_original_paths_behind_a_networks_name(tmp_path):
    found = inspected(tmp_path, *(pair(f"unet.input_blocks.4.1.transformer_blocks.{n}.attn1.to_q") for n in (0, 1)))
    assert found.model == "an SDXL model"
    assert loads(found)["comfyui"] == NOTHING


def test_diffusers_drops_the_t5_of_a_kohya_file(tmp_path):
    t5 = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    found = inspected(tmp_path, pair("lora_unet_double_blocks_0_img_mlp_0"), pair(t5),
                      pair("lora_te1_text_model_encoder_layers_0_mlp_fc1"))
    assert found.hosts["diffusers"].loads == PART and found.hosts["diffusers"].dropped_layers == [t5]
    assert loads(found)["comfyui"] == ALL
    assert "drops 1 layer" in found.text() and t5 in found.text()


def test_biases_of_pairs_are_dropped_by_comfyui(tmp_path):
    layers = [pair(f"transformer.{path}", PEFT, False) for path in FLUX]
    biases = {f"transformer.{path}.lora_B.bias": torch.randn(8) for path in FLUX}
    found = inspected(tmp_path, *layers, biases)
    assert found.hosts["comfyui"].loads == PART and set(found.hosts["comfyui"].dropped) == set(biases)


def test_keys_of_nobody_are_a_part_that_is_not_read(tmp_path):
    strangers = {f"some.key.{number}": torch.randn(2) for number in range(13)}
    found = inspected(tmp_path, *(pair(f"lora_unet_{path.replace('.', '_')}") for path in sdxl()), strangers)
    assert found.hosts["comfyui"].loads == PART and len(found.hosts["comfyui"].dropped) == 13
    assert found.hosts["diffusers"].loads == NOTHING and found.hosts["diffusers"].raises
    assert found.hosts["forge"].loads == NOTHING and "more than 12" in found.hosts["forge"].why


def test_a_pair_without_its_half_stops_comfyui(tmp_path):
    whole, half = (pair(f"lora_unet_{path.replace('.', '_')}") for path in sdxl())
    half = {key: tensor for key, tensor in half.items() if "lora_down" not in key}
    assert "KeyError" in inspected(tmp_path, whole, half).hosts["comfyui"].raises


# -- files.md 14: it said that programs refuse what they load -------------------------------------------------------


def test_alpha_beside_pefts_names_is_read_by_flux_loader_alone(tmp_path):
    found = inspected(tmp_path, *(pair(f"transformer.{path}", PEFT) for path in FLUX))
    assert found.hosts["diffusers"].lines() == ["loads all of it, exactly"]
    found = inspected(tmp_path, *(pair(f"unet.{path}", PEFT) for path in sdxl()))
    assert found.hosts["diffusers"].loads == NOTHING and found.hosts["diffusers"].raises


def test_first_adapters_of_diffusers_are_read_by_comfyui(tmp_path):
    ends = ("_lora.up.weight", "_lora.down.weight")
    found = inspected(tmp_path, *(pair(f"unet.{path.replace('to_q', 'processor.to_q')}", ends, False)
                                  for path in sdxl()))
    assert loads(found)["comfyui"] == ALL and loads(found)["diffusers"] == ALL


def test_onetrainers_names_of_flux_are_read_by_diffusers(tmp_path):
    names = [f"lora_transformer_{blocks}_0_attn_to_q" for blocks in ("transformer_blocks", "single_transformer_blocks")]
    assert loads(inspected(tmp_path, *map(pair, names)))["diffusers"] == ALL
    rest = "lora_transformer_single_transformer_blocks_0_proj_out"  # its conversion takes this for the whole block
    assert "KeyError" in inspected(tmp_path, *map(pair, (*names, rest))).hosts["diffusers"].raises


# -- files.md 15: models that are none of ours are named, and not judged --------------------------------------------

STRANGERS = {
    "Stable Cascade": ("lora_prior_te_text_model_encoder_layers_0_self_attn_q_proj", 8, 8),
    "Lumina 2": ("diffusion_model.layers.0.attention.qkv", 3840, 2304),
    "Wan 2.1 or 2.2": ("diffusion_model.blocks.0.self_attn.q", 8, 8),
    "HunyuanVideo": ("transformer.double_blocks.0.img_attn_qkv", 24, 8),
    "Cosmos-Predict2 14B": ("lora_unet_blocks_28_self_attn_q_proj", 8, 8),
    "AuraFlow": ("transformer.joint_transformer_blocks.0.attn.to_q", 8, 8),
    "HiDream": ("diffusion_model.double_stream_blocks.0.block.attn1.to_q", 8, 8),
    "": ("diffusion_model.tower.0.mixer", 8, 8),
}


@pytest.mark.parametrize("title", STRANGERS)
def test_models_that_are_none_of_ours_are_named_and_not_judged(tmp_path, title):
    name, out, inputs = STRANGERS[title]
    found = inspected(tmp_path, pair(name, KOHYA if name.startswith("lora") else PEFT, False, out, inputs))
    assert found.model == title and not found.families
    assert set(loads(found).values()) == {UNJUDGED}


def test_metadata_tell_models_apart_whose_layers_have_the_same_names(tmp_path):
    layer = pair("lora_unet_double_blocks_0_img_attn_proj")
    assert inspected(tmp_path, layer).model == "a Chroma model or a FLUX.1 model or a FLUX.2 model"
    assert inspected(tmp_path, layer, metadata={"modelspec.architecture": "chroma/lora"}).model == "a Chroma model"
    assert inspected(tmp_path, layer, metadata={"ss_base_model_version": "flux1"}).model == "a FLUX.1 model"
    assert inspected(tmp_path, layer, pair("lora_unet_double_blocks_0_img_mod_lin")).model == "a FLUX.1 model"
    own = pair("lora_unet_distilled_guidance_layer_layers_0_in_layer")
    assert inspected(tmp_path, layer, own).model == "a Chroma model"
    layer = pair("transformer.transformer_blocks.0.attn.to_q", PEFT)
    for said in ("Qwen-Image/lora", "qwen_image", "qwen-image-2512"):
        assert inspected(tmp_path, layer, metadata={"modelspec.architecture": said}).model == "a Qwen-Image model"
    later = inspected(tmp_path, layer, metadata={"modelspec.architecture": "Qwen-Image-2.1/lora"})
    assert later.model == "a Qwen-Image 2.1 model" and later.hosts["comfyui"].loads == UNJUDGED
    layer = pair("lora_unet_double_blocks_0_img_attn_proj")
    for said in ("Flux.2-klein-4b/lora", "flux2", "flux2_klein_9b"):
        assert inspected(tmp_path, layer, metadata={"modelspec.architecture": said}).model == "a FLUX.2 model"


@pytest.mark.parametrize("name, out, inputs, model", [
    ("diffusion_model.single_blocks.0.linear1", 9 * 16, 16, "a FLUX.2 model"),
    ("diffusion_model.single_blocks.0.linear1", 7 * 16, 16, "a Chroma model or a FLUX.1 model"),
    ("lora_unet_double_blocks_0_txt_mlp_0", 6 * 16, 16, "a FLUX.2 model"),
    ("lora_unet_double_blocks_0_txt_mlp_0", 4 * 16, 16, "a Chroma model or a FLUX.1 model"),
    ("transformer.transformer_blocks.0.ff.linear_in", 6 * 16, 16, "a FLUX.2 model"),
    ("diffusion_model.double_blocks.0.img_attn.proj", 4096, 4096, "a FLUX.2 model"),
    ("diffusion_model.double_stream_modulation_img.lin", 48, 8, "a FLUX.2 model"),
    ("transformer.transformer_blocks.3.attn.to_q", 4096, 4096, "a FLUX.2 model or a Qwen-Image 2.1 model"),
    ("transformer.transformer_blocks.20.attn.to_q", 4096, 4096, "a Qwen-Image 2.1 model"),
    ("diffusion_model.transformer_blocks.20.img_mlp.gate_up", 24, 8, "a Qwen-Image 2.1 model"),
    ("transformer.transformer_blocks.10.attn.to_q", 3072, 3072,
     "a Chroma model or a FLUX.1 model or a Qwen-Image model"),
    ("transformer.transformer_blocks.10.attn.to_q", 2432, 2432, "an SD3 model"),
    ("transformer.transformer_blocks.30.attn.to_q", 3072, 3072, "a Qwen-Image model"),
    ("diffusion_model.transformer_blocks.0.img_mod.1", 48, 8, "a Qwen-Image model"),
    ("transformer.transformer_blocks.9.attn.to_q", 6144, 6144, "a Krea 2 model"),
    ("transformer.transformer_blocks.3.attn.to_q", 6144, 6144, "a FLUX.2 model or a Krea 2 model"),
    ("diffusion_model.blocks.0.mlp.gate", 24, 8, "a Krea 2 model"),
    ("lora_unet_txtfusion_refiner_blocks_1_attn_wo", 8, 8, "a Krea 2 model"),
    ("transformer.transformer_blocks.0.attn.to_gate", 8, 8, "a Krea 2 model"),
    ("text_encoders.qwen3vl_4b.transformer.model.layers.0.self_attn.q_proj", 8, 8, "a Krea 2 model"),
    ("text_encoders.qwen25_7b.transformer.model.layers.0.self_attn.q_proj", 8, 8, "a Qwen-Image model"),
    ("lora_unet_blocks_27_self_attn_q_proj", 8, 8, "an Anima model"),
    ("diffusion_model.llm_adapter.blocks.0.mlp.0", 8, 8, "an Anima model"),
    ("transformer.transformer_blocks.3.attn2.to_out.0", 2048, 2048, "an Anima model"),
    ("transformer.transformer_blocks.3.attn2.to_k", 2048, 1024, "an Anima model"),
    ("text_encoders.qwen3_06b.transformer.model.layers.0.self_attn.q_proj", 8, 8, "an Anima model"),
    ("transformer.transformer_blocks.0.img_mlp.gate_layer", 24, 8, "a Qwen-Image 2.1 model"),
])
def test_sizes_tell_models_apart_whose_layers_have_the_same_names(tmp_path, name, out, inputs, model):
    ends = KOHYA if name.startswith("lora") else PEFT
    assert inspected(tmp_path, pair(name, ends, False, out, inputs)).model == model


# -- what the programs' own loaders showed since ----------------------------------------------------------------------


def test_sd_scripts_asks_alpha_of_every_layer_of_a_transformer(tmp_path):
    names = [f"lora_unet_double_blocks_{number}_img_attn_proj" for number in (0, 1)]
    facts = {"ss_network_module": "networks", "ss_base_model_version": "flux1"}
    found = inspected(tmp_path, pair(names[0]), pair(names[1], alpha=False), metadata=facts)
    assert found.hosts["sd_scripts"].loads == NOTHING and names[1] in found.hosts["sd_scripts"].raises
    unet = [pair(f"lora_unet_{path.replace('.', '_')}", alpha=False) for path in sdxl()]
    assert inspected(tmp_path, *unet).hosts["sd_scripts"].loads == ALL


@pytest.mark.parametrize("changed, loads, reason", [
    ({}, ALL, ""), ({"alpha": None}, NOTHING, "no alpha"), ({"oft_blocks": torch.zeros(4, 80, 80)}, NOTHING, "size")])
def test_sd_scripts_reads_its_rotations_by_their_own_module(tmp_path, changed, loads, reason):
    names = [f"oft_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_{part}" for part in "qk"]
    layers = {f"{name}.{end}": tensor for name in names
              for end, tensor in (("alpha", torch.tensor(1e-3)), ("oft_blocks", torch.zeros(8, 80, 80)))}
    layers |= {f"{name}.{end}": tensor for end, tensor in changed.items() for name in names[1:] if tensor is not None}
    layers = {key: tensor for key, tensor in layers.items() if not ("alpha" in changed and key.endswith("alpha"))}
    found = inspected(tmp_path, layers).hosts["sd_scripts"]
    assert found.loads == loads and reason in found.raises and not found.arithmetic


def test_a1111_takes_what_is_around_layers_for_a_layer(tmp_path):
    """A name that ends where a module with others inside is."""
    found = inspected(tmp_path, *(pair(f"lora_te1_text_model.encoder.layers.{number}.mlp.fc1", PEFT, False)
                                  for number in (0, 1)), *(pair(f"unet.{path}", PEFT, False) for path in sdxl()))
    assert found.hosts["a1111"].loads == NOTHING and "AssertionError" in found.hosts["a1111"].raises


@pytest.mark.parametrize("program", ["one_trainer", "a1111_before_1_9"])
def test_programs_of_which_nothing_is_known_are_not_judged(tmp_path, program):
    found = inspected(tmp_path, *(pair(f"unet.{path}", PEFT, False) for path in sdxl())).hosts[program]
    assert found.loads == UNJUDGED and found.why and found.lines()[0].startswith("not checked: ")
