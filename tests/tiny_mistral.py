"""A tiny Mistral 3 model with a tokenizer that is built here: bytes, and a template of the real one's form."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>", "[IMG]"]

TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}{%- set text = message.content[0].text %}"
    "{%- if message.role == 'system' %}{{- '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' }}"
    "{%- else %}{{- '[INST]' + text + '[/INST]' }}{%- endif %}{%- endfor %}"
)
"""What the real one makes of a message of the system and one of a user."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, padded at the start as the real one is."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_alone = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        additional_special_tokens=SPECIAL[3:], padding_side="left", model_max_length=4096, chat_template=TEMPLATE,
    )


def encoder(tokens: PreTrainedTokenizerFast, width: int = 8, layers: int = 32) -> Mistral3ForConditionalGeneration:
    """As many layers as FLUX.2 reads, and a reader of pictures, as the real one has."""
    text = {
        "model_type": "mistral", "vocab_size": len(tokens), "hidden_size": width, "intermediate_size": 2 * width,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "num_hidden_layers": layers,
        "max_position_embeddings": 1024, "sliding_window": None,
    }
    vision = {
        "model_type": "pixtral", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4,
        "intermediate_size": 8, "image_size": 16, "patch_size": 4, "num_channels": 3,
    }
    return Mistral3ForConditionalGeneration(Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=SPECIAL.index("[IMG]"), spatial_merge_size=2,
    ))
