"use strict";
// The backward, drawn by module; what is dead under the decisions is grey.

const MOST_BOXES = 160;
const FRAME_HEAD = 16;
const MOST_ARROWS = 16; // of one box: those of a box that has more are left out

// Draws into pane; told(text) says what a chosen node is, or what had to be closed.
function backwardView(pane, backward, told) {
  const root = moduleTree(backward);
  let opened = firstOpened(root);
  let running = [];
  let zoomed = null;
  let boxes = [];
  let arrows = [];

  function visible() {
    const open = new Set(opened);
    const shown = [];
    const frames = [];
    const walk = (element, inside) => {
      for (const kid of element.kids) {
        if (open.has(kid)) {
          frames.push({ element: kid, inside });
          walk(kid, kid.id);
        } else {
          shown.push({ element: kid, inside });
        }
      }
    };
    walk(root, "");
    return { shown, frames };
  }

  function render() {
    zoomed?.free();
    const { shown, frames } = visible();
    const drawnFrames = frames.filter(({ element }) => !isShell(element, opened));
    const framed = new Set(drawnFrames.map(({ element }) => element.id));
    const inside = (one) => (framed.has(one.inside) ? one.inside : around(one.inside, frames, framed));
    const sized = shown.map((one) => ({ ...one, id: one.element.id, lines: elementLines(one.element), inside: inside(one) }));
    const layout = layOut(
      sized.map(({ id, lines, inside }) => ({ id, inside, ...boxSize(lines), height: lines.length * LINE + 20 })),
      arrowsBetween(shown),
      drawnFrames.map((one) => ({ id: one.element.id, inside: inside(one) })),
    );
    boxes = sized.map((one) => {
      const place = layout.boxes.get(one.id);
      const bar = ["track", "share"].map((kind) => draw("rect", { class: kind, x: 8, y: place.height - 9, width: place.width - 16, height: 4, rx: 2 }));
      const label = { class: `box ${one.element.leaf ? "leaf" : "module"}`, "data-element": one.id };
      return { ...one, bar: bar[1], width: place.width - 16, drawn: drawBox(place, one.lines, label, () => choose(one.element), ...bar) };
    });
    const byId = new Map(boxes.map((one) => [one.id, one]));
    arrows = layout.arrows.map((arrow) => ({ from: byId.get(arrow.from), to: byId.get(arrow.to), drawn: drawArrow(arrow) }));
    const element = picture(
      layout,
      "the backward by module",
      ...drawnFrames.map((one) => frame(one.element, layout.boxes.get(one.element.id))),
      ...arrows.map((arrow) => arrow.drawn),
      ...boxes.map((one) => one.drawn),
    );
    pane.replaceChildren(element);
    zoomed = panZoomed([element], layout);
    colour();
  }

  function arrowsBetween(shown) {
    const owner = new Array(backward.nodes.name.length);
    for (const { element } of shown) {
      for (const node of element.nodes) {
        owner[node] = element.id;
      }
    }
    const order = new Map(shown.map(({ element }) => [element.id, element.nodes.reduce((sum, node) => sum + node, 0) / element.nodes.length]));
    const found = new Map();
    backward.nodes.reads.forEach((sources, node) => {
      for (const source of sources) {
        const [from, to] = [owner[source], owner[node]];
        const up = order.get(from) > order.get(to);
        const key = up ? `${to} ${from}` : `${from} ${to}`;
        if (from !== to && !(up && found.has(key))) {
          found.set(key, up ? { from: to, to: from, up } : { from, to, up });
        }
      }
    });
    return withoutHubs([...found.values()]);
  }

  function elementLines(element) {
    if (element.leaf) {
      const [node] = element.nodes;
      const { target, types, name } = backward.nodes;
      return [shortened(shortTarget(textAt(target[node])), 30), shortened(textAt(types[node]) || textAt(name[node]), 30)];
    }
    const flops = element.nodes.reduce((sum, node) => sum + backward.nodes.flops[node], 0);
    return [shortened(element.title, 30), `${counted(element.nodes.length, "node")} · ${flopsText(flops)}`];
  }

  function frame(element, place) {
    const [left, top] = [place.x - place.width / 2, place.y - place.height / 2];
    const keys = (event) => event.key === "Enter" && close(element);
    const title = draw(
      "text",
      { x: 8, y: -4, class: "frame-title", tabindex: 0, role: "button", onclick: () => close(element), onkeydown: keys },
      `− ${shortened(element.path || element.title, Math.max(Math.floor(place.width / CHARACTER) - 4, 8))}`,
    );
    const rect = draw("rect", { y: -FRAME_HEAD, width: place.width, height: place.height + FRAME_HEAD, rx: 6 });
    return draw("g", { class: "frame", transform: `translate(${left},${top})` }, rect, title);
  }

  function choose(element) {
    if (element.leaf) {
      const [node] = element.nodes;
      const { name, target, types, region, flops, module } = backward.nodes;
      const runs = backward.regionOf[node] < 0 || running[backward.regionOf[node]] ? "runs" : "does not run";
      const where = region[node] === null ? "always" : `region ${region[node]}`;
      told([textAt(name[node]), textAt(target[node]), textAt(types[node]), textAt(module[node]), flopsText(flops[node]), `${where}: ${runs}`].filter(Boolean).join(" · "));
      return;
    }
    open(element);
  }

  // Opens a module; others are closed, those opened first, if there would be too many boxes.
  function open(element) {
    opened.push(element);
    const kept = opened.length;
    while (visible().shown.length > MOST_BOXES) {
      const victim = opened.find((one) => one !== element && !contains(one, element));
      if (victim === undefined) {
        break;
      }
      opened = opened.filter((one) => one !== victim && !contains(victim, one));
    }
    told(opened.length < kept ? `${counted(kept - opened.length, "module")} closed: at most ${MOST_BOXES} boxes are drawn` : "");
    render();
  }

  function close(element) {
    opened = opened.filter((one) => one !== element && !contains(element, one));
    told("");
    render();
  }

  function colour() {
    const { flops } = backward.nodes;
    for (const box of boxes) {
      const alive = box.element.nodes.filter((node) => backward.regionOf[node] < 0 || running[backward.regionOf[node]]);
      const [left, all] = [alive, box.element.nodes].map((nodes) => nodes.reduce((sum, node) => sum + flops[node], 0));
      const share = all ? left / all : alive.length / box.element.nodes.length;
      box.dead = alive.length === 0;
      box.drawn.classList.toggle("dead", box.dead);
      box.drawn.classList.toggle("partly", !box.dead && alive.length < box.element.nodes.length);
      box.bar.setAttribute("width", share * box.width);
      box.drawn.setAttribute("aria-label", `${box.lines.join(", ")}, ${percent(share)} remains`);
    }
    for (const { from, to, drawn } of arrows) {
      drawn.classList.toggle("dead", from.dead || to.dead);
    }
  }

  render();
  return {
    under(found) {
      running = found;
      colour();
    },
    fit: () => zoomed.fit(),
    zoomBy: (factor) => zoomed.zoomBy(factor),
    closeAll() {
      opened = firstOpened(root);
      render();
    },
    free: () => zoomed.free(),
  };
}

function contains(outer, inner) {
  return outer !== inner && outer.kids.some((kid) => kid === inner || contains(kid, inner));
}

// Whether an opened element shows but one opened part: its frame would say nothing.
function isShell(element, opened) {
  return element.kids.length === 1 && opened.includes(element.kids[0]);
}

function around(id, frames, framed) {
  const found = frames.find(({ element }) => element.id === id);
  return found === undefined || framed.has(found.inside) ? (found?.inside ?? "") : around(found.inside, frames, framed);
}

// What hands something to very many others would make one tangle of all arrows.
function withoutHubs(arrows) {
  const ends = new Map();
  for (const { from, to } of arrows) {
    ends.set(from, (ends.get(from) ?? 0) + 1);
    ends.set(to, (ends.get(to) ?? 0) + 1);
  }
  return arrows.filter(({ from, to }) => ends.get(from) <= MOST_ARROWS && ends.get(to) <= MOST_ARROWS);
}
