"""A1111 (stable-diffusion-webui): its extension Lora reads the file and changes the modules. See answering.py.

The web interface around the extension is stubbed. The networks are trees of modules under the names that A1111's models
have (its own are in repositories that it fetches); SD3's part that its own code has is A1111's.
"""

import answering

FOLDER = answering.folder()
answering.stub("gradio", "k_diffusion", "safetensors_rust_stub", "clip", "ldm", "sgm", "open_clip", "torchvision")
SD3 = FOLDER / "modules/models/sd3"
REAL = [f"modules.models.sd3.{path.stem}" for path in SD3.glob("*.py") if path.stem in ("mmdit", "other_impls",
                                                                                      "sd3_model", "sd3_impls")]
answering.stub_first("modules", real=REAL, folder=FOLDER)

import logging  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from functools import cache  # noqa: E402
from types import SimpleNamespace  # noqa: E402

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from modules import devices, sd_models, shared  # noqa: E402

FILE, USED = {}, set()
"""The tensors of the file that is being read, and the identities of those that a module has taken."""


def read(path):
    """The file's tensors, remembered."""
    FILE.clear()
    FILE.update(load_file(path))
    return dict(FILE)


sd_models.read_state_dict = read


class Watched(dict):
    """A layer's tensors, which notes what the extension takes of them."""

    def __getitem__(self, key):
        found = super().__getitem__(key)
        USED.add(id(found))
        return found

    def get(self, key, default=None):
        if key not in self:
            return default
        return self[key]


sys.path.insert(0, str(FOLDER / "extensions-builtin/Lora"))
NOWHERE = tempfile.mkdtemp(prefix="gimbal_a1111_")  # where it looks for files
shared.cmd_opts = SimpleNamespace(lora_dir=NOWHERE, lyco_dir_backcompat=NOWHERE)
shared.walk_files = lambda *_, **__: []
devices.cpu = devices.device = torch.device("cpu")

import network  # noqa: E402
import networks  # noqa: E402

WEIGHTS = network.NetworkWeights
network.NetworkWeights = lambda w, **others: WEIGHTS(w=Watched(w), **others)

LOG = answering.Log(logging.DEBUG)
logging.getLogger().setLevel(logging.DEBUG)
logging.getLogger().addHandler(LOG)
networks.extra_network_lora = SimpleNamespace(errors={})


QKV = sys.modules["modules.models.sd3.mmdit"].QkvLinear if REAL else ()
PATCHED = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.LayerNorm, torch.nn.MultiheadAttention)
"""Whose forward pass the extension takes over; that of a MultiheadAttention's `out_proj` is never called."""


def missing(family, dtype):
    """What this A1111 does not have, in words."""
    later = {"flux": "FLUX", "chroma": "Chroma", **({} if REAL else {"sd3": "SD 3"})}
    if family in later:
        return f"A1111 {version()} has no {later[family]}"
    return "A1111 computes in float32 or float16" if dtype == "bfloat16" else ""


