"""The web page that plays a replay: one file that loads nothing, in light and dark, on a telephone and on a wall.

In:  a record (`unmask.replay`).  Out: HTML.

The record stands in the page as data and is put on the screen as text only, so no token in it can act. The page's
security policy names the one script and the one style by their hashes and forbids everything else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any, NamedTuple


class Level(NamedTuple):
    """Colours of the tokens whose confidence is below `below`: (light, dark) paper, and where they are fresh."""

    below: float
    light: str
    dark: str
    fresh_light: str
    fresh_dark: str


# From orange to teal, which red-green blindness keeps apart; every text has a contrast of 4.5 or more on its paper.
LEVELS = (
    Level(0.3, "#fbd3bd", "#66300f", "#b4370a", "#ff9d6e"),
    Level(0.5, "#fbe4b8", "#574010", "#8a5a00", "#ffc861"),
    Level(0.7, "#f1efc4", "#454715", "#666600", "#e4de6c"),
    Level(0.9, "#d6edd3", "#1f492b", "#1f7a3d", "#87df9c"),
    Level(1.01, "#b9e3da", "#0f4a44", "#00695c", "#5fdccb"),
)


def level(confidence: float | None) -> int | None:
    """Which of `LEVELS`; None for what was written by no rule."""
    return None if confidence is None else next((i for i, one in enumerate(LEVELS) if confidence < one.below), 4)


def page(record: dict[str, Any]) -> str:
    """A page that plays the record, without network."""
    light = "".join(f"--c{i}:{one.light};--f{i}:{one.fresh_light};" for i, one in enumerate(LEVELS))
    dark = "".join(f"--c{i}:{one.dark};--f{i}:{one.fresh_dark};" for i, one in enumerate(LEVELS))
    levels = "".join(
        f".c{i}{{background:var(--c{i})}}.c{i}.fresh{{background:var(--f{i});color:var(--on)}}"
        for i in range(len(LEVELS))
    )
    style = STYLE.replace("/*light*/", light).replace("/*dark*/", dark) + levels
    data = json.dumps(record | {"levels": [one.below for one in LEVELS]}, ensure_ascii=False, allow_nan=False)
    for sign in "<>&":  # `</script>` in a token would end the data, `<!--` would hide what follows
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    policy = f"default-src 'none'; script-src {hash_of(SCRIPT)}; style-src {hash_of(style)}; base-uri 'none'"
    # The data last: nothing in them is taken for one of the names.
    filled = PAGE.replace("@policy@", policy).replace("@style@", style).replace("@script@", SCRIPT)
    return filled.replace("@data@", data)


def hash_of(text: str) -> str:
    """A script or style as a security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="@policy@">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Unmask replay</title>
