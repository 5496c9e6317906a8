"""How much of a caption a pipeline's text encoders read, and in which way."""

from typing import Any, ClassVar

from modules.families.base import Reading


class Reader:
    """The part of a model about reading captions; see `families.base.Model`. By default the reading is the pipeline's
    own, whatever the options say."""

    TITLE: ClassVar[str]
    pipeline: Any

    reads_chunks: bool = False
    reading: Reading = Reading()
    """In force."""
    has_new_tokens: bool = False
    """Whether its tokenizers know new tokens, which `long_texts` reads."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that decides where captions are truncated."""
        return self.pipeline.tokenizer

    def use_reading(self, reading: Reading) -> list[str]:
        """What of it does not apply: all that is not the default."""
        return unread(reading, self.TITLE, f"reads {self.caption_tokens} tokens of a caption, whatever this says")

    @property
    def caption_tokens(self) -> int:
        """Tokens of a caption that are read, without start and end tokens."""
        return self.tokenizer.model_max_length - self.tokenizer.num_special_tokens_to_add()

    @property
    def chunk_tokens(self) -> int:
        """All of them."""
        return self.caption_tokens

    def token_starts(self, caption: str) -> list[int]:
        """The character at which each token of the caption begins."""
        tokens = self.tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True)
        return [start for start, _ in tokens.offset_mapping]

    def cut_off(self, caption: str) -> str:
        """The caption from the first truncated token on."""
        beyond = self.token_starts(caption)[self.caption_tokens :]
        return caption[beyond[0] :] if beyond else ""

    def reading_facts(self) -> list[str]:
        """What conditions depend on besides weights and tokenizers, for cache keys."""
        return [str(self.caption_tokens)] + ([repr(self.reading)] if self.reading != Reading() else [])


def unread(reading: Reading, title: str, reads: str = "") -> list[str]:
    """Sentences about options that have no effect on a base; `title`: its kind, `reads`: what it does instead."""
    usual, found = Reading(), []
    if reading.tokens != usual.tokens:
        found.append(f"data.caption_tokens: {reading.tokens} has no effect: {title} {reads}")
    if reading.layer != usual.layer:
        found.append(f"base.clip_skip: {reading.layer} has no effect: {title} always reads the same layers of its text "
                     "encoders")
    if reading.emphasis:
        found.append(f"data.emphasis has no effect: {title} takes no weights of words, so brackets and numbers are "
                     "read as text")
    return found
