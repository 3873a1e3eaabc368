"""``curvlab plugins check``: the conformance suite of a part, or of all that a plugin brings, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curvlab.cli.options import AsJson
from curvlab.cli.output import complain, print_json, print_table, print_text
from curvlab.errors import ConfigError, CurvlabError, PluginError, UsageError, raised
from curvlab.registry import MethodEntry, PartEntry, PluginRecord, Registry, installed
from curvlab.registry.identity import API_VERSION
from curvlab.registry.imports import import_object, is_import_string, protocol, require_imports
from curvlab.registry.isolation import isolated
from curvlab.registry.kinds import KINDS, METHOD, PROTOCOLS
from curvlab.registry.obligations import explained
from curvlab.registry.suggest import advice

if TYPE_CHECKING:
    from curvlab.testing.conformance import Report

Entry = PartEntry | MethodEntry


@dataclass(frozen=True)
class Checked:
    """A part by kind and name, and its report; or why there is none, and whether that is no fault of its."""

    kind: str
    name: str
    report: Report | None
    problem: str = ""
    skipped: bool = False

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Check, outcome, message; one row without a check if there is no report."""
        if self.report is None:
            yield ("", "skip" if self.skipped else "fail", self.problem)
            return
        for outcome in self.report:
            yield (outcome.check, outcome.result, outcome.message)

    @property
    def failed(self) -> bool:
        """Whether it is to be mended."""
        return not self.skipped if self.report is None else bool(self.report.failed)


