"""Reports as one HTML file that needs no network: of a run, of a difference, of a model."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxsqueeze.analysis.diff.changes import Change
from onnxsqueeze.analysis.diff.diff import GraphDiff, diff
from onnxsqueeze.analysis.diff.words import born, title, words
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Deviation
from onnxsqueeze.measure.cost import Cost
from onnxsqueeze.measure.saturation import warning
from onnxsqueeze.plain import plain
from onnxsqueeze.report.pages.figures import FIGURES, bars, curves, figures, heat, profile, scatter, span
from onnxsqueeze.report.pages.picture import attributes_of, pictures
from onnxsqueeze.report.pages.tried import tried
from onnxsqueeze.report.run import Report, Timed
from onnxsqueeze.report.tables import latency_rows
from onnxsqueeze.report.verdict import sentence, verdict, where
from onnxsqueeze.words import amount, change, db, decibels, milliseconds

if TYPE_CHECKING:
    import jinja2

    from onnxsqueeze.analysis.inspection.inspect import Inspection
    from onnxsqueeze.report.sensitivity import Sensitivity

__all__ = ["diff_page", "inspection_page", "notebook_cell", "report_page", "sensitivity_page"]


def report_page(report: Report, original: Graph, result: Graph | None, command: str) -> str:
    """Return the page of a run of ``squeeze``; ``command`` repeats it. Without a result there is no picture."""
    sites = [(step.spec, site) for step in report.steps if step.kept for site in step.done]
    errors = [(site.key, site.error, site.action) for _, site in sites if site.error]
    effects = [
        (site.key, effect, _treatment(site))
        for _, site in sites
        if isinstance(effect := site.detail.get("answers"), float) and effect > 0
    ]
    facts: dict[str, list[dict[str, object]]] = {}
    for spec, site in sites:
        facts.setdefault(site.key.partition("[")[0], []).append(_site(spec, site))
    drawn = [
        {"note": site.action, **each}
        for _, site in sorted(sites, key=lambda entry: -(entry[1].error or 0.0))
        for each in figures(site.key, site.detail)
    ]
    found = None if result is None else diff(original, result)
    graphs = ""
    if result is not None and found is not None and found.changes:
        graphs = _graphs(original, result, found, facts)
    return _page(
        "report.html.j2",
        title=Path(report.model).name,
        verdict=verdict(report),
        report=report,
        costs=_costs(report.before, report.after, report.latency_ms, report.latency_ratio, report.latencies),
        outputs=report.deviations,
        tried=None if report.search is None else tried(report.search),
        told=[(each.output, text) for each in report.deviations if (text := _told(each))],
        steps=report.steps,
        by_error=bars(errors, _in_db),
        by_effect=bars(effects, _in_db),
        by_gain=bars(_gains(() if found is None else found.changes), lambda value: amount(value, "B")),
        figures=drawn[:FIGURES],
        figures_in_all=len(drawn),
        graphs=graphs,
        command=command,
    )


def notebook_cell(report: Report, original: Graph | None, result: Graph) -> str:
    """Return the page of a run in a frame, for a cell of a notebook; without the original there is no picture."""
    command = f"onnxsqueeze {shlex.quote(report.model)} -p {shlex.quote(report.pipeline)}"
    page = report_page(report, result if original is None else original, None if original is None else result, command)
    style = "width: 100%; height: 40em; border: 0"
    return f'<p>{escape(verdict(report))}</p><iframe srcdoc="{escape(page)}" style="{style}"></iframe>'


def diff_page(found: GraphDiff, a: Graph, b: Graph, command: str) -> str:
    """Return the page of a difference of two graphs."""
    numbers = found.numbers
    return _page(
        "diff.html.j2",
        title=f"{Path(found.before).name} → {Path(found.after).name}",
        verdict=found.verdict,
        found=found,
        costs=_costs(found.totals.before, found.totals.after, None, None),
        changes=[{"kind": c.kind, "title": title(c), "words": words(c), "change": c} for c in found.changes],
        born=None if numbers is None else born(numbers),
        outputs=() if numbers is None else numbers.outputs,
        profile=None if numbers is None else profile(numbers.along, numbers.born),
        by_noise=[] if numbers is None else bars(
            [(f.tensor, f.noise, f"{f.op}, from {db(f.inputs_db)} to {db(f.sqnr_db)} dB") for f in numbers.worst
             if math.isfinite(f.noise)], _in_db),
        graphs=_graphs(a, b, found, {}),
        command=command,
    )  # fmt: skip


def inspection_page(found: Inspection, command: str) -> str:
    """Return the page of one model: its layers, sorted by what costs most."""
    cost = found.cost
    facts = [f"has {amount(cost.parameters)} parameters in {amount(cost.bytes, 'B')}"]
    facts += [f"makes {amount(cost.macs)} multiply-accumulates a feed"] if cost.macs is not None else []
    facts += [f"takes {milliseconds(found.milliseconds)} on one thread"] if found.milliseconds is not None else []
    return _page(
        "inspect.html.j2",
        title=Path(found.model).name,
        verdict=f"The model {', '.join(facts[:-1])}{' and ' if len(facts) > 1 else ''}{facts[-1]}.",
        found=found,
        warning=warning(found.saturating),
        layers=[layer for layer in found.layers if layer.share or layer.parameters or layer.macs],
        command=command,
    )


def sensitivity_page(found: Sensitivity, command: str) -> str:
    """Return the page of a study of sensitivity: heat map, predicted against measured, curves."""
    low, high = span(found)
    return _page(
        "sensitivity.html.j2",
        title=Path(found.model).name,
        verdict=found.verdict,
        found=found,
        rows=heat(found),
        scatter=scatter(found),
        curves=curves(found),
        scale={"low": f"{low:.0f}", "high": f"{high:.0f}"},
        command=command,
    )


def _told(each: Deviation) -> str:
    """Return what is said of an output besides its figures."""
    parts = (each.reason, "" if each.sqnr_db == math.inf else sentence(each), where(each))
    return "; ".join(part for part in parts if part)


# The page


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters.update(
        amount=amount, db=db, decibels=decibels, ms=milliseconds, percent=lambda value: f"{100 * value:.1f} %"
    )
    environment.globals["file"] = lambda name: (folder / name).read_text(encoding="utf-8")
    return environment


def _page(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


def _costs(
    before: Cost, after: Cost, times: tuple[float, float] | None, ratio: float | None, others: Sequence[Timed] = ()
) -> list[tuple[str, str, str, str]]:
    rows = [
        ("file size", amount(before.bytes, "B"), amount(after.bytes, "B"), change(before.bytes, after.bytes, "smaller"))
    ]
    for name, old, new in (
        ("parameters", before.parameters, after.parameters),
        ("MACs per feed", before.macs, after.macs),
        ("nodes", before.nodes, after.nodes),
    ):
        if old is not None and new is not None:
            rows.append((name, amount(old), amount(new), change(old, new, "fewer")))
        elif old is not None or new is not None:
            left, right = ("unknown" if n is None else amount(n) for n in (old, new))
            rows.append((name, left, right, ""))
    if before.opset != after.opset:
        rows.append(("opset", str(before.opset), str(after.opset), ""))
    if times is not None:
        how = change(1.0, ratio if ratio is not None else times[1] / times[0], "faster")
        rows.append(("latency per feed", milliseconds(times[0]), milliseconds(times[1]), how))
    return [*rows, *latency_rows(others)]


def _gains(changes: Iterable[Change]) -> list[tuple[str, float, str]]:
    """Return the bytes of weights that each change saves."""
    found = []
    for each in changes:
        saved = 0
        for weight in each.weights:
            for sign, dtype, shape in zip((1, -1), weight.dtype, weight.shape, strict=True):
                if dtype is not None and shape is not None:
                    saved += sign * math.prod(shape) * np.dtype(dtype).itemsize
        if saved > 0:
            found.append(((each.before or each.after)[-1].key, float(saved), title(each)))
    return found


def _of(ratio: float) -> str:
    return db(ratio) if ratio == math.inf else f"{db(ratio)} dB"


def _in_db(error: float) -> str:
    return f"{decibels(error)} dB"


def _treatment(site: Any) -> str:
    """Return what happens at a site, and what was done about its error."""
    return ", ".join(filter(None, (str(site.action), str(site.detail.get("remedy", "")))))


def _site(spec: str, site: Any) -> dict[str, object]:
    found: dict[str, object] = {spec.split("{")[0]: site.action}
    if site.error is not None:
        found["predicted error"] = _in_db(site.error)
    for name, value in site.detail.items():
        if name == "answers" and isinstance(value, float):
            found["alone, at the answers"] = _in_db(value)
        elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
            found[name] = f"{value:.4g}" if isinstance(value, float) else value
    return found


def _graphs(a: Graph, b: Graph, found: GraphDiff, sites: Mapping[str, list[dict[str, object]]]) -> str:
    """Return both pictures with the numbers of their nodes as JSON that can stand in a script element."""
    quality = {} if found.numbers is None else {fall.tensor: fall for fall in found.numbers.along}
    sides = []
    for graph, picture in zip((a, b), pictures(a, b, found), strict=True):
        nodes = {key_of(node): node for node in graph.nodes}
        facts = []
        for key, _, status, number in picture.nodes:
            node = nodes[key]
            fact: dict[str, object] = (
                {"name": node.name or "", "attributes": attributes_of(node)} if status != "same" else {}
            )
            weights = [t for t in node.inputs if hasattr(t, "_values") and t.name]
            if weights:
                fact["weights"] = [f"{t.name} {np.dtype(t.dtype)}{list(map(int, t.shape))}" for t in weights]
            if key in sites:
                fact["sites"] = sites[key]
            if key in quality:
                fact["SQNR"] = f"{_of(quality[key].sqnr_db)}, reads {_of(quality[key].inputs_db)}"
            if number >= 0:
                fact["change"] = number
            facts.append(fact)
        sides.append({"nodes": picture.nodes, "edges": picture.edges, "boxes": picture.boxes, "facts": facts})
    data = {
        "sides": sides,
        "pairs": found.pairs,
        "changes": [{"kind": each.kind, "title": title(each), "words": words(each)} for each in found.changes],
    }
    text = json.dumps(plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