<style>@style@</style>
</head>
<body>
<header>
<h1>unmask <span id="rule"></span></h1>
<details><summary>Settings</summary><dl id="settings"></dl></details>
</header>
<main id="text" lang="" aria-label="The text at this step"></main>
<noscript><p>This page plays its replay with a script, and scripts are switched off.</p></noscript>
<footer>
<div id="stats" role="status"></div>
<input id="at" type="range" min="0" step="1" value="0" aria-label="Step">
<div id="bar">
<div id="buttons">
<button id="first" title="To the start (Home)" aria-label="To the start">|◀</button>
<button id="back" title="One step back (←)" aria-label="One step back">◀&#xFE0E;</button>
<button id="play" title="Play or pause (space)">Play</button>
<button id="next" title="One step on (→)" aria-label="One step on">▶&#xFE0E;</button>
<select id="speed" aria-label="Speed" title="Speed"><option value="0.25">¼×</option><option value="0.5">½×</option>
<option value="1" selected>1×</option><option value="2">2×</option><option value="4">4×</option></select>
</div>
<div id="legend"><span>confidence</span></div>
</div>
</footer>
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="trace">@data@</script>
<script>@script@</script>
</body>
</html>
"""

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1b1f24;--soft:#636c76;--line:#d8dee4;--mask:#e7eaee;--work:#bcc5d0;
--panel:#f6f8fa;--back:#f0a884;--on:#fff;--accent:#00695c;/*light*/}
@media(prefers-color-scheme:dark){:root{--bg:#0f1317;--ink:#e6e9ec;--soft:#98a2ad;--line:#2b323a;--mask:#1f262d;
--work:#46525f;--panel:#171c22;--back:#a9532a;--on:#0f1317;--accent:#5fdccb;/*dark*/}}
*{box-sizing:border-box}[hidden]{display:none!important}
body{margin:0;min-height:100vh;min-height:100dvh;display:flex;flex-direction:column;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
header,main,footer{width:100%;max-width:68rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:1.1rem;display:flex;flex-wrap:wrap;gap:.2rem 1rem;align-items:baseline}
h1{font-size:1.05rem;margin:0;font-weight:650}h1 span{font-weight:400;color:var(--soft)}
details{font-size:.85rem;color:var(--soft)}details[open]{flex-basis:100%}summary{cursor:pointer}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .9rem;margin:.5rem 0;
font-family:ui-monospace,monospace;overflow-wrap:anywhere}
dt{color:var(--soft)}dd{margin:0;color:var(--ink)}
main{flex:1;padding-top:1rem;padding-bottom:2rem;white-space:pre-wrap;overflow-wrap:anywhere;tab-size:4;
font:15px/1.75 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono","Noto Sans Mono CJK SC",monospace}
.t{border-radius:3px;padding:1px 0;box-decoration-break:clone;-webkit-box-decoration-break:clone}
.given{color:var(--ink)}.answer{cursor:default}
.mask{display:inline-block;width:2.2ch;height:1.1em;margin:0 1px;background:var(--mask);vertical-align:-.2em}
.mask.work{background:var(--work)}
.mask.back{background:var(--back)}
.mask.part{background:repeating-linear-gradient(45deg,var(--work) 0 3px,var(--mask) 3px 6px)}
.special{font-size:.72em;color:var(--soft);border:1px solid var(--line);padding:0 .3em;margin:0 1px;background:none}
.special.fresh{color:var(--on)}
.again{border:0;padding:0}
.line::before{content:"\\21b5";font-size:.75em;opacity:.45}
.revised{text-decoration:underline dotted 2px;text-underline-offset:3px}
.t:hover,.picked{outline:2px solid var(--accent);outline-offset:0}
.given:hover,.given.picked{outline-color:var(--line)}
footer{position:sticky;bottom:0;max-width:none;padding-top:.6rem;padding-bottom:.7rem;background:var(--panel);
border-top:1px solid var(--line)}
footer>*{max-width:65.5rem;margin-left:auto;margin-right:auto}
#stats{display:flex;flex-wrap:wrap;gap:.1rem 1.3rem;font-size:.86rem;color:var(--soft);
font-variant-numeric:tabular-nums}
#stats b{color:var(--ink);font-weight:600}
#at{display:block;width:100%;margin:.45rem auto;accent-color:var(--accent)}
#bar{display:flex;flex-wrap:wrap;gap:.5rem 1.2rem;align-items:center;justify-content:space-between}
#buttons{display:flex;gap:.35rem}
button,select{font:inherit;font-size:.9rem;min-height:2.1rem;min-width:2.3rem;padding:0 .6rem;color:var(--ink);
background:var(--bg);border:1px solid var(--line);border-radius:6px;cursor:pointer}
#play{min-width:4.6rem;background:var(--accent);border-color:var(--accent);color:var(--on);font-weight:600}
button:hover,select:hover{border-color:var(--soft)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
#legend{display:flex;flex-wrap:wrap;gap:.25rem;align-items:center;font-size:.76rem;color:var(--soft)}
#legend .t{padding:1px .45em;color:var(--ink);cursor:default}#legend .mask{padding:0}#legend .fresh{color:var(--on)}
#legend span:first-child{margin-right:.2rem}#legend .gap{margin-left:.5rem}
#tip{position:absolute;z-index:2;max-width:min(22rem,calc(100vw - 1.5rem));padding:.5rem .7rem;border-radius:8px;
font-size:.82rem;line-height:1.45;background:var(--ink);color:var(--bg);box-shadow:0 4px 18px #0005;
overflow-wrap:anywhere;pointer-events:none;white-space:pre-wrap}
#tip b{font-family:ui-monospace,Menlo,Consolas,monospace;font-weight:600}
@media(max-width:560px){header,main,footer{padding-left:.85rem;padding-right:.85rem}
main{font-size:14px}#buttons{width:100%}#play{flex:1}#stats{gap:.1rem .9rem}}
"""

