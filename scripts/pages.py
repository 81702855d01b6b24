"""HTML files that need nothing else: one style, no scripts."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from scripts.issues import written_whole

STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #4a7ebb; --bad: #d1603d; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .6rem; border: 1px solid var(--line); text-align: right; }
th { font-weight: 600; } th[scope=row] { text-align: left; }
.scroll { overflow-x: auto; } .warn { border-left: 4px solid var(--bad); padding: .3rem .8rem; }
.worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; padding: 0; }
.worst li { list-style: none; border: 1px solid var(--line); padding: .5rem; font-size: .85rem; }
.worst li { overflow-wrap: anywhere; }
.worst img { display: block; height: 112px; margin: 0 auto .4rem; image-rendering: auto; }
.given { text-decoration: line-through; } .better { font-weight: 600; } small { opacity: .75; }
svg { max-width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
.bar { fill: var(--bar); } .bad { fill: var(--bad); }
.box { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; }
.was { stroke: #d33; } .new { stroke: #1fd655; stroke-dasharray: 6 3; }
"""


def write_page(path: Path, title: str, sections: Sequence[str]) -> None:
    """Writes a page.

    Args:
        path: of the HTML file.
        title: plain text.
        sections: HTML.
    """
    with written_whole(path) as file:
        file.write(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>"
            f"<h1>{escape(title)}</h1>\n"
        )
        for section in sections:
            file.write(section + "\n")
        file.write("</body></html>\n")


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells; the first of each row is its heading."""
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    for first, *rest in rows:
        lines.append(f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'
