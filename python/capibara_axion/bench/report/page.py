# SPDX-License-Identifier: Apache-2.0
"""The page: HTML that needs no other file and no network, in light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from capibara_axion.bench.report import style
from capibara_axion.bench.report.figure import Figure, Section, Table
from capibara_axion.bench.report.sources import Source

_CSS = r"""
:root{color-scheme:light dark;--paper:#fff;--panel:#f5f6f7}
@media(prefers-color-scheme:dark){:root{--paper:#17181b;--panel:#212327}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:76rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2}
h2{font-size:1.3rem;margin:2.5rem 0 .5rem;border-bottom:2px solid var(--faint)}
h3{font-size:1.05rem;margin:0 0 .25rem}
a{color:var(--series-0)}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;padding:0;list-style:none}
figure{margin:1rem 0 2rem}
figcaption p{margin:.25rem 0}
svg{display:block;width:100%;height:auto}
svg.wide{display:none}
svg.narrow{max-width:27rem;margin:0 auto}
dl{margin:.5rem 0 0;padding:.6rem .8rem;background:var(--panel);border-radius:.4rem;
font-size:.85rem}
dt{font-weight:600;display:inline;margin-right:.6em}
dd{margin:0;display:inline}
dd::after{content:"\A";white-space:pre}
code{font:.85em/1.4 ui-monospace,monospace}
details{margin:.5rem 0}
summary{cursor:pointer;padding:.35rem 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;
overflow-wrap:normal}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--faint);text-align:left;
vertical-align:top}
td.number,th.number{text-align:right;white-space:nowrap}
thead th{position:sticky;top:0;background:var(--paper)}
@media(min-width:40rem){dl{display:grid;grid-template-columns:auto 1fr;gap:.15rem .7rem}
svg.wide{display:block}svg.narrow{display:none}}
@media(min-width:68rem){figure{display:grid;grid-template-columns:minmax(0,46rem) minmax(0,1fr);
grid-template-rows:auto 1fr;column-gap:2rem}
figure>.shown{grid-row:1/span 2}figure>figcaption{grid-column:2;grid-row:1}
figure>.from{grid-column:2}}
@media print{svg.wide{display:block}svg.narrow{display:none}}
"""


def html(sections: Sequence[Section], left_out: Sequence[str], date: str) -> str:
    """The whole page.

    Args:
        sections: in this order; those without figures are only named.
        left_out: a line for each file that is not shown.
        date: of the report.
    """
    return "\n".join(_lines(sections, left_out, date)) + "\n"


def _lines(sections: Sequence[Section], left_out: Sequence[str], date: str) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Measurements of capibara_axion</title><style>{style.variables()}{_CSS}</style>"
    yield "</head><body><header><h1>Measurements of capibara_axion</h1>"
    yield f"<p>Made {escape(date[:16].replace('T', ' '))} UTC. Each figure says which file, "
    yield "machine and command it comes from, and has its data below it.</p></header>"
    shown = [section for section in sections if section.figures]
    yield '<nav aria-label="Sections"><ul>'
    for section in shown:
        yield f'<li><a href="#{_anchor(section)}">{escape(section.title)}</a></li>'
    yield "</ul></nav><main>"
    for section in shown:
        yield f'<section id="{_anchor(section)}"><h2>{escape(section.title)}</h2>'
        for figure in section.figures:
            yield from _figure(figure)
        yield "</section>"
    missing = [section for section in sections if not section.figures]
    if missing or left_out:
        yield '<section id="not-here"><h2>Not in this report</h2><ul>'
        for section in missing:
            made_by = f"<code>{escape(section.made_by)}</code>"
            yield f"<li>{escape(section.title)}: made by {made_by}</li>"
        for line in left_out:
            yield f"<li>{escape(line)}</li>"
        yield "</ul></section>"
    yield "</main></body></html>"


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


def _figure(figure: Figure) -> Iterator[str]:
    yield f'<figure id="{escape(figure.slug)}"><figcaption><h3>{escape(figure.title)}</h3>'
    yield f"<p>{escape(figure.text)}</p>"
    yield "</figcaption>"
    yield '<div class="shown">'
    if figure.draw:
        yield style.svg(figure, narrow=False)
        yield style.svg(figure, narrow=True)
        yield "<details><summary>Data</summary>"
    else:
        yield "<details open><summary>Table</summary>"
    yield from _table(figure.table)
    yield '</details></div><div class="from">'
    for source in figure.sources:
        yield from _provenance(source)
    yield "</div></figure>"


def _provenance(source: Source) -> Iterator[str]:
    yield "<dl>"
    for name, text in (
        ("File", source.file),
        ("Machine", source.machine),
        ("Versions", source.versions),
        ("Command", source.command),
        ("Measured", source.date),
    ):
        if text:
            value = f"<code>{escape(text)}</code>" if name == "Command" else escape(text)
            yield f"<dt>{name}</dt><dd>{value}</dd>"
    yield "</dl>"


def _table(table: Table) -> Iterator[str]:
    yield '<div class="scroll" tabindex="0"><table><thead><tr>'
    for index, name in enumerate(table.columns):
        yield f'<th scope="col"{_number(index, table)}>{escape(name)}</th>'
    yield "</tr></thead><tbody>"
    for row in table.rows:
        cells = (f"<td{_number(at, table)}>{escape(text)}</td>" for at, text in enumerate(row))
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _number(index: int, table: Table) -> str:
    return "" if index < table.names else ' class="number"'
