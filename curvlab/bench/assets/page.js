"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 60, SVG = "http" + "://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// ---- numbers as people read them

const BINARY = ["B", "KiB", "MiB", "GiB", "TiB"], DECIMAL = ["", "k", "M", "G", "T", "P"];
function short(x) {
  const digits = Math.abs(x) >= 100 ? 0 : Math.abs(x) >= 10 ? 1 : 2;
  return Number.isInteger(x) ? String(x) : Math.abs(x) < 0.01 ? x.toPrecision(3) : x.toFixed(digits);
}
function scaled(x, base, names) {
  let k = 0;
  while (Math.abs(x) >= base && k < names.length - 1) { x /= base; k += 1; }
  return [short(Number(x.toPrecision(4))), names[k]];
}
function shown(x, unit) {
  if (x === null || x === undefined) return "–";
  if (unit === "bytes") return scaled(x, 1024, BINARY).join(" ");
  if (unit === "seconds") return x < 1e-3 ? `${short(x * 1e6)} µs` : x < 1 ? `${short(x * 1e3)} ms` : `${short(x)} s`;
  const [number, prefix] = Math.abs(x) >= 1e4 ? scaled(x, 1000, DECIMAL) : [short(Number(x.toPrecision(5))), ""];
  return `${number} ${prefix}${unit}`.trim();
}
function change(ratio) {
  if (ratio === null || ratio === undefined) return "";
  const percent = (ratio - 1) * 100;
  if (ratio >= 2) return `× ${short(Number(ratio.toPrecision(3)))}`;
  if (Math.abs(percent) < 0.05) return "±0 %";
  return `${percent > 0 ? "+" : "−"}${short(Number(Math.abs(percent).toPrecision(2)))} %`;
}
const day = (date) => new Date(date * 1000).toISOString().slice(0, 10);

// ---- what the series are

for (const one of data.series) {
  const benchmark = data.benchmarks[one.b];
  one.name = benchmark.name;
  one.suite = benchmark.name.split(".")[0];
  one.measure = benchmark.measure;
  one.unit = benchmark.unit;
  one.case = Object.fromEntries(benchmark.names.map((name, k) => [name, one.c[k]]));
  one.title = one.c.join(" · ") || benchmark.name.split(".").pop();
  one.events = (one.e || []).map(([k, before, verdict, ratio, confidence, why]) => (
    { k, before, verdict, ratio, confidence, why: why === undefined ? "" : data.intended[why].why }));
  one.failed = new Set(one.f || []);
  one.v = one.v.flatMap(([count, value]) => Array(count).fill(value));
  const numbers = one.v.filter((x) => x !== null);
  one.first = one.v.slice(one.s || 0).find((x) => x !== null); one.last = numbers[numbers.length - 1];
  one.growth = one.first ? one.last / one.first : 1;
  one.text = [one.name, one.measure, ...one.c].join(" ").toLowerCase();
}
const grave = (e) => e.verdict === "worse" || e.verdict === "failed";
const kind = (e) => (grave(e) ? e.verdict : e.verdict === "intended" ? "intended" : "better");

// ---- a chart

