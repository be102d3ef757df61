// One chart a subject: its figures of every run that is shown, on one axis of steps.

const CHARTS = [
  { title: "Accuracy", of: { accuracy: "held out", "rollout.correct": "while training" }, share: true },
  { title: "Reward", of: { "rollout.reward": "reward", held_out_reward: "held out" } },
  { title: "Loss", of: { "update.loss": "learned", held_out_loss: "held out" } },
  { title: "Length", of: { "rollout.length": "tokens" } },
  { title: "Cut at max_tokens", of: { "rollout.truncated": "share of answers" }, share: true },
  { title: "Entropy", of: { "update.entropy": "nats per token" } },
  { title: "Mismatch, learner against sampler (k3)", of: { "update.mismatch.k3": "all" }, workers: "k3", log: true },
  { title: "Staleness", of: { "rollout.staleness_mean": "all" }, workers: "staleness" },
  { title: "Gradient norm", of: { "update.grad_norm": "before clipping" } },
  { title: "KL to the reference", of: { "update.kl": "k3, nats per token" } },
  { title: "Clipped tokens", of: { "update.clipped_share": "share" }, share: true },
  { title: "Groups that teach nothing", of: { "rollout.groups_skipped": "of a step" } },
  { title: "Tokens per second", of: { "speed": "all" }, workers: "tokens_per_second" },
  { title: "Chip-hours used", of: { "cost.chip_hours": "by all roles" } },
  { title: "Time of a step (s)", of: { "seconds.generate": "generate", "seconds.wait": "wait", "seconds.verify": "verify", "seconds.update": "update", "seconds.publish": "publish" } },
];
const sync = uPlot.sync("steps");
const drawn = new Map(); // title: {plot, key, extent}
const DASHES = [[], [6, 4], [2, 3], [8, 3, 2, 3], [1, 2]];

/** Every line of a chart: {label, colour, dash, points}. */
function linesOf(chart, runs) {
  const found = [];
  const several = runs.length > 1;
  for (const run of runs) {
    const figures = Object.entries(chart.of).map(([name, label]) => [label, run.series[name]]);
    const single = Object.keys(run.workers).length < 2; // its figures are those of all
    for (const [name, points] of single ? [] : Object.entries(run.series)) {
      const [, worker, figure] = name.match(/^workers\/(.*)\/([^/]+)$/) ?? [];
      if (chart.workers && figure === chart.workers) figures.push([worker, points]);
    }
    figures.filter(([, points]) => points?.x.length).forEach(([label, points], place) => {
      found.push({
        label: several ? `${run.name}${figures.length > 1 ? `: ${label}` : ""}` : label,
        colour: colour(several ? run.run : place),
        dash: several ? DASHES[place % DASHES.length] : [],
        points,
      });
    });
  }
  return found;
}

/** uPlot's aligned columns: one of all steps, and for each line its mean, least and most there. */
function columns(lines) {
  const xs = [...new Set(lines.flatMap((line) => line.points.x))].sort((a, b) => a - b);
  const place = new Map(xs.map((x, index) => [x, index]));
  const data = [xs];
  for (const { points } of lines) {
    const made = [0, 1, 2].map(() => new Array(xs.length).fill(undefined));
    points.x.forEach((x, index) => {
      const at = place.get(x);
      [points.y, points.low, points.high].forEach((column, k) => { made[k][at] = column[index]; });
    });
    data.push(...made);
  }
  return data;
}

/** Where a figure is 0 throughout, an axis to 1: uPlot's own goes to 100. */
const roomy = (_, low, high) => low === 0 && high === 0 ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true);
const ofShares = (_, low, high) => [Math.min(0, low ?? 0), Math.max(high ?? 1, 0.05) * 1.05];

/** A line as the legend shows it, dashed as it is drawn: several of one run have its colour. */
function strokeOf({ colour, dash }) {
  if (!dash.length) return colour;
  let at = 0;
  const stops = dash.map((length, place) => `${place % 2 ? "transparent" : colour} ${at}px ${at += length}px`);
  return `repeating-linear-gradient(90deg, ${stops.join(", ")})`;
}

/** What it is measured in, where that is said once for all lines. */
function unitOf(chart) {
  const labels = Object.values(chart.of);
  return labels.length === 1 && labels[0] !== "all" ? labels[0] : "";
}

