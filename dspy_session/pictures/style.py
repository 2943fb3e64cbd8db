"""The style sheet of pages and notebooks; nothing outside of them is needed for it.

Everything is within `.dspy-session`. On a page the colours follow the reader's choice of light or
dark; in a notebook they are made of whatever colour its text has.
"""

from __future__ import annotations

from typing import Final

__all__ = ["NOTEBOOK_STYLE", "PAGE_STYLE"]

_PARTS: Final = """\
.dspy-session{color:var(--fg);background:var(--bg);line-height:1.5;font-size:1rem;
overflow-wrap:anywhere;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.dspy-session *,.dspy-session *::before{box-sizing:border-box}
.dspy-session a{color:var(--link);text-underline-offset:.2em}
.dspy-session :focus-visible{outline:.15rem solid var(--link);outline-offset:.15rem;
border-radius:.2rem}
.dspy-session h1{font-size:1.6rem;line-height:1.2;margin:0 0 .2rem;letter-spacing:-.01em}
.dspy-session h2{font-size:1.15rem;margin:2rem 0 .8rem}
.dspy-session h3{font-size:.95rem;margin:0;font-weight:650}
.dspy-session h3 a{color:inherit;text-decoration:none}
.dspy-session h3 a:hover{text-decoration:underline}
.dspy-session h4{font-size:.8rem;margin:1rem 0 .3rem;color:var(--muted);font-weight:600}
.dspy-session p{margin:.3rem 0}
.dspy-session .id,.dspy-session .note,.dspy-session .run,.dspy-session .about{color:var(--muted);
font-size:.85rem}
.dspy-session .id,.dspy-session code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,
"Liberation Mono",monospace;font-size:.85em;background:none;color:inherit}
.dspy-session .tiles{display:flex;flex-wrap:wrap;gap:.6rem;margin:1.1rem 0}
.dspy-session .tiles div{border:1px solid var(--line);border-radius:.6rem;padding:.5rem .9rem;
min-width:6rem;background:var(--card)}
.dspy-session .tiles dt{color:var(--muted);font-size:.78rem}
.dspy-session .tiles dd{margin:0;font-size:1.15rem;font-weight:600;
font-variant-numeric:tabular-nums}
.dspy-session .scroll{overflow-x:auto;margin:1rem 0}
.dspy-session table{border-collapse:collapse;font-size:.9rem;width:100%;margin:0;
overflow-wrap:normal}
.dspy-session th,.dspy-session td{text-align:left;padding:.4rem .9rem .4rem 0;
border-bottom:1px solid var(--line);vertical-align:top;background:none}
.dspy-session th{font-weight:600}
.dspy-session td.n,.dspy-session th.n{text-align:right;white-space:nowrap;
font-variant-numeric:tabular-nums}
.dspy-session summary{cursor:pointer;border-radius:.3rem;padding:.15rem 0}
.dspy-session summary:hover{text-decoration:underline;text-underline-offset:.2em}
.dspy-session .about:last-of-type{margin-bottom:1.2rem}
.dspy-session .about details{border-bottom:1px solid var(--line);padding:.25rem 0}
.dspy-session .about details details{margin-left:1rem}
.dspy-session .about details details:last-child{border:0}
.dspy-session .about dl,.dspy-session .about .text{color:var(--fg);padding:.2rem 0 .3rem 1rem}
.dspy-session .about dd .text,.dspy-session .about dd dl{padding:0}
.dspy-session ol.line{list-style:none;margin:0;padding:0 0 0 1.1rem;
border-left:2px solid var(--line)}
.dspy-session ol.line>li{margin:0;padding:0 0 1.5rem;position:relative}
.dspy-session ol.line>li:last-child{padding-bottom:.2rem}
.dspy-session ol.line>li.at::before{content:"";position:absolute;left:-1.59rem;top:.32rem;
width:.85rem;height:.85rem;border-radius:50%;background:var(--link);
border:2px solid var(--solid)}
.dspy-session ol.line>li.at.off::before{background:var(--solid);border-color:var(--muted)}
.dspy-session .turn header{display:flex;flex-wrap:wrap;align-items:baseline;gap:.15rem .6rem;
margin:0 0 .4rem}
.dspy-session .turn .run{display:flex;flex-wrap:wrap;gap:0 .9rem;margin:0 0 0 auto;
font-variant-numeric:tabular-nums}
.dspy-session .mark{font-size:.75rem;font-weight:600;border-radius:1rem;padding:.1rem .55rem;
background:var(--soft);color:var(--fg);max-width:100%}
.dspy-session .mark.score{background:var(--said)}
.dspy-session .mark.here{background:none;box-shadow:inset 0 0 0 1.5px var(--link)}
.dspy-session .mark.warn{background:var(--warn);color:var(--onwarn)}
.dspy-session dl{margin:0}
.dspy-session dt{font-size:.78rem;color:var(--muted);font-weight:500}
.dspy-session dd{margin:0 0 .5rem}
.dspy-session dd:last-child{margin-bottom:0}
.dspy-session dd dl,.dspy-session .steps dl,.dspy-session .facts,.dspy-session .about dl{
display:grid;grid-template-columns:minmax(4rem,max-content) minmax(0,1fr);column-gap:.9rem;
align-items:baseline}
.dspy-session :is(dd dl,.steps dl,.facts,.about dl)>dd{margin:0}
.dspy-session :is(dd dl,.steps dl,.facts,.about dl)>dt{max-width:11rem}
.dspy-session :is(dd dl,.steps dl,.about dl) dl dl{display:block;padding-left:.8rem}
.dspy-session :is(dd dl,.steps dl,.about dl) dl dl>dt{max-width:none}
.dspy-session dd :is(.text,code){display:block;min-width:5rem}
.dspy-session .more>section,.dspy-session .about dl{overflow-x:auto}
.dspy-session .text{white-space:pre-wrap;unicode-bidi:plaintext}
.dspy-session .said,.dspy-session .answered{border-radius:.7rem;padding:.55rem .85rem;
margin:.4rem 0}
.dspy-session .said{background:var(--said);margin-right:12%}
.dspy-session .answered{background:var(--card);border:1px solid var(--line);margin-left:12%}
.dspy-session .undone .said,.dspy-session .undone .answered,.dspy-session .other_answer .said,
.dspy-session .other_answer .answered,.dspy-session .summarized .said,
.dspy-session .summarized .answered{background:none;border:1px dashed var(--muted)}
.dspy-session .feedback{margin-left:12%;font-size:.9rem}
.dspy-session .more{font-size:.88rem;margin:.3rem 0 0 12%;color:var(--fg)}
.dspy-session .more>summary{color:var(--muted)}
.dspy-session .more[open]{border:1px solid var(--line);border-radius:.7rem;
padding:.5rem .85rem .8rem}
.dspy-session .steps{padding-left:1.4rem;margin:.2rem 0}
.dspy-session .steps>li{padding:.2rem 0 .4rem}
.dspy-session .steps>li::marker{color:var(--muted);font-variant-numeric:tabular-nums}
.dspy-session ul{margin:.2rem 0;padding-left:1.4rem}
.dspy-session del,.dspy-session ins{display:block;border-radius:.4rem;padding:.2rem .5rem;
margin:.2rem 0;text-decoration:none}
.dspy-session del{background:var(--bad);color:var(--onbad)}
.dspy-session ins{background:var(--good);color:var(--ongood)}
.dspy-session del .text,.dspy-session del code{text-decoration:line-through}
.dspy-session del dt,.dspy-session ins dt{color:inherit}
.dspy-session details.branch{border:1px solid var(--line);border-radius:.7rem;
padding:.4rem .85rem;margin:0 0 .6rem}
.dspy-session details.branch>summary{font-weight:600;font-size:.9rem}
.dspy-session details.branch>summary span{font-weight:400;color:var(--muted)}
.dspy-session details.branch>ol{margin:.8rem 0 .3rem .4rem}
.dspy-session .cut{border-top:2px dashed var(--muted);padding-top:.5rem;font-size:.9rem}
.dspy-session img{max-width:100%;max-height:20rem;border-radius:.4rem;display:block}
@media (max-width:40rem){
.dspy-session .said{margin-right:0}
.dspy-session .answered,.dspy-session .more,.dspy-session .feedback{margin-left:0}
.dspy-session ol.line{padding-left:.8rem}
.dspy-session ol.line>li.at::before{left:-1.29rem}
.dspy-session .turn .run{margin-left:0;width:100%}
.dspy-session table{font-size:.82rem}
.dspy-session :is(th,td){padding-right:.5rem}
.dspy-session :is(dd dl,.steps dl,.facts,.about dl)>dt{max-width:6.5rem}
.dspy-session :is(dd dl,.steps dl,.about dl) dl{display:block;padding-left:.8rem}
.dspy-session :is(dd dl,.steps dl,.about dl) dl>dt{max-width:none}
.dspy-session details.branch{padding:.4rem .6rem}
.dspy-session details.branch details.branch details.branch>ol{padding-left:0;border:0;margin-left:0}
}
"""

