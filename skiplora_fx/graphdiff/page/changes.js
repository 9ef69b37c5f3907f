"use strict";
// What each pass, or each run, changed: hunks drawn before and after, and as text.

const MOST_LISTED = 300; // shapes

function buildChanges(panel) {
  const state = { transition: 0, shape: 0, hunk: 0, view: "drawing", free: null, long: null };
  const stages = make("div", { class: "stages", role: "group", "aria-label": "comparisons" });
  const list = make("ol", { class: "shapes" });
  const title = make("h2", { class: "shape-title" });
  const told = make("span", { class: "told", role: "status" });
  const place = make("span", { class: "place" });
  const alike = make(
    "span",
    { class: "alike" },
    make("button", { title: "the one before of those alike (k)", onclick: () => goHunk(-1) }, "‹"),
    place,
    make("button", { title: "the next of those alike (j)", onclick: () => goHunk(1) }, "›"),
  );
  const views = [
    ["drawing", "Drawing"],
    ["text", "As text"],
    ["all", "Whole text"],
  ].map(([view, name]) => make("button", { "data-view": view, onclick: () => change({ view }) }, name));
  const fit = make("button", { onclick: () => state.free?.fit(), title: "show all of it (f)" }, "Fit");
  const panes = ["before", "after"].map((side) => make("div", { class: `pane ${side}` }));
  const captions = panes.map(() => make("figcaption"));
  const pair = make("div", { class: "pair" }, ...panes.map((pane, at) => make("figure", {}, captions[at], pane)));
  const text = make("div", { class: "text" });
  const record = make("div", { class: "record", tabindex: 0, "aria-label": "record of a node" });
  const bar = make("div", { class: "bar" }, title, alike, told, make("span", { class: "views" }, ...views, fit));
  panel.append(make("aside", {}, stages, list), make("div", { class: "workspace" }, bar, pair, text, record));

  function transition() {
    return DATA.transitions[state.transition];
  }

  function change(next) {
    const moved = next.transition !== undefined && next.transition !== state.transition;
    Object.assign(state, next);
    if (moved || stages.childElementCount === 0) {
      state.long = null;
      listStages();
      listShapes();
    }
    show();
  }

  function listStages() {
    const many = DATA.transitions.length > 9;
    if (many) {
      const select = make("select", { "aria-label": "comparison", onchange: () => goStage(Number(select.value)) });
      stages.replaceChildren(
        options(
          select,
          DATA.transitions.map((one, at) => [at, stageTitle(one)]),
        ),
      );
      select.value = state.transition;
      return;
    }
    stages.replaceChildren(
      ...DATA.transitions.map((one, at) =>
        make(
          "button",
          { "aria-pressed": String(at === state.transition), onclick: () => goStage(at) },
          make("span", {}, stageTitle(one)),
          make("small", {}, one.shapes.length ? counted(one.shapes.flat().length, "hunk") : "no change"),
        ),
      ),
    );
  }

  function goStage(at) {
    change({ transition: at, shape: 0, hunk: 0 });
  }

  function listShapes() {
    const { shapes } = transition();
    const items = shapes.slice(0, MOST_LISTED).map((hunks, at) => {
      const pairs = hunks[0].nodes.map((node) => transition().nodes[node]);
      const changed = pairs.filter((_, node) => hunks[0].context[node] === "0");
      const counts = ["added", "removed", "rewired", "changed"].map((kind) => [
        kind,
        changed.filter(([one]) => one === kind).length,
      ]);
      const chips = counts
        .filter(([, number]) => number)
        .map(([kind, number]) => make("span", { class: `chip ${kind}` }, `${number} ${kind}`));
      return make(
        "li",
        {},
        make(
          "button",
          { "data-shape": at, onclick: () => change({ shape: at, hunk: 0 }) },
          make("b", {}, `×${hunks.length}`),
          make("span", { class: "chips" }, ...chips),
          make("small", {}, shapeName(transition(), hunks[0])),
        ),
      );
    });
    const rest = shapes.length - items.length;
    const more =
      rest > 0 ? [make("li", { class: "told" }, `and ${counted(rest, "shape")} more: n goes on to them`)] : [];
    list.replaceChildren(...items, ...more);
  }

  function show() {
    const { shapes } = transition();
    const hunks = shapes[state.shape];
    const hunk = hunks?.[state.hunk];
    state.free?.free();
    state.free = null;
    for (const button of list.querySelectorAll("button")) {
      const current = Number(button.dataset.shape) === state.shape;
      button.setAttribute("aria-current", String(current));
      if (current) {
        button.scrollIntoView({ block: "nearest" });
      }
    }
    views.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.view === state.view)));
    const whole = state.view === "all";
    pair.hidden = state.view !== "drawing" || hunk === undefined;
    record.hidden = pair.hidden;
    fit.hidden = pair.hidden;
    text.hidden = !pair.hidden;
    alike.hidden = whole || !hunks || hunks.length < 2;
    title.textContent = whole || !hunk ? stageTitle(transition()) : shapeName(transition(), hunk);
    place.textContent = hunks ? `${state.hunk + 1} of ${hunks.length} alike` : "";
    told.textContent = "";
    captions.forEach((caption, at) => (caption.textContent = transition().labels[at]));
    if (whole) {
      state.long ??= longDiff(transition().text, transition().lines_left_out);
      text.replaceChildren(state.long.element);
    } else if (hunk === undefined) {
      text.replaceChildren(make("p", { class: "nothing" }, "Nothing differs here."));
    } else if (hunk.nodes.length === 0) {
      pair.hidden = record.hidden = true;
      text.hidden = false;
      text.replaceChildren(
        make(
          "p",
          { class: "nothing" },
          "There was no room for this one in the file: it is like the first of its kind.",
        ),
      );
    } else {
      showHunk(hunk);
    }
  }

  function showHunk(hunk) {
    const pairs = hunk.nodes.map((node) => pairAt(transition(), node));
    const rest = hunk.left_out ? `${counted(hunk.left_out, "node")} more are not in this file` : "";
    if (state.view === "text") {
      text.replaceChildren(diffElement(hunkText(transition().labels, pairs)));
      told.textContent = rest;
      return;
    }
    state.free = drawHunk(panes, pairs, hunk.context, pick);
    told.textContent = [state.free.told, rest].filter(Boolean).join("; ");
    pick(pairs.find((_, at) => hunk.context[at] === "0"));
  }

  function pick(chosen) {
    for (const box of pair.querySelectorAll(".box")) {
      box.classList.toggle("chosen", Number(box.dataset.place) === chosen.place);
    }
    const what = make("span", { class: `chip ${chosen.change}` }, chosen.change);
    const fields = chosen.fields.length ? ` (${chosen.fields.join(", ")})` : "";
    const name = (chosen.after ?? chosen.before).record.name;
    record.replaceChildren(
      make("h3", {}, name, " ", what, make("small", {}, fields)),
      recordTable(chosen, transition().labels),
    );
  }

  // The next shape, over the ends of comparisons.
  function goShape(step) {
    if (state.view === "all") {
      state.long.jump(step);
      return;
    }
    let [at, shape] = [state.transition, state.shape + step];
    while (at >= 0 && at < DATA.transitions.length && !DATA.transitions[at].shapes[shape]) {
      at += step;
      shape = step > 0 ? 0 : (DATA.transitions[at]?.shapes.length ?? 0) - 1;
    }
    if (DATA.transitions[at]) {
      change({ transition: at, shape, hunk: 0 });
    }
  }

  function goHunk(step) {
    const hunks = transition().shapes[state.shape] ?? [];
    if (hunks.length > 1) {
      change({ hunk: (state.hunk + step + hunks.length) % hunks.length });
    }
  }

  function goSite(graph, site) {
    for (const [at, one] of DATA.transitions.entries()) {
      for (const [shape, hunks] of one.shapes.entries()) {
        const hunk = hunks.findIndex((found) => one.graph === graph && found.sites.includes(site));
        if (hunk >= 0) {
          change({ transition: at, shape, hunk, view: "drawing" });
          return;
        }
      }
    }
  }

  if (DATA.transitions.length === 0) {
    panel.replaceChildren(make("p", { class: "nothing" }, "There is nothing to compare."));
    return {};
  }
  const first = DATA.transitions.findIndex((one) => one.shapes.length);
  let begun = false;
  return {
    goSite,
    // drawn once the panel has a size
    shown: () => !begun && ((begun = true), change({ transition: Math.max(first, 0) })),
    keys: {
      n: () => goShape(1),
      p: () => goShape(-1),
      j: () => goHunk(1),
      k: () => goHunk(-1),
      f: () => state.free?.fit(),
      "+": () => state.free?.zoomBy(1.3),
      "-": () => state.free?.zoomBy(1 / 1.3),
      t: () => change({ view: state.view === "drawing" ? "text" : "drawing" }),
    },
    help: [
      ["n p", "next, previous change"],
      ["j k", "next, previous of those alike"],
      ["t", "text or drawing"],
      ["f + −", "fit, zoom"],
    ],
  };
}

function stageTitle(transition) {
  const [before, after] = transition.stages;
  const graphs = new Set(DATA.transitions.map((one) => one.graph)).size;
  const stages = before === after ? after : `${before} → ${after}`;
  return graphs > 1 ? `graph ${transition.graph}: ${stages}` : stages;
}

function shapeName(transition, hunk) {
  if (hunk.sites.length) {
    const more = hunk.sites.length > 1 ? ` and ${counted(hunk.sites.length - 1, "site")} more` : "";
    return inSites(siteName(transition, hunk.sites[0])) + more;
  }
  const place = hunk.context.indexOf("0");
  if (hunk.nodes[place] === undefined) {
    return counted(hunk.left_out, "node");
  }
  const pair = pairAt(transition, hunk.nodes[place]);
  return shortened((pair.after ?? pair.before).record.name, 48);
}
