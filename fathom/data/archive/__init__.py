"""Reading files straight out of a package archive, without unpacking it to disk."""

from fathom.data.archive.members import read_members

__all__ = ["read_members"]
