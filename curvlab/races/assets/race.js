// ---- standings and performance profiles of a race, above the curves

const race = data.race;

function tableOf(columns, rows) {
  const head = make("tr", null, ...columns.map((name) => make("th", name)));
  const body = rows.map(([first, ...cells]) =>
    make("tr", null, make("th", first), ...cells.map((cell) => make("td", cell))));
  const wide = make("div", null, make("table", null, make("thead", null, head), make("tbody", null, ...body)));
  wide.className = "wide-table";
  wide.tabIndex = 0;
  return wide;
}

let profile = null;
function drawProfile() {
  if (profile) profile.destroy();
  const { factors, curves } = race.profile;
  const own = side();
  const stepped = uPlot.paths.stepped({ align: 1 });
  profile = new uPlot({
    width: at("race-profile").clientWidth - 12,
    height: 260,
    scales: { x: { time: false, range: [1, factors[factors.length - 1]] }, y: { range: [0, 1.05] } },
    axes: [
      { ...own, label: `factor of the least ${race.by} to the target`, labelFont: own.font, labelSize: 18 },
      { ...own, size: 58, values: (self, splits) => splits.map((v) => (v <= 1 ? `${Math.round(100 * v)} %` : "")) },
    ],
    series: [{}, ...curves.map((one, k) => ({ label: one.name, stroke: colorOf(k), dash: dashOf(k), width: 2,
      paths: stepped, points: { show: false } }))],
    cursor: { show: false },
    legend: { show: false },
  }, [factors, ...curves.map((one) => one.shares)], at("race-profile"));
  at("race-profile").dataset.curves = curves.length;
  at("race-legend").replaceChildren(...curves.map((one, k) => {
    const chip = make("span");
    chip.className = "chip";
    chip.style.borderColor = colorOf(k);
    if (dashOf(k).length) chip.style.borderTopStyle = "dashed";
    return make("span", null, chip, ` ${one.name}\u2003`);
  }));
}

at("race-rule").textContent = `Sorted by the median of ${race.by} to the target. p: chance of such a lead of the first `
  + `method without a difference, by an exact one-sided rank test, adjusted for the number of comparisons; * p ≤ ${race.level}.`;
at("race-tables").append(...race.tasks.flatMap((one) => [make("h3", one.heading), tableOf(one.columns, one.rows)]));
at("race-shares").append(tableOf(race.profile.columns, race.profile.rows));
drawProfile();
follow(drawProfile);
