"use strict";
// Boxes and arrows, laid out by dagre from top to bottom.

const CHARACTER = 6.65; // width of one in the boxes' type
const LINE = 15;

function boxSize(lines) {
  const longest = Math.max(...lines.map((line) => line.length));
  return { width: Math.max(longest * CHARACTER + 18, 60), height: lines.length * LINE + 12 };
}

// boxes: [{id, width, height, inside}], where inside is the id of a frame; frames: [{id, inside}];
// arrows: [{from, to, up}], where up points from the lower box to the upper one. Returns {width, height, boxes: Map of id to its place, arrows: the same with a path}.
function layOut(boxes, arrows, frames = []) {
  const graph = new dagre.graphlib.Graph({ compound: frames.length > 0 });
  graph.setGraph({
    rankdir: "TB",
    nodesep: 18,
    ranksep: frames.length ? 44 : 24,
    marginx: 12,
    marginy: frames.length ? 30 : 12,
  });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const { id, width, height } of boxes) {
    graph.setNode(id, { width, height });
  }
  for (const { id } of frames) {
    graph.setNode(id, {});
  }
  for (const { id, inside } of [...boxes, ...frames]) {
    if (inside) {
      graph.setParent(id, inside);
    }
  }
  for (const { from, to } of arrows) {
    graph.setEdge(from, to);
  }
  dagre.layout(graph);
  const places = new Map(graph.nodes().map((id) => [id, graph.node(id)]));
  const paths = arrows.map((arrow) => {
    const { points } = graph.edge({ v: arrow.from, w: arrow.to });
    return { ...arrow, path: curve(arrow.up ? points.toReversed() : points) };
  });
  return { width: graph.graph().width, height: graph.graph().height, boxes: places, arrows: paths };
}

function curve(points) {
  const [first, ...rest] = points;
  const last = rest.pop();
  const bends = rest.map((point, place) => {
    const next = rest[place + 1] ?? last;
    const end = place + 1 < rest.length ? { x: (point.x + next.x) / 2, y: (point.y + next.y) / 2 } : last;
    return `Q${point.x},${point.y} ${end.x},${end.y}`;
  });
  return `M${first.x},${first.y}${bends.length ? bends.join("") : `L${last.x},${last.y}`}`;
}

// A picture of a size, in a group that is panned and zoomed. Its ground gives both sides of a pair the same extent.
function picture(layout, label, ...parts) {
  const ground = draw("rect", { class: "ground", width: layout.width, height: layout.height });
  const viewport = draw("g", { class: "svg-pan-zoom_viewport" }, ground, ...parts);
  return draw("svg", { role: "group", "aria-label": label }, viewport);
}

function drawArrow(arrow, kind = "") {
  return draw("path", { class: `arrow ${kind}`, d: arrow.path, "marker-end": `url(#head${kind && "-"}${kind})` });
}

// place: as dagre gives it, the middle and the size. act is called on a click or on Enter.
function drawBox(place, lines, attributes, act, ...extra) {
  const [left, top] = [place.x - place.width / 2, place.y - place.height / 2];
  const rect = draw("rect", { width: place.width, height: place.height, rx: 5 });
  const texts = lines.map((line, row) =>
    draw("text", { x: place.width / 2, y: 6 + LINE * (row + 0.75), class: row === 0 ? "main" : "minor" }, line),
  );
  const keys = (event) => event.key === "Enter" && (event.preventDefault(), act());
  const chosen = { tabindex: 0, role: "button", onclick: act, onkeydown: keys };
  const position = { transform: `translate(${left},${top})` };
  return draw("g", { ...attributes, ...position, ...chosen }, rect, ...extra, ...texts);
}
