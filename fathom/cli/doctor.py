"""``fathom doctor``: what this machine has, what each missing piece would bring, and what is broken."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.cells import cell_len

from fathom.cli.console import print_json
from fathom.cli.diagnosis.finding import Finding
from fathom.cli.diagnosis.hardware import hardware_findings
from fathom.cli.diagnosis.imports import finish_imports, start_imports
from fathom.cli.diagnosis.packages import modules_to_try, package_findings, read_requirements
from fathom.cli.diagnosis.places import place_findings
from fathom.cli.sections import padded
from fathom.locale import tr

BROKEN_CODE = 1
_MARKS = {"ok": " ", "missing": "-", "broken": "!"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Print what this machine has, what each missing piece would bring, and what is broken; 1 where something is."""
    found = diagnose()
    broken = sum(finding.status == "broken" for finding in found)
    if as_json:
        print_json({"broken": broken, "findings": [dataclasses.asdict(finding) for finding in found]})
    else:
        _print(found, broken)
    if broken:
        raise typer.Exit(BROKEN_CODE)


def diagnose() -> list[Finding]:
    """Return all findings; torch and the extras are imported in processes of their own."""
    requirements = read_requirements()
    started = start_imports(modules_to_try(requirements))
    places = list(place_findings())  # while modules are imported
    failed, torch = finish_imports(started)
    return [*package_findings(requirements, failed), *hardware_findings(torch), *places]


def _print(found: list[Finding], broken: int) -> None:
    width = max(cell_len(tr(finding.name)) for finding in found)
    section = ""
    for finding in found:
        if finding.section != section:
            print(("\n" if section else "") + tr(finding.section))
            section = finding.section
        print(f"{_MARKS[finding.status]} {padded(tr(finding.name), width)}  {finding.value}")
        if finding.remedy:
            label = tr("to repair") if finding.status == "broken" else tr("it brings")
            print(f"  {'':<{width}}  {label}: {finding.remedy}")
    missing = sum(finding.status == "missing" for finding in found)
    print("\n" + tr("{broken} broken (!), {missing} missing (-)", broken=broken, missing=missing))