SCRIPT = r"""
"use strict";
const trace = JSON.parse(document.getElementById("trace").textContent);
const get = id => document.getElementById(id);
const special = new Set(trace.special), last = trace.steps.length;
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
let cells = [], shown = -1, timer = null, picked = null;

function add(parent, name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  parent.append(made);
  return made;
}
const cell = (id, text, given) => ({id, text, given, step: 0, frame: 0, sure: null, before: []});

function put(place, id, text, step, frame, sure) {
  const c = cells[place];
  if (c.id !== null) c.before.push([c.step, c.id, c.sure]);
  Object.assign(c, {id, text, step, frame, sure});
}
function play_entry(entry, frame) {
  for (const [place, more] of entry.grown)
    cells.splice(place, 0, ...Array.from({length: more}, () => cell(null, null, false)));
  for (const place of entry.reopened) put(place, null, null, 0, frame, null);
  for (const [place, id, text, sure] of entry.written) put(place, id, text, entry.step, frame, sure);
  for (const [place, text] of entry.respelt) cells[place].text = text;
}
function go_to(frame) {
  if (shown < 0 || frame < shown) { cells = trace.places.map(p => cell(...p)); shown = 0; }
  while (shown < frame) { shown++; play_entry(trace.steps[shown - 1], shown); }
}
function level(sure) {
  const found = trace.levels.findIndex(below => sure < below);
  return found < 0 ? trace.levels.length - 1 : found;
}
function look(i, span) {
  const c = cells[i], before = cells[i - 1];
  const at_work = span && i >= span[0] && i <= span[1];
  if (c.id === null) return ["", "t mask" + (shown && c.frame === shown ? " back" : at_work ? " work" : "")];
  const fresh = c.frame === shown && shown && !c.given ? " fresh" : "", revised = c.before.length ? " revised" : "";
  if (c.text === null) return ["", "t mask part"];
  const sure = c.given || c.sure === null ? "" : " c" + level(c.sure);
  if (special.has(c.id)) {
    const again = before && before.id === c.id && !c.given;
    return [again ? "·" : c.text, "t special" + (again ? " again" : "") + (fresh && sure ? sure + fresh : "")];
  }
  const line = /^[\r\n]+$/.test(c.text) && !c.given ? " line" : "";
  return [c.text, "t " + (c.given ? "given" : "answer" + sure + fresh + revised + line)];
}
function draw() {
  const main = get("text"), span = (shown ? trace.steps[shown - 1] : trace).span;
  for (let i = main.childElementCount; i < cells.length; i++) add(main, "span").dataset.place = i;
  while (main.childElementCount > cells.length) main.lastElementChild.remove();
  let written = 0, free = 0, first = null;
  cells.forEach((c, i) => {
    const [text, kind] = look(i, span), s = main.children[i];
    if (s.textContent !== text) s.textContent = text;
    if (s.className !== kind) s.className = kind;
    if (!c.given) { free++; if (c.id !== null && c.sure !== null) written++; }
    if (!first && kind.startsWith("t mask") && span && i >= span[0]) first = s;
  });
  const entry = shown ? trace.steps[shown - 1] : {step: 0, passes: 0, block: 0}, stats = get("stats");
  const final = last ? trace.steps[last - 1] : entry;
  stats.replaceChildren();
  const tell = (value, what) => { const s = add(stats, "span"); add(s, "b", value); s.append(" " + what); };
  tell(entry.step + " / " + final.step, "steps");
  tell(entry.passes, "forward passes");
  tell(written + " / " + free, "tokens");
  tell(entry.passes ? (written / entry.passes).toFixed(2) : "–", "tokens per pass");
  const at = add(stats, "span", "block ");
  add(at, "b", entry.block + 1);
  get("at").value = shown;
  get("at").setAttribute("aria-valuetext", "step " + entry.step + " of " + final.step);
  if (picked !== null) tip(picked);
  if (timer && first) {
    const box = first.getBoundingClientRect(), room = innerHeight - document.querySelector("footer").offsetHeight;
    if (box.top < 0 || box.bottom > room) scrollBy({top: box.top - room / 3, behavior: calm ? "auto" : "smooth"});
  }
}
function show(frame) { go_to(Math.max(0, Math.min(last, frame))); draw(); }

function pause() { clearTimeout(timer); timer = null; get("play").textContent = "Play"; }
function play() {
  if (shown >= last) show(0);
  get("play").textContent = "Pause";
  const wait = Math.max(60, Math.min(400, 15000 / Math.max(1, last)));
  const tick = () => {
    show(shown + 1);
    if (shown >= last) pause(); else timer = setTimeout(tick, wait / Number(get("speed").value));
  };
  timer = setTimeout(tick, wait);
}
const toggle = () => timer ? pause() : play();
const jump = frame => { pause(); show(frame); };

function percent(sure) { return sure === null ? "" : ", confidence " + sure.toFixed(3); }
function named(id) { return JSON.stringify(trace.tokens[id] ?? "?"); }
function tip(place) {
  const box = get("tip"), c = cells[place], s = get("text").children[place];
  for (const old of document.querySelectorAll(".picked")) old.classList.remove("picked");
  picked = c ? place : null;
  box.hidden = !c;
  if (!c) return;
  s.classList.add("picked");
  box.replaceChildren();
  if (c.id === null) add(box, "b", "open");
  else { add(box, "b", named(c.id)); box.append("  id " + c.id); }
  box.append("\nplace " + place);
  if (c.given) box.append(", given");
  else if (c.id !== null && c.sure === null) box.append(shown && c.step ? ", filled after the end" : "");
  else if (c.id !== null) box.append(", written at step " + c.step + percent(c.sure));
  if (c.text === null && c.id !== null) box.append("\na part of a letter; its other tokens are still open");
  const parts = [];
  for (let i = place - 1; i >= 0 && c.id !== null && cells[i].text === ""; i--) parts.unshift(cells[i]);
  if (parts.length) box.append("\na letter of several tokens: " + [...parts, c].map(p => p.id).join(", "));
  for (const [step, id, sure] of c.before) box.append("\nearlier, at step " + step + ": " + named(id) + percent(sure));
  const at = s.getClientRects()[0] || s.getBoundingClientRect(), width = document.documentElement.clientWidth;
  box.style.left = Math.max(8, Math.min(at.left, width - box.offsetWidth - 8)) + scrollX + "px";
  const above = at.top - box.offsetHeight - 8;
  box.style.top = (above > 0 ? above : at.bottom + 8) + scrollY + "px";
}
const place_of = event => event.target === get("text") ? -1 : Number(event.target.dataset.place);

get("rule").textContent = trace.rule + (trace.cache !== "none" ? " + " + trace.cache + " cache" : "");
document.title = "Unmask replay: " + get("rule").textContent;
for (const [name, value] of Object.entries(trace.settings)) {
  add(get("settings"), "dt", name);
  add(get("settings"), "dd", typeof value === "string" ? value : JSON.stringify(value));
}
document.querySelector("details").hidden = !Object.keys(trace.settings).length;
trace.levels.forEach((below, i) => {
  const from = i ? trace.levels[i - 1] : 0, until = Math.min(1, below);
  add(get("legend"), "span", from.toFixed(1) + "–" + until.toFixed(1), "t c" + i);
});
add(get("legend"), "span", "new", "t gap fresh c" + (trace.levels.length - 1));
if (trace.steps.some(s => s.reopened.length)) {
  add(get("legend"), "span", "", "t gap mask back");
  add(get("legend"), "span", "taken back");
  add(get("legend"), "span", "revised", "t revised");
}
get("at").max = last;
get("at").addEventListener("input", () => jump(Number(get("at").value)));
get("play").addEventListener("click", toggle);
get("first").addEventListener("click", () => jump(0));
get("back").addEventListener("click", () => jump(shown - 1));
get("next").addEventListener("click", () => jump(shown + 1));
get("text").addEventListener("pointerover", event => { if (event.pointerType === "mouse") tip(place_of(event)); });
get("text").addEventListener("pointerleave", event => { if (event.pointerType === "mouse") tip(-1); });
document.addEventListener("click", event => tip(get("text").contains(event.target) ? place_of(event) : -1));
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const on = event.target.tagName, key = event.key;
  if (on === "SELECT" || (key === " " && (on === "BUTTON" || on === "SUMMARY"))) return;
  const what = {" ": toggle, ArrowRight: () => jump(shown + 1), ArrowLeft: () => jump(shown - 1), Home: () => jump(0),
    End: () => jump(last), Escape: () => tip(-1)}[key];
  if (what) { event.preventDefault(); what(); }
});
const asked = /^#step=(\d+)$/.exec(location.hash);
show(asked ? Number(asked[1]) : 0);
if (!asked && !calm) play();
"""
