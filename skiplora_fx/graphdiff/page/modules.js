"use strict";
// A backward as a tree: modules, what is in them, and nodes.

const MOST_INSIDE = 120; // what one module shows at a time; more is put into groups
const LOOSE = 12; // nodes of a module itself, beside the modules in it, that are shown one by one

// Returns the root: {id, title, path, kids, nodes: [places], leaf: whether it is one node}.
function moduleTree(backward) {
  const root = group("", "", "the backward");
  backward.nodes.module.forEach((text, node) => {
    const path = textAt(text);
    let at = root;
    at.nodes.push(node);
    const parts = path === "" ? [] : path.split(".");
    parts.forEach((part, depth) => {
      const id = `m:${parts.slice(0, depth + 1).join(".")}`;
      let kid = at.byId.get(id);
      if (kid === undefined) {
        kid = group(id, parts.slice(0, depth + 1).join("."), part);
        at.byId.set(id, kid);
      }
      kid.nodes.push(node);
      at = kid;
    });
    at.byId.set(`n:${node}`, { id: `n:${node}`, leaf: true, nodes: [node], kids: [] });
  });
  settle(root);
  return root;
}

function group(id, path, title) {
  return { id, path, title, leaf: false, nodes: [], kids: [], byId: new Map() };
}

function settle(element) {
  element.kids = [...element.byId.values()];
  delete element.byId;
  const inner = element.kids.filter((kid) => !kid.leaf);
  inner.forEach(settle);
  const loose = element.kids.filter((kid) => kid.leaf);
  if (inner.length && loose.length > LOOSE) {
    const own = gathered(
      `o:${element.path}`,
      element.path,
      element.path ? `${element.title} itself` : "outside modules",
      loose,
    );
    element.kids = [...inner, inParts(own)];
  }
  inParts(element);
}

function inParts(element) {
  if (element.kids.length > MOST_INSIDE) {
    const size = Math.ceil(element.kids.length / Math.ceil(element.kids.length / 100));
    const parts = [];
    for (let begin = 0; begin < element.kids.length; begin += size) {
      const kids = element.kids.slice(begin, begin + size);
      parts.push(
        gathered(
          `${element.id}#${element.kids.length}:${begin}`,
          element.path,
          `${begin + 1} to ${begin + kids.length}`,
          kids,
        ),
      );
    }
    element.kids = parts;
    inParts(element);
  }
  return element;
}

function gathered(id, path, title, kids) {
  return { id, path, title, leaf: false, nodes: kids.flatMap((kid) => kid.nodes), kids };
}

// What is open at first: from the root down, while one part holds most of it, to the list of layers.
function firstOpened(root) {
  const opened = [root];
  let at = root;
  while (at !== undefined) {
    const inside = at.nodes.length;
    const layers = at.kids.filter((kid) => /^\d+$/.test(kid.title)).length > 1;
    at = layers ? undefined : at.kids.find((kid) => !kid.leaf && kid.nodes.length > inside / 2);
    opened.push(at);
  }
  return opened.filter(Boolean);
}
