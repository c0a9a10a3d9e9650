"""Forms of rows: which columns a published layout has, which one a file has, and its rows converted.

A table of forms belongs to one kind of data: conversations, preferences or problems. The first rows of a file decide
its form. Columns that fit two forms are refused unless ``format`` or ``fields`` of the source says what they mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from fathom.data.folders.data_files import data_files
from fathom.data.records import BadRecord, Record, read_records
from fathom.data.row_report import RowProblem, RowReport, UnusableRow
from fathom.errors import DataError, shortened

T = TypeVar("T")
Row = Mapping[str, Any]
SAMPLED_ROWS = 100
"""Rows of a file that decide its form."""
_SHOWN_COLUMNS = 12
_MANY_COLUMNS = 4096


@dataclass(frozen=True, slots=True)
class Column:
    """A column that a form knows: its name, what it means there, and other names it goes by."""

    name: str
    meaning: str
    aliases: tuple[str, ...] = ()
    required: bool = True

    def find(self, row: Row) -> str | None:
        """Return the name it has in a row, whatever its case, or None; a null is no value.

        Of a row with absurdly many columns the case counts: its names are looked through for every known column.
        """
        names = (self.name, *self.aliases)
        found = next((name for name in names if row.get(name) is not None), None)
        if found is not None or len(row) > _MANY_COLUMNS:
            return found
        return next((name for name in row if name.lower() in names and row[name] is not None), None)


def optional(name: str, meaning: str, *aliases: str) -> Column:
    """Return a column that rows may lack."""
    return Column(name, meaning, aliases, required=False)


def _any_shape(values: Row) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Form(Generic[T]):
    """A published layout of rows.

    ``convert`` takes the known columns by their own names, and all other columns of the row; it raises ``UnusableRow``
    or ``DataError``. ``shape`` narrows what the form is recognised by. ``over`` names forms that this one is meant
    rather than where both fit. An ``explicit`` form is taken only where ``format`` names it; ``advice`` says when. A
    form with a ``refusal``, why its rows are of no use and what to do, is known and refused.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    convert: Callable[[Row, Row], T]
    shape: Callable[[Row], bool] = _any_shape
    over: tuple[str, ...] = ()
    explicit: bool = False
    advice: str = ""
    refusal: str = ""

    def missing(self, row: Row) -> list[str]:
        """Return the required columns that a row lacks."""
        return [column.name for column in self.columns if column.required and column.find(row) is None]

    def names(self, row: Row) -> dict[str, Column]:
        """Return the columns of a row that are known, by the names they have there."""
        return {name: column for column in self.columns if (name := column.find(row)) is not None}

    def fits(self, row: Row) -> bool:
        """Whether a row has the columns of this form, in its shape."""
        return not self.missing(row) and self.shape(_values(row, self.names(row)))

    def converted(self, row: Row) -> T:
        """Convert a row that has the required columns; errors as ``convert``."""
        known = self.names(row)
        rest = {name: value for name, value in row.items() if name not in known and value is not None}
        return self.convert(_values(row, known), rest)


def _values(row: Row, known: Mapping[str, Column]) -> dict[str, Any]:
    """Return the known columns of a row by their own names."""
    return {column.name: row[name] for name, column in known.items()}


@dataclass(frozen=True, slots=True)
class Columns:
    """What a source says of its columns: the name of a form, and the file's columns by the form's."""

    format: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, row: Row) -> Row:
        """Return a row whose columns have the names that ``fields`` gives them."""
        if not self.fields:
            return row
        kept = {name: value for name, value in row.items() if name not in self.fields.values()}
        return kept | {own: row.get(column) for own, column in self.fields.items()}

    def admit(self, form: Form[Any]) -> bool:
        """Whether a form may be meant."""
        if self.format is not None:
            return form.name == self.format
        return not form.explicit and set(self.fields) <= {column.name for column in form.columns}


AS_FOUND = Columns()


def candidates(row: Row, forms: Sequence[Form[T]], columns: Columns = AS_FOUND) -> list[Form[T]]:
    """Return the forms that a row fits, without those that another one is meant rather than."""
    renamed = columns.renamed(row)
    found = [form for form in forms if columns.admit(form) and form.fits(renamed)]
    return [form for form in found if not any(form.name in other.over for other in found)]


@dataclass(frozen=True, slots=True)
class Recognition(Generic[T]):
    """The form of a file's rows; None where they fit none, or where one of ``choices`` has to be named."""

    form: Form[T] | None
    choices: tuple[Form[T], ...] = ()
    row: Row = field(default_factory=dict)


def recognise(rows: Sequence[Row], forms: Sequence[Form[T]], columns: Columns = AS_FOUND) -> Recognition[T]:
    """Return the form that most rows have, or the forms between which a source has to choose."""
    named = next((form for form in forms if form.name == columns.format), None)
    if named is not None:
        return Recognition(named)
    votes: Counter[str] = Counter()
    for row in rows:
        fitting = candidates(row, forms, columns)
        if len(fitting) > 1:
            return Recognition(None, tuple(fitting), row)
        votes.update(form.name for form in fitting)
    if votes:
        ((name, _),) = votes.most_common(1)
        return Recognition(next(form for form in forms if form.name == name))
    for row in rows:
        explicit = tuple(form for form in forms if form.explicit and form.fits(columns.renamed(row)))
        if explicit:
            return Recognition(None, explicit, row)
    return Recognition(None)


