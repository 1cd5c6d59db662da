# SPDX-License-Identifier: Apache-2.0
"""A byte-level BPE tokenizer, trained on the text of this package.

Every byte is a token, so any UTF-8 text survives encoding and decoding; merges make words of the
corpus short.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a model family.

    Attributes:
        tokens: all of them, in the order of their ids, which start at 0.
        bos, eos, pad: their roles; `bos` None where the family has no such token.
        prepend_bos: whether encoding a text puts `bos` in front of it.
        stops: tokens that end an answer; the first one is what the model itself writes.
        named: further roles by the attribute name that processors read, e.g. `image_token`.
    """

    tokens: tuple[str, ...]
    eos: str
    pad: str
    stops: tuple[str, ...]
    bos: str | None = None
    prepend_bos: bool = False
    named: tuple[tuple[str, str], ...] = ()

    def id_of(self, token: str) -> int:
        return self.tokens.index(token)


# Gemma's image prompt joins newlines across the image; its processor looks these up by name.
_NEWLINES = tuple("\n" * count for count in range(1, 5))


def build_tokenizer(
    corpus: Iterable[str], special: SpecialTokens, *, vocab_size: int, newline_tokens: bool = False
) -> Tokenizer:
    """Trains a tokenizer with exactly `vocab_size` entries, special tokens first.

    Args:
        newline_tokens: adds "\\n" to "\\n\\n\\n\\n" as tokens of their own, as Gemma has.

    Raises:
        ValueError: the corpus is too small for `vocab_size`.
    """
    newlines: Sequence[str] = _NEWLINES if newline_tokens else ()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(newlines),
        min_frequency=1,
        special_tokens=list(special.tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(newline, normalized=False) for newline in newlines])
    if special.prepend_bos and special.bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{special.bos} $A",
            pair=f"{special.bos} $A {special.bos} $B",
            special_tokens=[(special.bos, special.id_of(special.bos))],
        )
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"corpus: expected enough text for {vocab_size} tokens, "
            f"got {tokenizer.get_vocab_size()}"
        )
    return tokenizer


def tokenizer_config(special: SpecialTokens, *, model_max_length: int) -> dict[str, Any]:
    """The content of `tokenizer_config.json`."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        "clean_up_tokenization_spaces": False,
        "eos_token": special.eos,
        "pad_token": special.pad,
    }
    if special.bos is not None:
        config["bos_token"] = special.bos
    if special.named:
        config["extra_special_tokens"] = dict(special.named)
    return config