def leaf(name, tensors):
    """A module with these parameters, of the class that A1111's model has."""
    weight = tensors.get("weight")
    if "in_proj_weight" in tensors:
        module = torch.nn.MultiheadAttention(tensors["in_proj_weight"].shape[1], 1)
    elif weight is None or weight.dim() in (0, 3):
        module = torch.nn.Module()
        for key, tensor in tensors.items():
            module.register_parameter(key, torch.nn.Parameter(tensor))
    elif weight.dim() == 1:
        module = torch.nn.LayerNorm(len(weight))
    elif weight.dim() == 4:
        size = weight.shape[2]
        module = torch.nn.Conv2d(weight.shape[1], len(weight), size, padding=size // 2, bias="bias" in tensors)
    elif "embedding" in name:
        module = torch.nn.Embedding(*weight.shape)
    else:
        linear = QKV if REAL and name.endswith("attn.qkv") else torch.nn.Linear
        module = linear(weight.shape[1], len(weight), bias="bias" in tensors)
    for key, tensor in tensors.items():
        if key in module._parameters:
            module._parameters[key] = torch.nn.Parameter(tensor.clone(), requires_grad=False)
    return module


def tree(tensors):
    """A tree of modules with these tensors."""
    by_module = {}
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        by_module.setdefault(path, {})[last] = tensor
    root = torch.nn.Module()
    for path in sorted(by_module, key=len):
        if not path or path.endswith("out_proj") and f"{path.removesuffix('.out_proj')}" in by_module:
            continue  # a parameter of the root; or inside of a MultiheadAttention
        *parents, last = path.split(".")
        place = root
        for part in parents:
            if part not in place._modules:
                place.add_module(part, torch.nn.Module())
            place = place._modules[part]
        module = leaf(path, by_module[path])
        for key, tensor in by_module.get(f"{path}.out_proj", {}).items():
            if isinstance(module, torch.nn.MultiheadAttention):
                module.out_proj._parameters[key] = torch.nn.Parameter(tensor.clone(), requires_grad=False)
        place.add_module(last, module)
    return root


def under(name, module):
    """A module that has another under this name."""
    found = torch.nn.Module()
    found.add_module(name, module)
    return found


@cache
def model(base, family, dtype):
    """A1111's `shared.sd_model`, its modules by our networks' names, and all tensors as they are before."""
    tensors = {}
    for name, tensor in load_file(base).items():
        part, _, rest = name.partition(".")
        tensors.setdefault(part, {})[rest] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    trees = {part: tree(found) for part, found in tensors.items()}
    denoiser = next(part for part in trees if not part.startswith("text"))
    whole = SimpleNamespace(is_sdxl=family == "sdxl", model=under("diffusion_model", trees[denoiser]))
    if family == "sdxl":
        first, second = under("transformer", trees["text_encoder"]), under("model", trees["text_encoder_2"])
        whole.conditioner = SimpleNamespace(embedders=[SimpleNamespace(wrapped=first), SimpleNamespace(wrapped=second)])
    elif family == "sd3":
        whole.cond_stage_model = torch.nn.Module()
        for name, part in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2"), ("t5xxl", "text_encoder_3")):
            whole.cond_stage_model.add_module(name, under("transformer", trees[part]))
        from modules.models.sd3.sd3_model import SD3Inferencer

        deep = SimpleNamespace(model=SimpleNamespace(depth=len(trees[denoiser].joint_blocks._modules)))
        whole.diffusers_weight_mapping = lambda: SD3Inferencer.diffusers_weight_mapping(deep)
    else:
        whole.cond_stage_model = SimpleNamespace(wrapped=under("transformer", trees["text_encoder"]))
    shared.sd_model = whole
    networks.assign_network_names_to_compvis_modules(whole)
    return whole, trees, state(trees)


def answer(request):
    """Load the file, apply it to every module as the first forward pass does, and take it off again."""
    absent = missing(request["family"], request["dtype"])
    if absent:
        return {"version": version(), "absent": absent}
    dtype = vars(torch)[request["dtype"]]
    devices.dtype = devices.dtype_unet = dtype
    networks.loaded_networks.clear()
    networks.extra_network_lora.errors.clear()
    shared.sd_model, trees, before = model(request["base"], request["family"], dtype)
    LOG.taken()
    USED.clear()
    net = networks.load_network("file", SimpleNamespace(filename=request["file"], name="file"))
    net.te_multiplier = net.unet_multiplier = request["strength"]
    net.dyn_dim = None
    networks.loaded_networks.append(net)
    modules = [module for found in trees.values() for module in found.modules()
               if type(module) in PATCHED or isinstance(module, QKV)]
    try:
        for module in modules:
            networks.network_apply_weights(module)
        answering.changed(before, state(trees), request["out"])
    finally:
        networks.loaded_networks.clear()
        for module in modules:
            networks.network_apply_weights(module)  # puts the weights back
        now = state(trees)
        assert all(torch.equal(now[name], tensor) for name, tensor in before.items()), "A1111 has not put all back"
    return {"version": version(), "errors": LOG.taken(),
            "unread": sorted(key for key, tensor in FILE.items() if id(tensor) not in USED)}


def layers(request):
    """Apply a file to single layers by their names: the weights, and what was said of each."""
    weights, file = load_file(request["base"]), load_file(request["file"])
    devices.dtype = torch.float32
    after, said = {}, {}
    for name, weight in weights.items():
        module = leaf(name, {"weight": weight})
        module.network_layer_name = name
        shared.sd_model = SimpleNamespace(network_layer_mapping={name: module}, is_sdxl=False)
        sd_models.read_state_dict = lambda _, name=name: {
            key: tensor for key, tensor in file.items() if key.startswith(f"{name}.")}
        LOG.taken()
        networks.loaded_networks.clear()
        try:
            net = networks.load_network("file", SimpleNamespace(filename=request["file"], name="file"))
            net.te_multiplier = net.unet_multiplier = request["strength"]
            networks.loaded_networks.append(net)
            networks.network_apply_weights(module)
            after[name] = module.weight
        except Exception as error:  # what ends the loading of the file
            said[name] = f"{type(error).__name__}: {error}"
        said.setdefault(name, "; ".join(LOG.taken()))
    sd_models.read_state_dict = read
    answering.changed(weights, after, request["out"])
    return {"layers": said}


def state(trees):
    """All tensors by our networks' names."""
    return {f"{part}.{name}": tensor.clone() for part, found in trees.items()
            for name, tensor in found.state_dict().items()}


@cache
def version():
    """The first headline of the list of changes."""
    path = FOLDER / "CHANGELOG.md"
    return path.read_text(encoding="utf-8").partition("\n")[0].strip("# ") if path.exists() else ""


if __name__ == "__main__":
    answering.serve(answer, layers)
