"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);

// ---- elements

function make(tag, text, ...children) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  element.append(...children);
  return element;
}
function choose(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => {
    const option = make("option", text);
    option.value = value;
    return option;
  }));
  if (values.some(([value]) => value === chosen)) select.value = chosen;
}

// ---- light and dark: what is drawn on a canvas is drawn again, since only elements follow the style by themselves

const scheme = matchMedia("(prefers-color-scheme: dark)");
let theme = "auto", lastWidth = innerWidth;
const redraws = [], resizes = [];
const isDark = () => theme === "dark" || (theme === "auto" && scheme.matches);
const tint = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function dress() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  at("theme").textContent = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" }[theme];
  for (const redraw of redraws) redraw();
}
// Call ``redraw`` whenever colors change, and ``resize`` whenever the window's width does.
function follow(redraw, resize = redraw) {
  redraws.push(redraw);
  resizes.push(resize);
}
dress();
at("theme").addEventListener("click", () => {
  theme = { auto: "light", light: "dark", dark: "auto" }[theme];
  dress();
});
scheme.addEventListener("change", dress);
addEventListener("resize", () => {
  if (innerWidth === lastWidth) return;
  lastWidth = innerWidth;
  for (const redraw of resizes) redraw();
});

// ---- what all charts share

// An axis of uPlot in the colors of the theme.
function side() {
  const rule = tint("--grid");
  return { stroke: tint("--soft"), grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1 },
    font: "12px system-ui, sans-serif" };
}
