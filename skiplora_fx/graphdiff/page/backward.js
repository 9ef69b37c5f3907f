"use strict";
// The backward, drawn by module; what is dead under the decisions is grey.

const HOW_TO_OPEN = "A click on a module opens it, on its frame's title closes it.";
const MOST_BOXES = 160;
const FRAME_HEAD = 16;
const MOST_ARROWS = 16; // of one box; of one that has more only some are drawn
const MOST_NEAR = 2; // of those that come in, and of those that go out

// Draws into pane; told(text) says what a chosen node is, or what is not drawn.
function backwardView(pane, backward, told) {
  const root = moduleTree(backward);
  let opened = firstOpened(root);
  let running = [];
  let zoomed = null;
  let boxes = [];
  let arrows = [];
  let leftOut = 0;

  function visible() {
    const there = new Set(opened);
    const shown = [];
    const frames = [];
    const walk = (element, inside) => {
      for (const kid of element.kids) {
        if (there.has(kid)) {
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

  // focus: what was opened or closed last, if anything.
  function render(focus = null, message = "") {
    zoomed?.free();
    const { shown, frames } = visible();
    const drawnFrames = frames.filter(({ element }) => !isShell(element, opened));
    const framed = new Set(drawnFrames.map(({ element }) => element.id));
    const inside = (one) => (framed.has(one.inside) ? one.inside : around(one.inside, frames, framed));
    const sized = shown.map((one) => ({
      ...one,
      id: one.element.id,
      lines: elementLines(one.element),
      inside: inside(one),
    }));
    const layout = layOut(
      sized.map(({ id, lines, inside }) => ({ id, inside, ...boxSize(lines), height: lines.length * LINE + 20 })),
      arrowsBetween(shown),
      drawnFrames.map((one) => ({ id: one.element.id, inside: inside(one) })),
    );
    boxes = sized.map((one) => {
      const place = layout.boxes.get(one.id);
      const bar = ["track", "share"].map((kind) =>
        draw("rect", { class: kind, x: 8, y: place.height - 9, width: place.width - 16, height: 4, rx: 2 }),
      );
      const label = { class: `box ${one.element.leaf ? "leaf" : "module"}`, "data-element": one.id };
      return {
        ...one,
        bar: bar[1],
        width: place.width - 16,
        drawn: drawBox(place, one.lines, label, () => choose(one.element), ...bar),
      };
    });
    const byId = new Map(boxes.map((one) => [one.id, one]));
    arrows = layout.arrows.map((arrow) => ({
      from: byId.get(arrow.from),
      to: byId.get(arrow.to),
      drawn: drawArrow(arrow),
    }));
    const element = picture(
      layout,
      "the backward by module",
      ...drawnFrames.map((one) => frame(one.element, layout.boxes.get(one.element.id))),
      ...arrows.map((arrow) => arrow.drawn),
      ...boxes.map((one) => one.drawn),
    );
    pane.replaceChildren(element);
    zoomed = panZoomed([element], layout);
    if (focus !== null) {
      zoomed.show(layout.boxes.get(focus.id));
    }
    colour();
    const tangled = leftOut
      ? `${counted(leftOut, "arrow")} of boxes that have very many ${leftOut === 1 ? "is" : "are"} not drawn.`
      : "";
    told([message, HOW_TO_OPEN, tangled].filter(Boolean).join(" "));
  }

  function arrowsBetween(shown) {
    const owner = new Array(backward.nodes.name.length);
    for (const { element } of shown) {
      for (const node of element.nodes) {
        owner[node] = element.id;
      }
    }
    const order = new Map(shown.map(({ element }) => [element.id, element.nodes[element.nodes.length >> 1]]));
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
    const drawn = withoutTangles([...found.values()], order);
    leftOut = found.size - drawn.length;
    return drawn;
  }

  function elementLines(element) {
    if (element.leaf) {
      const [node] = element.nodes;
      const { target, types, name } = backward.nodes;
      return [
        shortened(shortTarget(textAt(target[node])), 30),
        shortened(textAt(types[node]) || textAt(name[node]), 30),
      ];
    }
    const flops = element.nodes.reduce((sum, node) => sum + backward.nodes.flops[node], 0);
    return [shortened(element.title, 30), `${counted(element.nodes.length, "node")} · ${flopsText(flops)}`];
  }

  function frame(element, place) {
    const [left, top] = [place.x - place.width / 2, place.y - place.height / 2];
    const keys = (event) => event.key === "Enter" && close(element);
    const title = draw(
      "text",
      {
        x: 8,
        y: -4,
        class: "frame-title",
        tabindex: 0,
        role: "button",
        onclick: () => close(element),
        onkeydown: keys,
      },
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
      told(
        [
          textAt(name[node]),
          textAt(target[node]),
          textAt(types[node]),
          textAt(module[node]),
          flopsText(flops[node]),
          `${where}: ${runs}`,
        ]
          .filter(Boolean)
          .join(" · "),
      );
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
    const closed = kept - opened.length;
    render(
      isShell(element, opened) ? null : element,
      closed ? `${counted(closed, "module")} closed: at most ${MOST_BOXES} boxes are drawn.` : "",
    );
  }

  function close(element) {
    opened = opened.filter((one) => one !== element && !contains(element, one));
    render(element);
  }

  function colour() {
    const { flops, view } = backward.nodes;
    for (const box of boxes) {
      const { nodes } = box.element;
      const alive = nodes.filter((node) => backward.regionOf[node] < 0 || running[backward.regionOf[node]]);
      const [left, all] = [alive, nodes].map((some) => some.reduce((sum, node) => sum + flops[node], 0));
      const share = all ? left / all : alive.length / nodes.length;
      // a view that always runs keeps nothing alive
      const idle = alive.every((node) => backward.regionOf[node] < 0 && view[node] === "1");
      box.dead = idle && alive.length < nodes.length;
      box.drawn.classList.toggle("dead", box.dead);
      box.drawn.classList.toggle("partly", !box.dead && alive.length < nodes.length);
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

// What hands something to very many others would make one tangle of all arrows: it keeps those to its neighbours.
function withoutTangles(arrows, order) {
  const ends = new Map();
  for (const arrow of arrows) {
    for (const end of [arrow.from, arrow.to]) {
      ends.set(end, [...(ends.get(end) ?? []), arrow]);
    }
  }
  const length = ({ from, to }) => Math.abs(order.get(to) - order.get(from));
  const dropped = [...ends.values()]
    .filter((own) => own.length > MOST_ARROWS)
    .flatMap((own) => {
      const near = ["from", "to"].flatMap((end) => {
        const there = own.filter((arrow) => ends.get(arrow[end]) === own);
        return there.sort((one, other) => length(one) - length(other)).slice(0, MOST_NEAR);
      });
      return own.filter((arrow) => !near.includes(arrow));
    });
  return arrows.filter((arrow) => !dropped.includes(arrow));
}