function chart(one, width, height, labeled) {
  const left = labeled ? 70 : 2, right = 6, top = 8, bottom = labeled ? 22 : 6;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${one.name} ${one.title} over commits` });
  const ends = (one.i || []).flatMap((pair) => pair || []).filter((x) => x !== null);
  const numbers = one.v.filter((x) => x !== null).concat(ends);
  let low = Math.min(...numbers), high = Math.max(...numbers);
  if (!numbers.length) return svg;
  const room = (high - low) * 0.12 || Math.abs(high) * 0.1 || 1;
  low -= room; high += room;
  const n = data.commits.length;
  const x = (k) => left + (n > 1 ? (k * (width - left - right)) / (n - 1) : (width - left - right) / 2);
  const y = (v) => top + ((high - v) * (height - top - bottom)) / (high - low);
  svg.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  if (labeled) {
    for (const v of [low + room, high - room]) {
      svg.append(draw("text", { x: left - 6, y: y(v) + 3, "text-anchor": "end" }, shown(v, one.unit)));
      if (high - low === 2 * room) break;
    }
    const step = Math.max(1, Math.ceil(n / 9));
    data.commits.forEach((c, k) => {
      if (k % step === 0) svg.append(draw("text", { x: x(k), y: height - 6, "text-anchor": k === 0 ? "start" : k === n - 1 ? "end" : "middle" }, c.hash.slice(0, 7)));
    });
  }
  const known = one.v.map((v, k) => [k, v]).filter(([, v]) => v !== null);
  const path = known.map(([k, v], i) => `${i ? "L" : "M"}${x(k).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  if (one.i) {
    const bounded = known.filter(([k]) => one.i[k]);
    const over = bounded.map(([k]) => `${x(k).toFixed(1)} ${y(one.i[k][1]).toFixed(1)}`);
    const under = bounded.map(([k]) => `${x(k).toFixed(1)} ${y(one.i[k][0]).toFixed(1)}`).reverse();
    svg.append(draw("polygon", { class: "band", points: [...over, ...under].join(" ") }));
  } else if (known.length > 1) {
    const floor = height - bottom;
    svg.append(draw("path", { class: "area", d: `${path}L${x(known[known.length - 1][0]).toFixed(1)} ${floor}L${x(known[0][0]).toFixed(1)} ${floor}Z` }));
  }
  svg.append(draw("path", { class: "line", d: path }));
  for (const [k, v] of known) svg.append(draw("circle", { class: "point", cx: x(k), cy: y(v), r: known.length > 60 ? 0 : 1.8 }));
  for (const e of one.events) {
    const v = one.v[e.k];
    svg.append(draw("circle", { class: `mark ${kind(e)}`, cx: x(e.k), cy: v === null ? height - bottom : y(v), r: 4.5 }));
  }
  const wide = n > 1 ? (width - left - right) / (n - 1) : width;
  for (let k = 0; k < n; k += 1) {
    if (one.v[k] === null && !one.failed.has(k)) continue;
    const hit = draw("rect", { class: "hit", x: x(k) - wide / 2, y: 0, width: wide, height });
    hit.addEventListener("mousemove", (event) => tell(event, one, k));
    hit.addEventListener("mouseleave", () => { at("tip").hidden = true; });
    svg.append(hit);
  }
  return svg;
}
function tell(event, one, k) {
  const tip = at("tip"), commit = data.commits[k], found = one.events.find((e) => e.k === k);
  const value = one.failed.has(k) ? "failed" : shown(one.v[k], one.unit);
  tip.replaceChildren(make("b", {}, value), `${commit.hash} ${day(commit.date)} ${commit.subject}`);
  if (found) tip.append(make("b", {}, `${found.verdict} ${change(found.ratio)} (${found.confidence})`), found.why);
  tip.hidden = false;
  tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 8)}px`;
}

// ---- cards, and one of them in full

const tone = (one) => (one.growth > 1.005 ? "worse" : one.growth < 0.995 ? "better" : "");
function card(one) {
  const button = make("button", { type: "button", class: "card" });
  const name = make("div", { class: "name" }, make("span", {}, one.title), make("span", { class: `ratio ${tone(one)}` }, change(one.growth)));
  const unit = one.measure.replaceAll("_", " ");
  button.append(name, make("div", { class: "what" }, `${one.name.split(".").slice(0, -1).join(" ")}: ${unit}`), chart(one, 260, 74, false));
  const from = one.first === one.last ? "" : `${shown(one.first, one.unit)} → `;
  button.append(make("div", { class: "now" }, from + shown(one.last, one.unit)));
  button.addEventListener("click", () => detail(one));
  return button;
}
function detail(one) {
  const close = make("button", { type: "button", class: "close", "aria-label": "Close" }, "✕");
  close.addEventListener("click", () => at("detail").close());
  const rows = make("tbody");
  let last = null;
  data.commits.forEach((commit, k) => {
    if (one.v[k] === null && !one.failed.has(k)) return;
    const found = one.events.find((e) => e.k === k), value = one.v[k];
    const mark = found ? kind(found) : "";
    const ratio = value !== null && last ? value / last : null;
    rows.append(make("tr", {},
      make("td", {}, make("span", { class: "hash" }, commit.hash)), make("td", { class: "day" }, day(commit.date)), make("td", {}, commit.subject, ...(found && found.why ? [make("div", { class: "why" }, `Intended: ${found.why}`)] : [])),
      make("td", { class: "number" }, one.failed.has(k) ? "failed" : shown(value, one.unit)),
      make("td", { class: `number ${mark}` }, ratio === null ? "" : change(ratio))));
    if (value !== null) last = value;
  });
  const head = make("tr", {}, make("th", {}, "commit"), make("th", {}, "date"), make("th", {}, ""),
    make("th", { class: "number" }, one.measure.replaceAll("_", " ")), make("th", { class: "number" }, "change"));
  const words = Object.entries(one.case).map(([name, value]) => `${name} ${value}`).join(", ");
  at("detail-body").replaceChildren(close, make("h3", { id: "detail-title" }, one.title), make("small", {}, `${one.name}${words ? `: ${words}` : ""}`),
    chart(one, 840, 260, true), make("table", {}, make("thead", {}, head), rows));
  at("detail").showModal();
}
at("detail").addEventListener("click", (event) => { if (event.target === at("detail")) at("detail").close(); });

// ---- choosing

const filters = ["suite", "measure", "method", "family"];
let limit = PAGE, picked = null;
function fill(id, values) {
  const known = [...new Set(values)].filter(Boolean).sort();
  at(id).replaceChildren(make("option", { value: "" }, "any"), ...known.map((v) => make("option", { value: v }, v.replaceAll("_", " "))));
}
const facet = { suite: (s) => s.suite, measure: (s) => s.measure, method: (s) => s.case.method || "", family: (s) => s.case.family || "" };
for (const id of filters) fill(id, data.series.map(facet[id]));

function wanted(one) {
  if (filters.some((id) => at(id).value && at(id).value !== facet[id](one))) return false;
  if (!at("search").value.toLowerCase().split(/\s+/).every((word) => one.text.includes(word))) return false;
  const events = picked === null ? one.events : one.events.filter((e) => e.k === picked);
  const which = at("which").value;
  if (which === "all") return picked === null || events.length > 0;
  if (which === "changed") return events.length > 0;
  return events.some((e) => (which === "worse" ? grave(e) : kind(e) === which));
}
const latest = (one) => Math.max(-1, ...one.events.map((e) => e.k));
const orders = {
  growth: (a, b) => b.growth - a.growth,
  fall: (a, b) => a.growth - b.growth,
  latest: (a, b) => latest(b) - latest(a) || b.growth - a.growth,
  name: (a, b) => a.name.localeCompare(b.name) || a.title.localeCompare(b.title),
};
function show() {
  const found = data.series.filter(wanted).sort(orders[at("order").value]);
  at("count").textContent = `${found.length} of ${data.series.length}`;
  const nothing = make("p", { class: "empty" }, "Nothing of that kind. “Show: everything” lists what stayed as it was, too.");
  at("cards").replaceChildren(...(found.length ? found.slice(0, limit).map(card) : [nothing]));
  at("more").hidden = found.length <= limit;
}
function restart() { limit = PAGE; show(); }
for (const id of [...filters, "which", "order"]) at(id).addEventListener("change", restart);
at("search").addEventListener("input", restart);
at("more").addEventListener("click", () => { limit += PAGE; show(); });
at("clear").addEventListener("click", () => {
  for (const id of filters) at(id).value = "";
  at("search").value = ""; at("which").value = "changed"; pick(null);
});

// ---- commits

function pick(k) {
  picked = picked === k ? null : k;
  [...at("commits").querySelectorAll("button")].forEach((b) => b.setAttribute("aria-pressed", String(Number(b.dataset.k) === picked && picked !== null)));
  const reasons = picked === null ? [] : data.intended.filter((x) => x.commit === data.commits[picked].hash);
  at("reasons").replaceChildren(...reasons.map((x) => make("li", {}, x.why)));
  restart();
}
data.commits.map((commit, k) => [commit, k]).reverse().forEach(([commit, k]) => {
  const events = data.series.flatMap((one) => one.events.filter((e) => e.k === k));
  const count = (name) => events.filter((e) => kind(e) === name).length;
  const worse = events.filter(grave).length, better = count("better"), intended = count("intended");
  const part = (name, sign, n) => make("span", { class: name }, n ? `${sign} ${n}` : "");
  const tally = make("span", { class: "tally" }, part("worse", "▲", worse), part("intended", "△", intended), part("better", "▼", better));
  const button = make("button", { type: "button", "aria-pressed": "false", "data-k": k, title: `${worse} worse, ${intended} intended, ${better} better` },
    make("span", { class: "hash" }, commit.hash), make("span", { class: "when" }, day(commit.date)), make("span", { class: "subject" }, commit.subject), tally);
  button.addEventListener("click", () => pick(k));
  at("commits").append(make("li", {}, button));
});
const dates = data.commits.map((c) => c.date);
at("about").textContent = dates.length
  ? `${data.series.length} numbers at ${dates.length} commits, ${day(Math.min(...dates))} to ${day(Math.max(...dates))}, on the machine “${data.machine}”${data.left_out ? `; ${data.left_out} earlier commits are left out` : ""}`
  : "No commit was measured.";
if (!data.series.some((one) => one.events.length)) at("which").value = "all";
show();
