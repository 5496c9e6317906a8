"""A tiny T5 encoder with a tokenizer that is built here: letters, a few words, and T5's own special tokens."""

from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from tests.tiny_sdxl import WORDS


def tokenizer(length: int = 512) -> T5TokenizerFast:
    """T5's kind of tokenizer: a unigram model in which the words are likelier than their letters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = ["▁", *(chr(code) for code in range(33, 127))]
    words = ["▁" + word for word in WORDS if len(word) > 1]
    vocabulary = special + [(letter, -10.0) for letter in letters] + [(word, -2.0) for word in words]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=length)


def encoder(tokens: T5TokenizerFast, width: int = 16) -> T5EncoderModel:
    """Two random layers, with the dropout of the real one."""
    config = T5Config(
        vocab_size=len(tokens),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)
