const PAGE = 60;  // cards at first, and with each "Show more"

// An element of a class.
function styled(name, tag, text, ...children) {
  const element = make(tag, text, ...children);
  if (name) element.className = name;
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

// ---- a chart: of a card, or with axes and zoom

const hashAt = (k) => (Number.isInteger(k) && data.commits[k] ? data.commits[k].hash.slice(0, 7) : "");

// The range of what is shown, with room above and below.
function rangeOf(one) {
  const ends = (one.i || []).flatMap((pair) => pair || []).filter((x) => x !== null);
  const numbers = one.v.filter((x) => x !== null).concat(ends);
  if (!numbers.length) return [0, 1];
  const low = Math.min(...numbers), high = Math.max(...numbers);
  const room = (high - low) * 0.12 || Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
}

// Dots at what changed, as elements over the chart, which follow the theme and can be read out.
function annotate(self, one) {
  for (const old of self.over.querySelectorAll(".mark")) old.remove();
  for (const e of one.events) {
    const left = self.valToPos(e.k, "x"), value = one.v[e.k];
    if (left < -1 || left > self.over.clientWidth + 1) continue;
    const mark = styled(`mark ${kind(e)}`, "span");
    mark.style.left = `${left}px`;
    mark.style.top = `${value === null ? self.over.clientHeight : self.valToPos(value, "y")}px`;
    self.over.append(mark);
  }
}

// Needs ``holder`` in the page: its width is the chart's.
function chart(one, holder, full) {
  const last = data.commits.length - 1, line = tint("--line"), fill = tint("--fill"), own = side();
  const places = data.commits.map((_, k) => k), known = one.v.filter((x) => x !== null).length;
  const spread = one.i ? [1, 0].map((k) => one.i.map((pair) => (pair ? pair[k] : null))) : [];
  const edge = { stroke: "transparent", width: 0, points: { show: false }, spanGaps: true };
  const axes = full
    ? [{ ...own, values: (self, splits) => splits.map(hashAt), incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], space: 70 },
      { ...own, size: (self, texts) => 24 + 7 * Math.max(4, ...(texts || []).map((text) => text.length)),
        values: (self, splits) => splits.map((v) => shown(v, one.unit)) }]
    : [{ show: false }, { show: false }];
  const wide = (self, low, high) => (low < high ? [low, high] : [low - 0.5, high + 0.5]);
  const drawn = new uPlot({
    width: holder.clientWidth,
    height: holder.clientHeight,
    padding: full ? [8, 28, 0, 0] : [6, 6, 6, 6],
    scales: { x: { time: false, range: wide }, y: { range: rangeOf(one) } },
    axes,
    series: [{}, { stroke: line, width: 1.6, spanGaps: true, fill: one.i ? undefined : fill,
      points: { show: known <= 60, size: full ? 5 : 3.6, fill: line, width: 0 } }, ...spread.map(() => edge)],
    bands: one.i ? [{ series: [2, 3], fill }] : [],
    cursor: { x: full, y: false, points: { show: false }, drag: { x: full && last > 0, y: false } },
    legend: { show: false },
    hooks: { draw: [(self) => annotate(self, one)], setCursor: [(self) => tell(self, one)] },
  }, [places, one.v, ...spread], holder);
  drawn.over.addEventListener("mouseleave", () => { at("tip").hidden = true; });
  drawn.root.setAttribute("role", "img");
  drawn.root.setAttribute("aria-label", `${one.name} ${one.title} over commits`);
  return drawn;
}

function tell(self, one) {
  const { left, top, idx: k } = self.cursor, tip = at("tip");
  tip.hidden = left === undefined || left < 0 || k === null || k === undefined || (one.v[k] === null && !one.failed.has(k));
  if (tip.hidden) return;
  const commit = data.commits[k], found = one.events.find((e) => e.k === k);
  const value = one.failed.has(k) ? "failed" : shown(one.v[k], one.unit);
  tip.replaceChildren(make("b", value), `${commit.hash} ${day(commit.date)} ${commit.subject}`);
  if (found) tip.append(make("b", `${found.verdict} ${change(found.ratio)} (${found.confidence})`), found.why);
  const { x, y } = self.over.getBoundingClientRect();
  // within an open dialog, which covers all that lies outside it
  (at("detail").open ? at("detail") : document.body).append(tip);
  tip.style.left = `${Math.max(4, Math.min(x + left + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.min(y + top + 14, innerHeight - tip.offsetHeight - 8)}px`;
}

// ---- cards, and one of them in full

const tone = (one) => (one.growth > 1.005 ? "worse" : one.growth < 0.995 ? "better" : "");
let charts = [], open = null;  // what uPlot drew on cards; the series that is shown in full, and its chart

