"""What our copies of the programs' arithmetic are known to do otherwise than the programs, by copy and kind of tensors:
in how many of the cases of layers.py, and what it is.

The lists are exact: a difference that is mended has to go from here, and no other may come.
"""

KNOWN: dict[str, dict[str, tuple[int, str]]] = {
    "forge": {
        "GLoRA of rotations": (20, "with alpha and no common rank Forge computes something, the copy refuses"),
    },
    "lycoris": {
        "norm": (77, "LyCORIS fails on w_norm of a layer that is no norm, the copy adds it"),
        "LoKr": (101, "LyCORIS builds factors of its own sizes and fails on others, the copy multiplies them"),
        "LoKr with a core": (15, "as LoKr"),
        "butterfly": (36, "LyCORIS takes the number of factors from the layer, the copy refuses another"),
        "GLoRA": (27, "LyCORIS fails on convolutions of one position, the copy computes them"),
        "GLoRA of rotations": (27, "as GLoRA"),
        "LoRA": (8, "LyCORIS takes a dora_scale of one number, the copy refuses it"),
        "LoHa": (8, "as LoRA"),
        "LoRA with a core": (7, "as LoRA"),
        "LoHa with cores": (7, "as LoRA"),
    },
}
