"""Models of the Hugging Face hub, looked up in its own cache and fetched into it, as huggingface_hub is configured."""

from __future__ import annotations

from fathom.checkpoint.hub.fetch import fetch_model, hub_cache
from fathom.checkpoint.hub.listing import CachedModel, cached_models
from fathom.checkpoint.hub.names import HubName, parse_hub_name

__all__ = ["CachedModel", "HubName", "cached_models", "fetch_model", "hub_cache", "parse_hub_name"]
