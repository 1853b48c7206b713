"""The style sheet of report.html: one column, light and dark by the reader's setting, readable from 360 px."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f7f7f5; --card: #fdfdfc; --ink: #0b0b0b; --soft: #52514e; --faint: #7d7b75; --line: #e1e0d9; --axis: #b9b7ad;
  --accent: #2a78d6; --accent-soft: #d6e6f9; --bad: #c6403f; --warn: #a65a00;
  --c0: #2a78d6; --c1: #eb6834; --c2: #1baf7a; --c3: #4a3aa7; --c4: #e87ba4; --c5: #eda100; --c6: #008300; --c7: #e34948;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121211; --card: #1c1c1a; --ink: #f4f4f1; --soft: #c3c2b7; --faint: #95938b; --line: #31312e; --axis: #55544f;
    --accent: #4a94e8; --accent-soft: #1e3552; --bad: #ee7a79; --warn: #e0a050;
    --c0: #3987e5; --c1: #e0652c; --c2: #199e70; --c3: #9085e9; --c4: #d55181; --c5: #c98500; --c6: #3aa53a; --c7: #e66767;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 4px; }
h3 { font-size: 14px; margin: 0; overflow-wrap: anywhere; }
p { margin: 4px 0 12px; max-width: 76ch; color: var(--soft); }
p.lead { color: var(--ink); font-size: 16px; margin-top: 16px; }
nav { margin: 12px 0 0; display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 14px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
code, .key { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 12px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0 0; }
.facts .card { padding: 10px 14px; }
.facts b { display: block; font-size: 22px; line-height: 1.25; font-weight: 600; overflow-wrap: anywhere; }
.facts span, .note { color: var(--faint); font-size: 12.5px; }
.none { color: var(--faint); font-style: italic; }
.cells { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 14px; margin: 12px 0; }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; }
figure svg { display: block; width: 100%; height: auto; margin-top: auto; padding-top: 6px; }
figcaption { font-size: 12.5px; color: var(--faint); }
ul.legend { list-style: none; margin: 4px 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12.5px; color: var(--soft); }
ul.legend li { overflow-wrap: anywhere; }
ul.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px; vertical-align: middle; background: currentColor; }
text { font: 11px system-ui, -apple-system, "Segoe UI", sans-serif; }
.tick { fill: var(--faint); } .value { fill: var(--ink); }
line.grid { stroke: var(--line); } line.axis { stroke: var(--axis); }
line.mark { stroke: var(--soft); stroke-dasharray: 4 3; } line.mean { stroke: var(--ink); stroke-width: 1.5; }
path { fill: none; stroke: currentColor; stroke-linejoin: round; }
path.line { stroke-width: 2; } path.raw { stroke-width: 1; opacity: .3; }
circle.hit { fill: transparent; } circle.hit:hover { fill: currentColor; }
rect.column { fill: var(--accent); } rect.column:hover { opacity: .75; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); } .c7 { color: var(--c7); }
.track { display: block; color: var(--accent); overflow: visible; }
.track.down { color: var(--bad); } .track.open { color: var(--faint); } .track.plain { color: var(--soft); }
.track .rail { stroke: var(--line); } .track .zero { stroke: var(--axis); stroke-width: 1.5; }
.track .span { stroke: currentColor; stroke-width: 2.5; stroke-linecap: round; }
.track circle { fill: currentColor; stroke: var(--card); stroke-width: 1.5; }
.axis-row { display: block; overflow: visible; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; font-size: 12.5px; color: var(--faint); padding: 4px 10px; vertical-align: bottom; }
td { padding: 7px 10px; border-top: 1px solid var(--line); vertical-align: top; }
td.name { overflow-wrap: anywhere; }
td.name small, td small { display: block; color: var(--faint); font-size: 12px; line-height: 1.35; }
td b { font-weight: 400; } td.best b, td.name b { font-weight: 700; }
table.wide th:first-child, table.wide td.name { width: 20%; }
details summary { cursor: pointer; color: var(--accent); font-size: 14px; margin: 8px 0; }
.ci { color: var(--faint); font-size: 12px; white-space: nowrap; }
table.heat { font-size: 12.5px; margin-top: 6px; }
table.heat th, table.heat td { padding: 4px 8px; border: 0; text-align: right; overflow-wrap: normal; }
table.heat tbody th { text-align: left; color: var(--ink); font-weight: 400; } table.heat td { border-radius: 3px; }
.scroll { overflow-x: auto; } .card figcaption { margin-top: 10px; } figure.card figcaption { margin-top: 0; }
.num { text-align: right; white-space: nowrap; }
.warn { color: var(--warn); font-weight: 600; }
.group td { border-top: 0; padding: 16px 10px 2px; color: var(--faint); font-size: 12.5px; }
.bars { display: grid; grid-template-columns: minmax(70px, max-content) 1fr max-content; gap: 5px 10px; align-items: center; font-size: 13px; margin-top: 8px; font-variant-numeric: tabular-nums; }
.bars > span { overflow-wrap: anywhere; min-width: 0; }
.bar { height: 12px; border-radius: 0 3px 3px 0; background: var(--accent); min-width: 2px; }
.time { min-width: 110px; } .time .bar { height: 4px; margin-top: 4px; }
footer { margin-top: 48px; color: var(--faint); font-size: 12.5px; }
@media (max-width: 720px) {
  main { padding: 18px 12px 40px; }
  .card { padding: 12px; }
  table.wide, table.wide tbody { display: block; }
  table.wide thead { display: none; }
  table.wide tr { display: grid; grid-template-columns: repeat(2, 1fr); gap: 6px 14px; padding: 10px 0; border-top: 1px solid var(--line); }
  table.wide tr.group { padding: 12px 0 2px; } table.wide tr:first-child { border-top: 0; }
  table.wide td { border: 0; padding: 0; } table.wide td.name { grid-column: 1 / -1; width: auto; font-weight: 600; }
  table.wide td.name small { font-weight: 400; }
  table.wide td[data-metric]::before { content: attr(data-metric); display: block; color: var(--faint); font-size: 11.5px; }
  table.stages, table.stages tbody { display: block; } table.stages thead { display: none; }
  table.stages tr { display: grid; grid-template-columns: repeat(4, 1fr); gap: 2px 10px; padding: 8px 0; border-top: 1px solid var(--line); }
  table.stages tr:first-child { border-top: 0; }
  table.stages td { border: 0; padding: 0; text-align: left; } table.stages td.name { grid-column: 1 / -1; }
  table.stages td[data-label]::before { content: attr(data-label); display: block; color: var(--faint); font-size: 11.5px; font-weight: 400; }
  .time { min-width: 0; }
}
"""
