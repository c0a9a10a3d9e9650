"""The paper's language model: embedding, LSTM, sparse mixture, LSTM, softmax (§5.1, App. C).

Dimensions: B batch, T tokens, D width, N tokens flattened over B and T, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.study.shazeer.gating import Gates
from fathom.study.shazeer.layer import Layout, SparseMoE


class MoELanguageModel(nn.Module):
    """Every layer but the softmax has dropout on its output; the layers after the embedding then add their input.

    The mixture's output passes a sigmoid first. An LSTM begins each window with a state of zeros.
    """

    def __init__(self, vocabulary: int, width: int, hidden: int, layout: Layout, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.first = nn.LSTM(width, width, batch_first=True)
        self.mixture = SparseMoE(width, hidden, layout)
        self.second = nn.LSTM(width, width, batch_first=True)
        self.softmax = nn.Linear(width, vocabulary)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BT: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Gates]:
        """Return logits (B, T, V) and the gates of the N tokens; ``generator`` draws the gate's noise."""
        x_BTD = self.dropout(self.embedding(tokens_BT))
        x_BTD = x_BTD + self.dropout(self.first(x_BTD)[0])
        y_ND, gates = self.mixture(x_BTD.flatten(0, 1), generator)
        x_BTD = x_BTD + self.dropout(torch.sigmoid(y_ND).view_as(x_BTD))
        x_BTD = x_BTD + self.dropout(self.second(x_BTD)[0])
        return self.softmax(x_BTD), gates


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean surprise of a token in nats."""
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