function options(chart, lines, width) {
  const axis = () => ({
    stroke: () => themed("--soft"), grid: { stroke: () => themed("--grid"), width: 1 },
    ticks: { stroke: () => themed("--grid"), width: 1 }, font: "12px system-ui",
  });
  const value = chart.share ? (_, v) => percent(v) : (_, v) => short(v);
  const hidden = { show: false, label: "", stroke: "transparent", points: { show: false } };
  const alone = (line) => line.points.x.length < 60;
  return {
    width, height: 210, cursor: { sync: { key: "steps" }, drag: { x: true, y: false } },
    legend: { live: true },
    scales: { x: { time: false }, y: chart.log ? { distr: 3 } : { range: chart.share ? ofShares : roomy } },
    axes: [axis(), { ...axis(), size: 58, ...(chart.log ? { splits: decades } : {}), values: (_, ticks) => ticks.map((tick) => tick == null ? "" : chart.share ? Math.round(100 * tick) + " %" : short(tick)) }],
    series: [
      { label: "step", value: (_, v) => v == null ? "–" : String(v) },
      ...lines.flatMap((line) => [
        { label: line.label, stroke: line.colour, width: 1.8, dash: line.dash, spanGaps: true, value, points: { show: alone(line), size: 4, fill: line.colour } },
        { ...hidden, spanGaps: true, show: true, width: 0 },
        { ...hidden, spanGaps: true, show: true, width: 0 },
      ]),
    ],
    bands: lines.map((line, place) => ({ series: [3 * place + 4, 3 * place + 3].map((k) => k - 1), fill: line.colour + "22" })),
  };
}

/** Of a logarithmic axis the powers of ten, fewer where there are many. */
function decades(_, axis, low, high) {
  const [from, to] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const every = Math.ceil((to - from) / 5) || 1;
  const found = [];
  for (let power = from; power <= to; power += every) found.push(10 ** power);
  return found;
}

/** Draw what has changed; a chart without figures is not there. */
function draw(runs) {
  for (const chart of CHARTS) {
    const lines = linesOf(chart, runs);
    if (chart.log) {
      for (const line of lines) {
        const positive = (column) => column.map((v) => v > 0 ? v : null);
        line.points = { ...line.points, y: positive(line.points.y), low: positive(line.points.low), high: positive(line.points.high) };
      }
    }
    const key = lines.map((line) => line.label).join("\n") + (lines.some((l) => l.points.x.length >= 60) ? "" : "·");
    const old = drawn.get(chart.title);
    const extent = lines.map((line) => line.points.x); // another one where there is news
    if (old?.key === key) {
      if (sameExtent(old.extent, extent)) continue;
      old.extent = extent;
      old.plot.setData(columns(lines), old.whole());
      continue;
    }
    old?.plot.destroy();
    old?.card.remove();
    drawn.delete(chart.title);
    if (!lines.length) continue;
    const card = element("div", { class: "chart", role: "figure", "aria-label": chart.title },
      element("h2", {}, chart.title, element("span", { text: unitOf(chart) })));
    const later = CHARTS.slice(CHARTS.indexOf(chart) + 1).map((each) => drawn.get(each.title)?.card).find(Boolean);
    $("charts").insertBefore(card, later ?? null);
    const plot = new uPlot(options(chart, lines, widthOf(card)), columns(lines), card);
    sync.sub(plot);
    plot.root.querySelectorAll(".u-legend .u-series").forEach((row, place) => {
      row.hidden = place > 0 && (place - 1) % 3 > 0; // the bounds of a line
      if (place > 0 && !row.hidden) row.querySelector(".u-marker").style.background = strokeOf(lines[(place - 1) / 3]);
    });
    const whole = () => {
      const [from, to] = [plot.scales.x.min, plot.scales.x.max];
      const xs = plot.data[0];
      return from == null || (from <= xs[0] && to >= xs[xs.length - 1]);
    };
    drawn.set(chart.title, { plot, card, key, extent, whole });
  }
}

const sameExtent = (a, b) => a.every((x, place) => b[place] === x);
const widthOf = (card) => Math.max(200, card.clientWidth - 30);

function refit() {
  for (const { plot, card } of drawn.values()) plot.setSize({ width: widthOf(card), height: 210 });
}

function showAll() {
  for (const { plot } of drawn.values()) plot.setData(plot.data, true);
}

addEventListener("resize", refit);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const { plot } of drawn.values()) plot.redraw(false, true);
});
