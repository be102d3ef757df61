// Draws the figures that stand in the sheet as JSON, in the colours of its theme.
"use strict";
const figures = [...document.querySelectorAll("script.figure")].map((script) => (
  { element: script.previousElementSibling, ...JSON.parse(script.textContent) }
));
const darkTheme = window.matchMedia("(prefers-color-scheme: dark)");

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const themedLayout = structuredClone(layout);
  themedLayout.paper_bgcolor = "rgba(0,0,0,0)";
  themedLayout.plot_bgcolor = "rgba(0,0,0,0)";
  themedLayout.font = { family: style.fontFamily, size: 12, color: color("--soft") };
  themedLayout.hoverlabel = {
    bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink") },
  };
  for (const key of Object.keys(themedLayout).filter((name) => /^[xy]axis/.test(name))) {
    Object.assign(themedLayout[key], {
      gridcolor: color("--grid"), linecolor: color("--line"), zeroline: false,
      showline: key.startsWith("x"), ticks: key.startsWith("x") ? "outside" : "",
      tickcolor: color("--line"), ticklen: 4, automargin: true,
    });
  }
  return themedLayout;
}

function draw() {
  for (const { element, data, layout } of figures) {
    Plotly.react(element, data, themed(layout), { responsive: true, displayModeBar: false });
  }
}

darkTheme.addEventListener("change", draw);
draw();
