"use strict";
// The whole in numbers.

function buildSummary(panel) {
  panel.append(
    make("div", { class: "cards" }, ...DATA.snapshots.map(card), totals()),
    make("h2", {}, "Comparisons"),
    make("div", { class: "scroll" }, comparisons()),
    make("h2", {}, "Operators whose number differs"),
    make("div", { class: "operators" }, ...DATA.transitions.filter((one) => one.operators.length).map(operators)),
    make("h2", {}, "Stages"),
    stageTable(),
  );
}

function card(snapshot, place) {
  const facts = [["gates", `scope ${snapshot.scope}`], ...Object.entries(snapshot.versions)];
  const side = runs() > 1 ? ["before: ", "after: "][place] : "";
  return make(
    "div",
    { class: "card" },
    make("h2", {}, side + snapshot.model),
    make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
  );
}

function totals() {
  const differ = DATA.transitions.filter((one) => one.shapes.length).length;
  const graphs = DATA.snapshots[DATA.snapshots.length - 1].graphs.length;
  const facts = [
    ["gated", counted(DATA.sites.length, "site")],
    ["not gated", counted(DATA.rejections.length, "candidate")],
    ["graphs", counted(graphs, "graph")],
    ["differ", `${differ} of ${counted(DATA.transitions.length, "comparison")}`],
  ];
  const open = DATA.sites.map(() => true);
  if (open.length) {
    const shut = whatIf(open.map(() => false));
    facts.push(["all gates shut", `${percent(shut.share)} of the backward's FLOPs remain`]);
  }
  return make(
    "div",
    { class: "card" },
    make("h2", {}, runs() > 1 ? "Two runs" : "One run"),
    make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
  );
}

function comparisons() {
  const kinds = ["added", "removed", "rewired", "changed", "same"];
  const rows = DATA.transitions.map((one) => {
    const numbers = kinds.map((kind) =>
      make("td", { class: `number ${one.counts[kind] ? kind : "none"}` }, (one.counts[kind] ?? 0).toLocaleString("en")),
    );
    const hunks = make("td", { class: "number" }, one.shapes.flat().length.toLocaleString("en"));
    const shapes = make("td", { class: "number" }, one.shapes.length.toLocaleString("en"));
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, stageTitle(one)),
      ...numbers,
      hunks,
      shapes,
      make("td", {}, one.method),
    );
  });
  const heads = ["", ...kinds, "hunks", "shapes", "aligned by"].map((title, place) =>
    make("th", { scope: "col", class: place > 0 && place < 8 ? "number" : null }, title),
  );
  return make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
}

function operators(transition) {
  const rows = transition.operators.map(([name, before, after]) => {
    const step = after - before;
    const signed = `${step > 0 ? "+" : "−"}${Math.abs(step).toLocaleString("en")}`;
    const cells = [before, after].map((number) => make("td", { class: "number" }, number.toLocaleString("en")));
    return make(
      "tr",
      {},
      make("td", { class: "code" }, name),
      ...cells,
      make("td", { class: `number ${step > 0 ? "added" : "removed"}` }, signed),
    );
  });
  const heads = ["operator", "before", "after", ""].map((title, place) =>
    make("th", { scope: "col", class: place ? "number" : null }, title),
  );
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
  return make(
    "div",
    { class: "card" },
    make("h3", {}, stageTitle(transition)),
    make("div", { class: "scroll" }, table),
  );
}

function stageTable() {
  const rows = DATA.snapshots.flatMap((snapshot, place) =>
    snapshot.graphs.flatMap((graph) =>
      graph.stages.map(([name, nodes]) => ({ graph: graph.number, place, name, nodes })),
    ),
  );
  const sides = runs() > 1 ? ["before", "after"] : [""];
  const lines = rows.map(({ graph, place, name, nodes }) =>
    make(
      "tr",
      {},
      make("td", {}, [sides[place], `graph ${graph}`].filter(Boolean).join(", ")),
      make("th", { scope: "row" }, name),
      make("td", { class: "number" }, nodes.toLocaleString("en")),
      make("td", {}, DATA.stages[name]),
    ),
  );
  const heads = [
    ["", null],
    ["stage", null],
    ["nodes", "number"],
    ["", null],
  ].map(([title, kind]) => make("th", { scope: "col", class: kind }, title));
  return make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...lines));
}