function card(one) {
  const button = styled("card", "button");
  button.type = "button";
  const name = styled("name", "div", null, make("span", one.title), styled(`ratio ${tone(one)}`, "span", change(one.growth)));
  const unit = one.measure.replaceAll("_", " ");
  const from = one.first === one.last ? "" : `${shown(one.first, one.unit)} → `;
  button.append(name, styled("what", "div", `${one.name.split(".").slice(0, -1).join(" ")}: ${unit}`),
    styled("chart", "div"), styled("now", "div", from + shown(one.last, one.unit)));
  button.addEventListener("click", () => detail(one));
  return button;
}

// A row for each commit that was measured.
function rowsOf(one) {
  let last = null;
  return data.commits.flatMap((commit, k) => {
    if (one.v[k] === null && !one.failed.has(k)) return [];
    const found = one.events.find((e) => e.k === k), value = one.v[k];
    const ratio = value !== null && last ? value / last : null;
    if (value !== null) last = value;
    const why = found && found.why ? [styled("why", "div", `Intended: ${found.why}`)] : [];
    return [make("tr", null, make("td", null, styled("hash", "span", commit.hash)), styled("day", "td", day(commit.date)),
      make("td", commit.subject, ...why), styled("number", "td", one.failed.has(k) ? "failed" : shown(value, one.unit)),
      styled(`number ${found ? kind(found) : ""}`, "td", ratio === null ? "" : change(ratio)))];
  });
}

function detail(one) {
  const close = styled("close", "button", "✕"), title = make("h3", one.title), holder = styled("detail", "div");
  close.type = "button";
  close.setAttribute("aria-label", "Close");
  close.addEventListener("click", () => at("detail").close());
  title.id = "detail-title";
  const head = make("tr", null, make("th", "commit"), styled("day", "th", "date"), make("th"),
    styled("number", "th", one.measure.replaceAll("_", " ")), styled("number", "th", "change"));
  const words = Object.entries(one.case).map(([name, value]) => `${name} ${value}`).join(", ");
  const table = make("table", null, make("thead", null, head), make("tbody", null, ...rowsOf(one)));
  at("detail-body").replaceChildren(close, title, make("small", `${one.name}${words ? `: ${words}` : ""}`), holder, styled("commits", "div", null, table));
  at("detail").showModal();
  open = { one, chart: chart(one, holder, true) };
}
function closed() {
  at("tip").hidden = true;
  document.body.append(at("tip"));
  if (open) open.chart.destroy();
  open = null;
}
at("detail").addEventListener("close", closed);
at("detail").addEventListener("click", (event) => { if (event.target === at("detail")) at("detail").close(); });

// ---- choosing

const filters = ["suite", "measure", "method", "family"];
let limit = PAGE, picked = null;
function fill(id, values) {
  const known = [...new Set(values)].filter(Boolean).sort();
  choose(at(id), [["", "any"], ...known.map((v) => [v, v.replaceAll("_", " ")])], "");
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
  const nothing = styled("empty", "p", "Nothing of that kind. “Show: everything” lists what stayed as it was, too.");
  for (const drawn of charts) drawn.destroy();
  const listed = found.slice(0, limit);
  at("cards").replaceChildren(...(found.length ? listed.map(card) : [nothing]));
  charts = [...at("cards").querySelectorAll(".chart")].map((holder, k) => chart(listed[k], holder, false));
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
  at("reasons").replaceChildren(...reasons.map((x) => make("li", x.why)));
  restart();
}
data.commits.map((commit, k) => [commit, k]).reverse().forEach(([commit, k]) => {
  const events = data.series.flatMap((one) => one.events.filter((e) => e.k === k));
  const count = (name) => events.filter((e) => kind(e) === name).length;
  const worse = events.filter(grave).length, better = count("better"), intended = count("intended");
  const part = (name, sign, n) => styled(name, "span", n ? `${sign} ${n}` : "");
  const tally = styled("tally", "span", null, part("worse", "▲", worse), part("intended", "△", intended), part("better", "▼", better));
  const button = make("button", null, styled("hash", "span", commit.hash), styled("when", "span", day(commit.date)),
    styled("subject", "span", commit.subject), tally);
  button.type = "button";
  button.dataset.k = k;
  button.title = `${worse} worse, ${intended} intended, ${better} better`;
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => pick(k));
  at("commits").append(make("li", null, button));
});
const dates = data.commits.map((c) => c.date);
at("about").textContent = dates.length
  ? `${data.series.length} numbers at ${dates.length} commits, ${day(Math.min(...dates))} to ${day(Math.max(...dates))}, on the machine “${data.machine}”${data.left_out ? `; ${data.left_out} earlier commits are left out` : ""}`
  : "No commit was measured.";
if (!data.series.some((one) => one.events.length)) at("which").value = "all";
show();
at("filters").addEventListener("submit", (event) => event.preventDefault());
follow(() => {
  show();
  if (!open) return;
  open.chart.destroy();
  open.chart = chart(open.one, at("detail-body").querySelector(".detail"), true);
});
