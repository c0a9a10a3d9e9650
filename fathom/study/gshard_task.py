"""A multilingual translation task: learned in a minute, and too large for a small dense layer.

A sentence has one word of every part of speech. Each language has its own word for every common word, of the same
part, and every second language reverses the sentence. A source is a language's mark and a sentence in the common
words; its target is the sentence in that language. Solving it takes ``parts * words`` words for every language, of
which any one token needs a single one: what conditional computation is for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.spec import check

PAD, EOS = 0, 1
_FIRST_LANGUAGE = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """Source (mark, words, end), the decoder's input and the labels it is to give, and each language."""

    source_BS: Tensor
    target_BT: Tensor
    labels_BT: Tensor
    language_B: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Languages:
    """The task: how many languages, parts of speech and words of each part, and the seed of dictionaries and orders."""

    languages: int = 8
    parts: int = 4
    words: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("languages", "parts", "words"):
            check.positive(name, getattr(self, name))

    @property
    def vocab_size(self) -> int:
        """Padding, end, a mark a language, and the words."""
        return _FIRST_LANGUAGE + self.languages + self.parts * self.words

    def dictionaries(self) -> tuple[Tensor, Tensor]:
        """Each language's word for each common one (languages, parts, words), and its order of parts."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.languages, self.parts)
        dictionaries = torch.stack(
            [torch.randperm(self.words, generator=generator) for _ in range(shape[0] * shape[1])]
        )
        forwards = torch.arange(self.parts)
        orders = torch.stack([forwards.flip(0) if odd % 2 else forwards for odd in range(self.languages)])
        return dictionaries.view(*shape, self.words), orders

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Draw sentences: languages and words uniformly."""
        language_B = torch.randint(self.languages, (size,), generator=generator)
        words_BL = torch.randint(self.words, (size, self.parts), generator=generator)
        dictionaries, orders = self.dictionaries()
        part_L = torch.arange(self.parts)
        translated_BL = dictionaries[language_B[:, None], part_L, words_BL] + part_L * self.words
        translated_BL = translated_BL.gather(1, orders[language_B])
        first_word = _FIRST_LANGUAGE + self.languages
        end_B1 = torch.full((size, 1), EOS)
        source_BL = words_BL + part_L * self.words + first_word
        labels_BT = torch.cat((translated_BL + first_word, end_B1), 1)
        return Batch(
            source_BS=torch.cat((language_B[:, None] + _FIRST_LANGUAGE, source_BL, end_B1), 1),
            target_BT=torch.cat((torch.full_like(end_B1, PAD), labels_BT[:, :-1]), 1),
            labels_BT=labels_BT,
            language_B=language_B,
        )
