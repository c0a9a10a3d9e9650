"""Conversations for supervised fine-tuning: reading any known form, encoding with a loss mask, packing, loading."""

from __future__ import annotations

from fathom.data.conversations.forms import Conversation
from fathom.data.conversations.loader import ConversationLoader
from fathom.data.conversations.loss_mask import Sample, encode_with_loss_mask
from fathom.data.conversations.read import encode_conversations, read_conversations
from fathom.data.conversations.templated import KeepThinking

__all__ = [
    "Conversation",
    "ConversationLoader",
    "KeepThinking",
    "Sample",
    "encode_conversations",
    "encode_with_loss_mask",
    "read_conversations",
]