def recognised(where: object, rows: Sequence[Row], forms: Sequence[Form[T]], columns: Columns = AS_FOUND) -> Form[T]:
    """Return the form that most rows have.

    Raises:
        DataError: rows fit two forms, or none, or one that is refused; the message has the choices.
    """
    found = recognise(rows, forms, columns)
    if found.form is not None and found.form.refusal:
        raise DataError(f"{where}: {found.form.title}: {found.form.refusal}")
    if found.form is not None:
        return found.form
    if not found.choices:
        raise DataError(f"{where}: {unknown_columns(rows, forms, columns)}")
    known = {name for form in found.choices for name, column in form.names(found.row).items() if column.required}
    names = ", ".join(name for name in found.row if name in known)
    problem = "fit more than one form" if len(found.choices) > 1 else "do not say what is learned"
    raise DataError(f"{where}: the columns {names} {problem}; set {choices(found.choices)}")


def choices(forms: Sequence[Form[T]]) -> str:
    """Return the values of ``format`` between which a source has to choose, with what each means."""
    return " or ".join(f'format = "{form.name}" ({form.advice or form.title})' for form in forms)


def read_rows(
    path: Path, forms: Sequence[Form[T]], report: RowReport, columns: Columns = AS_FOUND
) -> Iterator[tuple[str, T]]:
    """Yield the place and the converted value of each row of a file, or of all files of a folder.

    A row that cannot be used is reported and skipped, one of another form than most included.

    Raises:
        DataError: nothing can be read, or the form is unknown or ambiguous.
    """
    records = file_records(path)
    head: list[Record | BadRecord] = []
    rows: list[Row] = []
    for record in records:
        head.append(record)
        if isinstance(record, Record):
            rows.append(record.value)
        if len(rows) >= SAMPLED_ROWS:
            break
    form = recognised(path, rows, forms, columns) if rows else forms[0]
    for record in chain(head, records):
        if isinstance(record, BadRecord):
            report.add(RowProblem("malformed", record.place, record.sentence))
            continue
        converted = convert_row(record, form, forms, columns)
        if isinstance(converted, RowProblem):
            report.add(converted)
        else:
            yield record.place, converted[0]


def sampled_rows(records: Iterable[Record | BadRecord]) -> list[Row]:
    """Return the first rows of a file, which decide its form."""
    rows = (record.value for record in records if isinstance(record, Record))
    return list(islice(rows, SAMPLED_ROWS))


def file_records(path: Path) -> Iterator[Record | BadRecord]:
    """Yield the records of a file or folder, each placed by its file's name."""
    for file in data_files(path):
        is_parquet = file.suffix.lower() == ".parquet"
        for record in read_records(file):
            place = file.name + record.place.removeprefix(str(file))
            if isinstance(record, Record):
                yield Record(place, without_nulls(record.value) if is_parquet else record.value)
            else:
                yield BadRecord(place, record.sentence)


def without_nulls(value: Any) -> Any:
    """Return a value without the nulls of its tables: Parquet gives every table of a column the keys of all."""
    if isinstance(value, Mapping):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def convert_row(
    record: Record, form: Form[T], forms: Sequence[Form[T]], columns: Columns = AS_FOUND
) -> tuple[T] | RowProblem:
    """Return a record as the form converts it, alone in a tuple, or why it cannot be used."""
    row = columns.renamed(record.value)
    missing = form.missing(row)
    others = [other for other in candidates(record.value, forms, Columns()) if other is not form] if missing else []
    if others:
        sentence = f"has the form {others[0].name}, other rows {form.name}; put it into a file of its own"
        return RowProblem("other_form", record.place, sentence)
    if missing:
        names = ", ".join(column.name for column in form.columns if column.required)
        return RowProblem("malformed", record.place, f"has no {missing[0]}; rows of {form.title} have {names}")
    try:
        return (form.converted(row),)
    except UnusableRow as error:
        return RowProblem(error.reason, record.place, str(error))
    except DataError as error:
        return RowProblem("malformed", record.place, str(error))


def unknown_columns(
    rows: Sequence[Row], forms: Sequence[Form[Any]], columns: Columns = AS_FOUND, *, remedy: str | None = None
) -> str:
    """Say that rows fit no form, with what was found, what is known and the ``remedy``, by default a recipe's."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    absent = [f"{own} = {column!r}" for own, column in columns.fields.items() if column not in names]
    more = f" and {len(names) - _SHOWN_COLUMNS} more" if len(names) > _SHOWN_COLUMNS else ""
    shown = (shortened(", ".join(names[:_SHOWN_COLUMNS])) or "(none)") + more
    if absent:
        return f"fields: {absent[0]}, but the columns are {shown}; correct fields"
    known = "; ".join(f"{form.name}: {', '.join(c.name for c in form.columns if c.required)}" for form in forms)
    corpus = "; a column text is for a corpus step" if "text" in names else ""
    if remedy is None:
        example = next(column.name for column in forms[0].columns if column.required)
        remedy = f'rename columns, or set fields = {{ {example} = "COLUMN" }}'
    return f"no known form in the columns {shown}; known are {known}{corpus}; {remedy}"