_PAGE: Final = """\
:root{color-scheme:light dark;--bg:#fff;--solid:#fff;--fg:#1b1f24;--muted:#59636e;--line:#d5dae0;
--card:#fff;--said:#e9f1fc;--soft:#e8ebef;--link:#1858b8;--good:#e0f4e6;--ongood:#0b5a2b;
--bad:#fde7e6;--onbad:#8f1d1d;--warn:#fdf0d2;--onwarn:#6b4300}
@media (prefers-color-scheme:dark){:root{--bg:#13161a;--solid:#13161a;--fg:#e7eaee;--muted:#a3adb8;
--line:#363d46;--card:#1a1e23;--said:#1b2b40;--soft:#2b323a;--link:#8ebcff;--good:#163524;
--ongood:#a4e5bd;--bad:#431c1e;--onbad:#ffc0bd;--warn:#3d2e0d;--onwarn:#f7d58c}}
html{background:var(--bg);-webkit-text-size-adjust:100%}
body{margin:0}
.dspy-session{max-width:52rem;margin:0 auto;padding:2rem 1.25rem 4rem}
.dspy-session .turn:target{outline:.15rem solid var(--link);outline-offset:.5rem;
border-radius:.4rem}
.dspy-session .skip{position:absolute;left:-100rem}
.dspy-session .skip:focus{position:static}
@media (max-width:40rem){.dspy-session{padding:1.2rem .9rem 3rem}}
@media print{:root{--bg:#fff;--solid:#fff;--fg:#000;--muted:#444;--line:#bbb;--card:#fff;
--link:#000;--said:#fff;--soft:#fff;--good:#fff;--ongood:#000;
--bad:#fff;--onbad:#000;--warn:#fff;--onwarn:#000}
.dspy-session{max-width:none;padding:0}
.dspy-session .said,.dspy-session .mark{border:1px solid var(--line)}
.dspy-session .turn header{break-after:avoid}
.dspy-session .said,.dspy-session .tiles div{break-inside:avoid}
.dspy-session .skip,.dspy-session nav{display:none}}
"""

_NOTEBOOK: Final = """\
.dspy-session{--bg:transparent;--solid:transparent;--fg:currentColor;--link:currentColor;
--card:transparent;
--muted:color-mix(in srgb,currentColor 78%,transparent);
--line:color-mix(in srgb,currentColor 25%,transparent);
--said:color-mix(in srgb,currentColor 8%,transparent);
--soft:color-mix(in srgb,currentColor 12%,transparent);
--good:color-mix(in srgb,#1a9c50 22%,transparent);--ongood:currentColor;
--bad:color-mix(in srgb,#d03a35 22%,transparent);--onbad:currentColor;
--warn:color-mix(in srgb,#d99a1c 25%,transparent);--onwarn:currentColor;
max-width:52rem;text-align:left}
"""

PAGE_STYLE: Final = _PAGE + _PARTS
"""For a page of its own."""
NOTEBOOK_STYLE: Final = _NOTEBOOK + _PARTS
"""For the output of a cell."""
