"""Records of data files in every form and compression, one by one and in bounded memory."""

from fathom.data.records.reader import RECORD_SUFFIXES, BadRecord, Record, holds_records, read_records

__all__ = ["RECORD_SUFFIXES", "BadRecord", "Record", "holds_records", "read_records"]
