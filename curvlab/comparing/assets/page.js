const GRID = 400;  // positions at which curves with positions of their own are compared

// ---- colors: of Okabe and Ito for light paper, brighter ones for dark; then the same ones dashed

const LIGHT = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B87A00", "#444444"];
const DARK = ["#4FA8E0", "#FF8A3D", "#2CC79A", "#E79CC4", "#9AD4F7", "#F2B84B", "#C4C9CE"];
const DASHES = [[], [8, 4], [2, 3], [10, 4, 2, 4]];
const colorOf = (k) => (isDark() ? DARK : LIGHT)[k % LIGHT.length];
const dashOf = (k) => DASHES[Math.floor(k / LIGHT.length) % DASHES.length];

// ---- small tools

function short(x) {
  if (x === null || x === undefined) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e6 || size < 1e-3) return x.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(Number(x.toPrecision(4)));
}
const middle = (sorted) => {
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

// ---- curves

const off = new Set();  // rows that the reader unchecked
let chart = null, task = null, plan = [], window_ = null;

function points(run, metric, axis) {
  const lines = metric in run.e.y ? run.e : metric in run.s.y ? run.s : null;
  if (lines === null) return null;
  const found = [];
  lines.x[axis].forEach((x, k) => {
    if (x !== null && !(at("log-x").checked && x <= 0)) found.push([x, lines.y[metric][k]]);
  });
  found.sort((a, b) => a[0] - b[0]);
  return found.length ? found : null;
}

// Along straight lines between points; null beyond the ends and beside values that are not finite.
function sampled(curve, grid) {
  const found = new Array(grid.length).fill(null);
  let k = 0;
  grid.forEach((x, i) => {
    while (k < curve.length - 1 && curve[k + 1][0] <= x) k += 1;
    const [a, b] = curve[k];
    if (x === a) found[i] = b;
    else if (x > a && k < curve.length - 1 && b !== null && curve[k + 1][1] !== null) {
      const [c, d] = curve[k + 1];
      found[i] = b + (d - b) * (x - a) / (c - a);
    }
  });
  return found;
}

function gridOf(curves) {
  const places = new Set();
  for (const curve of curves) for (const [x] of curve) places.add(x);
  let sorted = [...places].sort((a, b) => a - b);
  if (sorted.length <= GRID) return sorted;
  let low = sorted[0], high = sorted[sorted.length - 1];
  const ends = [low, high];
  if (window_) [low, high] = [Math.max(low, window_[0]), Math.min(high, window_[1])];
  const log = at("log-x").checked;
  const steps = Array.from({ length: GRID }, (_, i) => {
    const part = i / (GRID - 1);
    return log ? low * (high / low) ** part : low + (high - low) * part;
  });
  return [...new Set([...steps, ...ends])].sort((a, b) => a - b);
}

function matching() {
  const words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (row) => [row.label, ...Object.entries(row.differs).map(([k, v]) => `${k}=${v}`),
    ...row.runs.flatMap((run) => [run.name, run.state])].join(" ").toLowerCase();
  return task.rows.map((row, k) => ({ row, k })).filter(({ row }) => {
    const all = text(row);
    return words.every((word) => all.includes(word));
  });
}

function drawn() {
  return matching().filter(({ k }) => !off.has(k)).slice(0, Number(at("most").value));
}

// What uPlot draws: positions, columns of values, a description of each, and the bands between some.
function columns() {
  const metric = at("metric").value, axis = at("axis").value, how = at("seeds").value;
  const curves = drawn().map(({ row, k }, place) => ({
    row, k, place, curves: row.runs.map((run) => points(run, metric, axis)).filter(Boolean) }))
    .filter(({ curves }) => curves.length);
  const grid = gridOf(curves.flatMap(({ curves }) => curves));
  const values = [], series = [], bands = [];
  for (const { row, place, curves: own } of curves) {
    const lines = own.map((curve) => sampled(curve, grid));
    if (how === "each" || lines.length === 1) {
      lines.forEach((line, k) => {
        values.push(line);
        series.push({ place, label: lines.length > 1 ? `${row.label} · ${row.runs[k].name}` : row.label, width: lines.length > 1 ? 1.2 : 2 });
      });
      continue;
    }
    // where most runs are: a median of the few that go on longer would jump
    const there = grid.map((_, i) => lines.map((line) => line[i]).filter((y) => y !== null).sort((a, b) => a - b))
      .map((ys) => (2 * ys.length > lines.length ? ys : []));
    values.push(there.map((ys) => (ys.length ? middle(ys) : null)));
    series.push({ place, label: row.label, width: 2 });
    if (how !== "band") continue;
    values.push(there.map((ys) => (ys.length ? ys[ys.length - 1] : null)), there.map((ys) => (ys.length ? ys[0] : null)));
    bands.push([series.length + 1, series.length + 2, place]);
    series.push({ place, edge: true }, { place, edge: true });
  }
  return { grid, values, series, bands };
}

function positive(values) {
  return values.map((line) => line.map((y) => (y !== null && y > 0 ? y : null)));
}

function draw() {
  const { grid, values, series, bands } = columns();
  if (chart) chart.destroy();
  chart = null;
  at("chart").replaceChildren();
  at("reading").textContent = "";
  plan = series;
  const log = { x: at("log-x").checked, y: at("log-y").checked };
  const shown = log.y ? positive(values) : values;
  if (!shown.some((line) => line.some((y) => y !== null))) {
    at("chart").append(make("div", "Nothing to draw: no chosen run has a value of this metric on these axes."));
    at("chart").firstChild.className = "empty";
    return;
  }
  const own = side();
  const names = { steps: "steps", seconds: "seconds of training", examples: "training examples" };
  const few = grid.length <= 40;
  const ends = window_ || [grid[0], grid[grid.length - 1]];
  const range = ends[0] < ends[1] ? [...ends] : [ends[0] * 0.9, ends[0] * 1.1 || 1];
  // on a logarithmic axis of few powers of ten, 1, 2 and 5 times each are marked
  const sparse = (self, splits) => {
    const decades = Math.log10(splits[splits.length - 1] / splits[0]);
    const heads = decades > 3 ? ["1"] : ["1", "2", "5"];
    const isHead = (v) => heads.includes(v.toExponential()[0]) && Number(v.toPrecision(1)) === Number(v.toPrecision(6));
    return splits.map((v) => (v !== null && isHead(v) ? v : null));
  };
  const marks = (self, splits) => splits.map((v) => (v === null ? "" : short(v)));
  chart = new uPlot({
    width: at("chart").clientWidth - 12,
    height: Math.max(260, Math.min(480, Math.round(innerHeight * 0.55))),
    scales: { x: { time: false, distr: log.x ? 3 : 1, range },
      y: log.y ? { distr: 3, range: (self, low, high) => [low / 1.1, high * 1.1] } : {} },
    axes: [
      { ...own, label: names[at("axis").value], labelFont: own.font, labelSize: 18, values: marks, ...(log.x ? { filter: sparse } : {}) },
      { ...own, size: 62, values: marks, ...(log.y ? { filter: sparse } : {}) },
    ],
    series: [{}, ...series.map((one) => (one.edge
      ? { stroke: "transparent", width: 0, points: { show: false } }
      : { label: one.label, stroke: colorOf(one.place), width: one.width, dash: dashOf(one.place),
          points: { show: few, size: 5 } }))],
    bands: bands.map(([high, low, place]) => ({ series: [high, low], fill: `${colorOf(place)}2e` })),
    cursor: { drag: { x: true, y: false, setScale: false }, points: { show: false } },
    legend: { show: false },
    hooks: { setCursor: [read], setSelect: [zoomed] },
  }, [grid, ...shown], at("chart"));
  chart.over.addEventListener("dblclick", whole);
  at("chart").dataset.drawings = Number(at("chart").dataset.drawings || 0) + 1;
  at("chart").dataset.curves = series.filter((one) => !one.edge).length;
  at("chart").dataset.bands = bands.length;
}

// Zooming by a drag draws the part anew, at positions of its own; a double click shows everything again.
function zoomed(self) {
  const { left, width } = self.select;
  if (self !== chart || width < 4) return;
  window_ = [self.posToVal(left, "x"), self.posToVal(left + width, "x")];
  setTimeout(draw);  // when uPlot has let go of the mouse: drawing replaces the chart
}
function whole() {
  if (window_ === null) return;
  window_ = null;
  setTimeout(draw);
}

function read(self) {
  const { left, top, idx } = self.cursor;
  if (left === undefined || left < 0 || idx === null || idx === undefined) { at("reading").textContent = ""; return; }
  let best = null;
  plan.forEach((one, k) => {
    const y = one.edge ? null : self.data[k + 1][idx];
    if (y === null || y === undefined) return;
    const gap = Math.abs(self.valToPos(y, "y") - top);
    if (best === null || gap < best.gap) best = { gap, y, label: one.label };
  });
  at("reading").textContent = best === null ? "" :
    `${best.label}: ${at("metric").value} ${short(best.y)} at ${short(self.data[0][idx])} ${at("axis").value}`;
}

// ---- table

function list() {
  const places = new Map(drawn().map(({ k }, place) => [k, place]));
  const head = make("tr", null, make("th", "configuration"),
    ...task.columns.slice(0, -1).map((name) => make("th", name)));
  const rows = matching().map(({ row, k }) => {
    const box = make("input"), chip = make("span"), place = places.get(k);
    box.type = "checkbox";
    box.checked = !off.has(k);
    box.addEventListener("change", () => { box.checked ? off.delete(k) : off.add(k); update(); });
    chip.className = "chip";
    chip.style.borderColor = place === undefined ? "transparent" : colorOf(place);
    if (place !== undefined && dashOf(place).length) chip.style.borderTopStyle = "dashed";
    const name = make("span", row.label);
    name.title = Object.entries(row.differs).map(([key, value]) => `${key} = ${value}`).join("\n");
    const odd = row.runs.filter((run) => run.state !== "finished").map((run) => run.state);
    if (odd.length) {
      const ended = make("span", ` ${odd.length} of ${row.runs.length}: ${[...new Set(odd)].join(", ")}`);
      ended.className = "ended";
      name.append(ended);
    }
    const line = make("tr", null, make("th", null, make("label", null, box, chip, name)),
      ...row.cells.slice(0, -1).map((cell) => make("td", cell)));
    if (place === undefined) line.className = "off";
    return line;
  });
  at("rows").replaceChildren(make("table", null, make("thead", null, head), make("tbody", null, ...rows)));
}

function update() {
  list();
  draw();
}

// ---- choices

function logarithmic() {
  const metric = at("metric").value;
  if (metric === task.metric && task.more) return false;
  let low = Infinity, high = -Infinity;
  for (const row of task.rows) for (const run of row.runs) {
    for (const [, y] of points(run, metric, "steps") || []) if (y !== null) { low = Math.min(low, y); high = Math.max(high, y); }
  }
  return low > 0 && high > 2 * low;
}

function chooseMetric() {
  window_ = null;
  at("log-y").checked = logarithmic();
  update();
}

function chooseTask() {
  task = data.tasks[Number(at("task").value)];
  off.clear();
  const names = new Set([task.metric]);
  for (const row of task.rows) for (const run of row.runs) for (const name of [...Object.keys(run.e.y), ...Object.keys(run.s.y)]) names.add(name);
  choose(at("metric"), [...names].map((name) => [name, name]), task.metric);
  at("heading").textContent = task.heading;
  chooseMetric();
}

function about() {
  const runs = data.tasks.flatMap((one) => one.rows).reduce((sum, row) => sum + row.runs.length, 0);
  const rows = data.tasks.reduce((sum, one) => sum + one.rows.length, 0);
  const words = [`${runs} runs of ${rows} configurations.`, "Drag to zoom; double-click to see everything."];
  if (data.points) words.push(`Longer curves are medians of blocks: at most ${data.points} points each.`);
  if (data.losses_alone) words.push("Of training steps, the loss alone is here.");
  if (data.left_out) words.push(`The last ${data.left_out} configurations are left out, to keep this page small.`);
  at("about").textContent = words.join(" ");
  at("troubled").hidden = !data.troubled.length;
  at("troubled").querySelector("summary").textContent = `${data.troubled.length} runs that are not finished or cannot be read`;
  at("troubled").querySelector("ul").append(...data.troubled.map(([path, state, why]) => make("li", `${path}: ${state}: ${why}`)));
  at("notes").append(...data.notes.map((note) => make("li", `Note: ${note}.`)));
  at("notes").hidden = !data.notes.length;
}

about();
choose(at("task"), data.tasks.map((one, k) => [String(k), one.task]));
at("task-label").hidden = data.tasks.length < 2;
at("axis").value = data.axis;
at("controls").addEventListener("submit", (event) => event.preventDefault());
at("task").addEventListener("change", chooseTask);
at("metric").addEventListener("change", chooseMetric);
for (const id of ["axis", "log-x"]) at(id).addEventListener("change", () => { window_ = null; update(); });
for (const id of ["seeds", "most", "log-y"]) at(id).addEventListener("change", update);
at("filter").addEventListener("input", update);
chooseTask();
follow(update, draw);
