"""OneTrainer's own rotations on single layers: what its modules compute from a file's tensors, and how they learn.

A request has `file` (safetensors: `<case>.weight`, `<case>.bias`, `<case>.goal` and the file's tensors
`<case>.oft_R.weight` and so on), `cases` (by name: block_size, share, scaled, doft, steps, lr) and `out`. Everything is
float64. The answer's file has `<case>.adapted`, the weight that the module has with the tensors, and after `steps` of
Adam towards `goal` `<case>.trained` and the module's tensors `<case>.<key>`.

DOFT is not in its main branch: it is the LoRAModule.py of pull request 1335, read from the checkout's git objects.
"""

import answering

folder = answering.folder()
answering.stub("torchvision", "bitsandbytes", "gguf", "cv2", "mgds", "scalene", "nvidia", "triton", "tensorboard",
               "dadaptation", "prodigyopt", "customtkinter", "requests", "yaml", "einops_exts", "pooch", "open_clip")
answering.stub_first("diffusers.quantizers.gguf.utils", "modules.util.multi_gpu_util")

import subprocess  # noqa: E402
import types  # noqa: E402

import torch  # noqa: E402
from modules.module import LoRAModule  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

PULL_REQUEST = "c6b1d5c0"
"""The last commit of pull request 1335."""


def of_pull_request():
    """The module of the pull request, or None where the checkout does not have it."""
    command = ["git", "-C", str(folder), "show", f"{PULL_REQUEST}:modules/module/LoRAModule.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None
    found = types.ModuleType("modules.module.of_pull_request")
    exec(compile(done.stdout, f"{PULL_REQUEST}/LoRAModule.py", "exec"), vars(found))
    return found


def layer(weight, bias):
    """A frozen layer with these."""
    if weight.dim() == 2:
        found = torch.nn.Linear(*reversed(weight.shape))
    else:
        found = torch.nn.Conv2d(weight.shape[1], len(weight), weight.shape[2:], padding=weight.shape[2] // 2)
    found.double().requires_grad_(False)
    found.weight.copy_(weight)
    found.bias.copy_(bias)
    return found


def adapted(base):
    """The weight that a layer's forward pass has, from what it makes of single inputs."""
    shape = base.weight.shape
    inputs = torch.eye(base.weight[0].numel(), dtype=torch.float64)
    at = (Ellipsis,)
    if len(shape) == 4:
        inputs, at = inputs.reshape(-1, *shape[1:]), (..., shape[2] // 2, shape[3] // 2)
    return (base(inputs) - base(torch.zeros_like(inputs)))[at].T.reshape(shape)


def learned(base, module, goal, steps, lr):
    """The weight after some steps of Adam towards another one."""
    optimizer = torch.optim.Adam(module.parameters(), lr=lr, eps=1e-30)
    for _ in range(steps):
        optimizer.zero_grad()
        (adapted(base) - goal).square().sum().backward()
        optimizer.step()
    return adapted(base).detach()


def answer(request):
    """All cases of one file."""
    tensors, found = load_file(request["file"]), {}
    proposed = of_pull_request()
    for name, case in request["cases"].items():
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        if case["doft"] and proposed is None:
            continue
        klass = proposed.DoRAOFTModule if case["doft"] else LoRAModule.OFTModule
        base = layer(own.pop("weight"), own.pop("bias"))
        goal = own.pop("goal")
        module = klass(name, base, case["block_size"], case["share"], case["scaled"]).double()
        module.load_state_dict({f"{name}.{key}": value for key, value in own.items()})
        module.hook_to_module()
        with torch.no_grad():
            found[f"{name}.adapted"] = adapted(base)
        found[f"{name}.trained"] = learned(base, module, goal, case["steps"], case["lr"])
        found |= {f"{name}.{key}": value.detach().clone() for key, value in module.state_dict().items()}
    save_file({key: value.contiguous() for key, value in found.items()}, request["out"])
    return {}


if __name__ == "__main__":
    answering.serve(answer)
