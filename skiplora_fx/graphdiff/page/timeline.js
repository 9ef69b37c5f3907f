"use strict";
// A run: M of each site over the steps, and where it was shut; the loss below.

function buildTimeline(panel) {
  const { timeline } = DATA;
  const number = timeline.run[1] > 1 ? `run ${timeline.run[0]} of ${timeline.run[1]}` : "";
  const head = [
    "M = ‖Δh‖ / ‖h‖ by site",
    timeline.policy && `policy ${timeline.policy}`,
    counted(timeline.steps, "step"),
    number,
  ];
  const told = make("p", { class: "told", role: "status", id: "hovered" });
  const heat = make("div", { class: "heat" });
  const loss = make("div", { class: "loss" });
  loss.hidden = timeline.losses[0].length === 0;
  panel.append(
    make("div", { class: "bar" }, make("h2", {}, head.filter(Boolean).join(" · ")), colourBar(timeline)),
    heat,
    loss,
    told,
  );
  const nothing = "Point at a cell for its numbers; drag to zoom, double-click for all steps.";
  told.textContent = nothing;
  let plots = [];

  function hover(plot) {
    const { idx, left, top } = plot.cursor;
    const site = left >= 0 && top >= 0 ? Math.round(plot.posToVal(top, "y")) : -1;
    const column = (idx ?? 0) - 1;
    const inside = timeline.sites[site] !== undefined && column >= 0 && column < timeline.edges.length - 1;
    told.textContent = inside ? cellText(timeline, site, column) : nothing;
  }

  function render() {
    plots.forEach((plot) => plot.destroy());
    const sync = { key: "steps", scales: ["x", null] };
    const { width } = heat.getBoundingClientRect();
    const size = () => heat.getBoundingClientRect().height;
    const padding = [8, 28, 0, 0];
    plots = [
      new uPlot(
        {
          width,
          height: size(),
          legend: { show: false },
          cursor: { sync, y: true, points: { show: false }, drag: { x: true, y: false } },
          scales: { x: { time: false }, y: { range: [-0.5, timeline.sites.length - 0.5], dir: -1 } },
          padding,
          axes: [stepAxis(null), siteAxis(timeline, size)],
          series: [{}, { scale: "y", paths: () => null, points: { show: false } }],
          hooks: { draw: [heatDrawn(timeline)], setCursor: [hover] },
        },
        [columnMiddles(timeline), new Array(timeline.edges.length + 1).fill(null)],
        heat,
      ),
    ];
    if (!loss.hidden) {
      const [first, last] = [timeline.edges[0], timeline.edges[timeline.edges.length - 1]];
      const losses = new Map(timeline.losses[0].map((at, place) => [at, timeline.losses[1][place]]));
      const steps = [first, ...[...losses.keys()].filter((at) => at > first && at < last), last];
      plots.push(
        new uPlot(
          {
            width,
            height: 150,
            legend: { show: false },
            cursor: { sync, drag: { x: true, y: false } },
            scales: { x: { time: false } },
            padding,
            axes: [stepAxis("step"), { ...axis("loss"), size: labelWidth - labelSize }],
            series: [
              {},
              { stroke: cssColour("--accent"), width: 1.5, spanGaps: true, points: { show: losses.size < 60 } },
            ],
          },
          [steps, steps.map((at) => losses.get(at) ?? null)],
          loss,
        ),
      );
    }
  }

  function resize() {
    const { width, height } = heat.getBoundingClientRect();
    plots.forEach((plot, place) => plot.setSize({ width, height: place ? 150 : height }));
  }

  let begun = false;
  return {
    shown() {
      if (!begun) {
        begun = true;
        render();
        new ResizeObserver(resize).observe(heat);
        matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
      }
    },
    help: [
      ["drag", "zoom"],
      ["double-click", "all steps"],
    ],
  };
}

const labelWidth = 190;
const labelSize = 20;

function axis(label) {
  return {
    label,
    stroke: cssColour("--ink"),
    grid: { show: false },
    ticks: { stroke: cssColour("--line") },
    labelSize,
    font: "12px system-ui",
    labelFont: "12px system-ui",
  };
}

// Steps are whole numbers, however few of them there are.
function stepAxis(label) {
  const incrs = [...Array(12).keys()].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power));
  return { ...axis(label), incrs };
}

// Names of sites, as many as there is room for.
function siteAxis(timeline, height) {
  const prefix = commonPath(timeline.sites);
  const names = timeline.sites.map((site) => shortened(site.slice(prefix.length).replace(/ \[default\]$/, ""), 28));
  const blocks = names.map((name) => name.match(/^(.*?\d+)(\.|$)/)?.[1] ?? name);
  const firsts = blocks.flatMap((block, row) => (block === blocks[row - 1] ? [] : [row]));
  const each = () => 13 * names.length <= height() - 60;
  const splits = () => {
    const rows = each() ? [...names.keys()] : firsts;
    const every = Math.max(Math.ceil((13 * rows.length) / Math.max(height() - 60, 1)), 1);
    return rows.filter((_, place) => place % every === 0);
  };
  const values = (_, rows) => rows.map((row) => (each() ? names : blocks)[row]);
  return { ...axis(null), size: labelWidth, splits, values, font: "11px ui-monospace, monospace" };
}

// uPlot draws from the first to the last: the outer edges, so that whole columns show.
function columnMiddles({ edges }) {
  const middles = edges.slice(1).map((edge, column) => (edge + edges[column]) / 2);
  return [edges[0], ...middles, edges[edges.length - 1]];
}

function cellText(timeline, site, column) {
  const [first, last] = [Math.ceil(timeline.edges[column]), Math.floor(timeline.edges[column + 1])];
  const ratio = timeline.ratio[site][column];
  const steps = first >= last ? `step ${first}` : `steps ${first} to ${last}, the mean`;
  const state = ratio === null ? "no M" : `M ${ratio}`;
  return `${timeline.sites[site]} · ${steps} · ${state} · ${timeline.shut[site][column] === "1" ? "shut" : "open"}`;
}

function colourBar(timeline) {
  const ramp = make("span", { class: "ramp" });
  ramp.style.background = `linear-gradient(90deg, ${VIRIDIS.join(", ")})`;
  const [low, high] = timeline.range.map((value) => String(Number(value.toPrecision(2))));
  return make(
    "span",
    { class: "colour-bar" },
    low,
    ramp,
    high,
    make("span", { class: "swatch shut" }),
    "shut",
    make("span", { class: "swatch none" }),
    "no M",
  );
}