def check(
    name: Annotated[str, typer.Argument(help="A part's name, package.module:Class, or a plugin's name.")],
    kind: Annotated[str | None, typer.Option("--kind", help="Check only parts of this kind.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the part, in TOML; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the conformance suite of a part, or of every part of a plugin; exit code 1 if a check fails."""
    if kind is not None and kind not in KINDS:
        raise UsageError(f'unknown kind "{kind}"\n  {advice(kind, KINDS, "Kinds")}')
    registry = installed()
    entries = list(_entries(registry, name, kind))
    given = _settings(settings or [], entries)
    checked = []
    for entry in entries:
        found = _checked(registry, entry, given)
        checked.append(found)
        if not as_json:
            _show(found, alone=len(entries) == 1)
    if as_json:
        print_json([_document(c) for c in checked])
    if any(c.failed for c in checked):
        raise typer.Exit(1)


def _entries(registry: Registry, name: str, kind: str | None) -> Iterator[Entry]:
    """What a name names: parts and methods of that name, or all of a plugin of that name."""
    if is_import_string(name) and not any(name.startswith(f"{r.distribution}:") for r in registry.plugins):
        yield _by_path(registry, name, kind)
        return
    owner, _, word = name.rpartition(":")
    known: list[Entry] = [*registry.parts(), *registry.method_entries()]
    of_kind = [e for e in known if kind in (None, _kind(e))]
    named = [e for e in of_kind if e.name == word and owner in ("", e.distribution)]
    if named:
        yield from named
        return
    record = _plugin(registry, name)
    if record is None:
        what = f'no {kind or "part"} and no plugin is called "{name}"'
        words = {e.name for e in of_kind} | {r.name for r in registry.plugins}
        raise UsageError(f"{what}\n  {advice(name, words, 'Known')}")
    if not record.usable:
        raise PluginError(
            f'plugin "{record.name}" ({record.distribution}) is {record.status}: {record.reason}'
        )
    mine = [e for e in of_kind if e.distribution == record.distribution]
    brought = [e for e in mine if f"{_kind(e)}/{e.name}" in record.parts]
    if not brought:
        raise UsageError(f'plugin "{record.name}" brings no {kind or "part"} to check')
    yield from brought


def _plugin(registry: Registry, name: str) -> PluginRecord | None:
    for record in registry.plugins:
        if name in (record.name, record.distribution):
            return record
    return None


def _by_path(registry: Registry, path: str, kind: str | None) -> PartEntry:
    """A class that is named by where it is; its kind is found if ``kind`` is ``None``."""
    require_imports(path)
    if kind is None:
        try:
            with isolated():
                found = import_object(path)
        except KeyboardInterrupt:
            raise
        except BaseException as err:  # a module may raise anything, SystemExit included
            raise UsageError(f"{path} cannot be imported: {raised(err)}") from err
        kinds = [k for k in PROTOCOLS if isinstance(found, type) and issubclass(found, protocol(k))]
        if len(kinds) != 1:
            raise UsageError(
                f"{path} is not a subclass of a protocol; add --kind" if not kinds else f"{path}: say --kind"
            )
        kind = kinds[0]
    return registry.part(kind, path)


def _settings(texts: list[str], entries: list[Entry]) -> dict[str, Any]:
    """``key=value`` pairs as a tree; refused where several parts are checked."""
    if not texts:
        return {}
    if len(entries) > 1:
        names = ", ".join(f"{_kind(e)} {e.name}" for e in entries)
        raise UsageError(
            f"--set needs a single part, but the name means {names}; add --kind, or name the part"
        )
    from curvlab.config.layers import load
    from curvlab.config.tree import plain

    found: dict[str, Any] = plain(load(overrides=[f"part.{text}" for text in texts]).tree).get("part", {})
    return found


def _checked(registry: Registry, entry: Entry, given: Mapping[str, Any]) -> Checked:
    from curvlab.testing.conformance import SUITES

    kind, name = _kind(entry), registry.use(entry)
    filled: Mapping[str, Any] = {}
    try:
        if isinstance(entry, PartEntry):
            from curvlab.config.example import example_settings

            filled = example_settings(entry, given)
        part = _built(registry, entry, {**filled, **given})
    except ConfigError as err:
        return Checked(kind, name, None, f"{err}\n{_advice(filled)}", skipped=bool(entry.distribution))
    except CurvlabError as err:
        return Checked(kind, name, None, str(err))
    except KeyboardInterrupt:
        raise
    except BaseException as err:  # a part may raise anything, SystemExit included
        return Checked(kind, name, None, explained(err) or f"cannot be made: {raised(err)}")
    report = SUITES[kind].of(part, api_version=_api_version(registry, entry)).run()
    unfit = [o for o in report if filled and isinstance(o.error, ConfigError)]
    if unfit and len(unfit) == len(report.failed):
        return Checked(kind, name, None, f"{unfit[0].message}\n{_advice(filled)}", skipped=True)
    return Checked(kind, name, report)


def _advice(filled: Mapping[str, Any]) -> str:
    made = ", ".join(f"{key} = {value!r}" for key, value in filled.items())
    return f"  {f'tried with {made}; ' if made else ''}give other settings by --set KEY=VALUE"


def _built(registry: Registry, entry: Entry, settings: Mapping[str, Any]) -> Any:
    from curvlab.config import build_method, build_part

    if isinstance(entry, MethodEntry):
        return build_method(registry, registry.use(entry), settings)
    use = registry.use(entry) if entry.distribution else entry.factory
    return build_part(registry, protocol(entry.kind), use, settings)


def _api_version(registry: Registry, entry: Entry) -> str:
    records = [r for r in registry.plugins if r.distribution == entry.distribution and r.api_version]
    return records[0].api_version if records else API_VERSION


def _show(checked: Checked, *, alone: bool) -> None:
    title = f"{checked.kind} {checked.name}"
    if not alone:
        print_text(f"\n{title}")
    print_table(("check", "outcome", "message"), list(checked.rows()))
    if checked.report is not None:
        counts = ", ".join(f"{n} {result}" for result, n in checked.report.counts().items())
        complain(f"{title}: {counts}")


def _document(checked: Checked) -> Mapping[str, Any]:
    rows = [dict(zip(("check", "outcome", "message"), row, strict=True)) for row in checked.rows()]
    part = "" if checked.report is None else checked.report.part
    return {"kind": checked.kind, "name": checked.name, "part": part, "checks": rows}


def _kind(entry: Entry) -> str:
    return entry.kind if isinstance(entry, PartEntry) else METHOD
