"use strict";
// One hunk before and after, side by side: one layout for both, so that what stayed has the same place.

const MOST_DRAWN = 150; // nodes: dagre takes a third of a second for these

// Fills the two panes. pick(pair) is called when a node is chosen. Returns what panZoomed does, and what is told.
function drawHunk(panes, pairs, context, pick) {
  const chosen = mostTelling(pairs, context);
  const boxes = chosen.map((pair) => ({ id: String(pair.place), ...boxSize(widest(pair)) }));
  const sides = ["before", "after"].map((side) => arrowsOf(chosen, side));
  const all = new Map([...sides[0], ...sides[1]]);
  const layout = layOut(boxes, [...all.values()]);
  const pictures = ["before", "after"].map((side, place) => {
    const there = chosen.filter((pair) => pair[side] !== null);
    const drawn = layout.arrows.filter(({ from, to }) => sides[place].has(`${from} ${to}`));
    const kind = ({ from, to }) => (sides[1 - place].has(`${from} ${to}`) ? "" : ["removed", "added"][place]);
    return picture(
      layout,
      `the nodes ${side}`,
      ...drawn.map((arrow) => drawArrow(arrow, kind(arrow))),
      ...there.map((pair) => nodeBox(pair, side, layout, pick)),
    );
  });
  panes.forEach((pane, place) => pane.replaceChildren(pictures[place]));
  const told = chosen.length < pairs.length ? `${chosen.length} of ${counted(pairs.length, "node")} drawn` : "";
  return { ...panZoomed(pictures, layout), told };
}

// What changed before its context, if not all can be drawn.
function mostTelling(pairs, context) {
  const changed = pairs.filter((_, place) => context[place] === "0");
  const kept = new Set([...changed, ...pairs.filter((_, place) => context[place] === "1")].slice(0, MOST_DRAWN));
  return pairs.filter((pair) => kept.has(pair));
}

function arrowsOf(pairs, side) {
  const there = new Set(pairs.filter((pair) => pair[side] !== null).map((pair) => pair.place));
  const found = new Map();
  for (const pair of pairs) {
    for (const source of pair[side]?.reads ?? []) {
      if (there.has(source)) {
        found.set(`${source} ${pair.place}`, { from: String(source), to: String(pair.place) });
      }
    }
  }
  return found;
}

function widest(pair) {
  const sides = [pair.before, pair.after].filter((side) => side !== null).map((side) => linesOf(side.record));
  const rows = Math.max(...sides.map((lines) => lines.length));
  return Array.from({ length: rows }, (_, row) =>
    sides.map((lines) => lines[row] ?? "").reduce((a, b) => (a.length > b.length ? a : b)),
  );
}

function linesOf(record) {
  const input = record.op === "placeholder" || record.op === "get_attr";
  const region = record.region === null ? "" : `  region ${record.region}`;
  const types = `${shortened(record.types, 30)}${region}`.trim();
  return [
    shortened(input ? record.op : shortTarget(record.target), 34),
    shortened(record.name, 34),
    ...(types ? [types] : []),
  ];
}

function nodeBox(pair, side, layout, pick) {
  const attributes = { class: `box ${pair.change}`, "data-node": pair[side].record.name, "data-place": pair.place };
  const label = `${pair[side].record.name}, ${pair.change}`;
  const act = () => pick(pair);
  return drawBox(
    layout.boxes.get(String(pair.place)),
    linesOf(pair[side].record),
    { ...attributes, "aria-label": label },
    act,
  );
}
