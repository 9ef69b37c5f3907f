"use strict";
// Gates are shut and opened, and the backward shows what of it would run.

function buildWhatIf(panel) {
  if (!BACKWARDS.some((backward) => backward)) {
    panel.append(make("p", { class: "nothing" }, "No backward was recorded."));
    return {};
  }
  const opens = DATA.sites.map(() => true);
  const state = { call: 0, view: null, regions: null };
  const gates = gateList(opens, set);
  const share = make("output", { class: "share", id: "share" });
  const meter = make("meter", { min: 0, max: 1, value: 1, "aria-label": "share of the backward that remains" });
  const facts = make("dl", { class: "facts" });
  const depth = make("input", {
    type: "range",
    min: 0,
    max: gates.blocks.length,
    value: 0,
    id: "depth",
    oninput: () => truncate(Number(depth.value)),
  });
  const depthTold = make("output", { for: "depth" });
  const globs = make("input", {
    type: "text",
    id: "globs",
    placeholder: "*.layers.0.*  *.q_proj",
    oninput: () => globsTold(),
    onkeydown: (event) => event.key === "Enter" && byGlobs(false),
  });
  const matched = make("span", { class: "told", role: "status" });
  const pane = make("div", { class: "pane" });
  const told = make("p", { class: "told node-told", role: "status" });
  const calls = make("select", { "aria-label": "call", onchange: () => showCall(Number(calls.value)) });
  const conds = make("div", { class: "conds" });
  options(
    calls,
    DATA.calls.map((_, call) => [call, callTitle(call)]),
  );
  calls.hidden = DATA.calls.length < 2;
  panel.append(
    make(
      "aside",
      {},
      make("div", { class: "remains" }, share, make("span", {}, "of the backward's FLOPs remain"), meter, facts),
      make("label", { for: "depth" }, "shut the lowest blocks ", depthTold),
      depth,
      make("label", { for: "globs" }, "sites by globs ", matched),
      make(
        "div",
        { class: "bar" },
        globs,
        make("button", { onclick: () => byGlobs(false) }, "shut"),
        make("button", { onclick: () => byGlobs(true) }, "open"),
      ),
      make(
        "div",
        { class: "bar" },
        make("button", { onclick: () => set(opens.keys(), true) }, "open all"),
        make("button", { onclick: () => set(opens.keys(), false) }, "shut all"),
        make(
          "button",
          { onclick: () => opens.forEach((open, place) => (opens[place] = !open)) ?? refresh() },
          "invert",
        ),
      ),
      gates.element,
    ),
    make(
      "div",
      { class: "backward" },
      make(
        "div",
        { class: "bar" },
        make("h2", {}, "The backward, by module"),
        calls,
        make(
          "span",
          { class: "legend" },
          ...["alive", "partly", "dead"].map((kind) =>
            make("span", { class: `chip ${kind}` }, { alive: "runs", partly: "in part", dead: "does not run" }[kind]),
          ),
        ),
        make(
          "span",
          { class: "views" },
          make("button", { onclick: () => state.view.closeAll() }, "Close all"),
          make("button", { onclick: () => state.view.fit(), title: "f" }, "Fit"),
        ),
      ),
      pane,
      told,
    ),
    conds,
  );

  function set(places, open) {
    for (const place of places) {
      opens[place] = open;
    }
    refresh();
  }

  function truncate(blocks) {
    gates.blocks.forEach(({ places }, at) => places.forEach((place) => (opens[place] = at >= blocks)));
    refresh();
  }

  function globbed() {
    const wanted = globsIn(globs.value);
    return DATA.sites.flatMap((site, place) => (wanted.some(({ pattern }) => pattern.test(site.name)) ? [place] : []));
  }

  function globsTold() {
    matched.textContent = globs.value.trim() ? `match ${counted(globbed().length, "site")}` : "";
  }

  function byGlobs(open) {
    set(globbed(), open);
    globsTold();
  }

  function refresh() {
    const found = whatIf(opens);
    const runs = found.calls.flatMap((call) => call.running);
    share.textContent = percent(found.share);
    meter.value = found.share;
    const entries = [
      ["FLOPs", `${flopsText(found.flops).replace("FLOPs", "")} of ${flopsText(found.total).replace("FLOPs", "")}`],
      ["conds", `${runs.filter((one) => !one).length} of ${runs.length} closed`],
      ["gates", `${opens.filter((one) => !one).length} of ${opens.length} shut`],
    ];
    facts.replaceChildren(...entries.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
    facts.dataset.flops = found.flops;
    facts.dataset.total = found.total;
    facts.dataset.running = runs.map(Number).join("");
    const lowest = gates.blocks.findIndex(({ places }) => places.some((place) => opens[place]));
    depth.value = lowest < 0 ? gates.blocks.length : lowest;
    depthTold.textContent = `${depth.value} of ${gates.blocks.length}`;
    gates.refresh();
    state.view?.under(found.calls[state.call].running);
    state.regions?.refresh(found.calls[state.call].running);
  }

  function showCall(call) {
    const backward = BACKWARDS[DATA.calls[call]];
    state.view?.free();
    state.view = null;
    state.call = call;
    if (!backward) {
      pane.replaceChildren(make("p", { class: "nothing" }, "This graph has no backward."));
      conds.replaceChildren();
      return;
    }
    state.view = backwardView(pane, backward, (text) => (told.textContent = text));
    state.regions = regionTable(backward, callUnder(call, opens).running);
    conds.replaceChildren(make("h2", {}, "Conds"), state.regions.element);
    refresh();
  }

  refresh();
  let begun = false;
  return {
    shown: () => !begun && ((begun = true), showCall(DATA.calls.findIndex((graph) => BACKWARDS[graph]))),
    keys: {
      o: () => set(opens.keys(), true),
      s: () => set(opens.keys(), false),
      n: () => truncate(Math.min(Number(depth.value) + 1, gates.blocks.length)),
      p: () => truncate(Math.max(Number(depth.value) - 1, 0)),
      f: () => state.view?.fit(),
      "+": () => state.view?.zoomBy(1.3),
      "-": () => state.view?.zoomBy(1 / 1.3),
    },
    help: [
      ["o s", "open, shut all"],
      ["n p", "one block more, less"],
      ["f + −", "fit, zoom"],
    ],
  };
}

function callTitle(call) {
  const first = DATA.sites[CALL_SITES[call][0]];
  const graph = DATA.snapshots[DATA.snapshots.length - 1].graphs[DATA.calls[call]].number;
  return first ? `graph ${graph}: ${first.block || first.name}` : `graph ${graph}`;
}
