"use strict";
// What the page shows. Texts and records are held once, and referred to by their places.

const DATA = JSON.parse(document.getElementById("data").textContent);
const NUMBERS = new Set(["site", "condition", "region", "FLOPs"]);

function textAt(place) {
  return DATA.texts[place];
}

function recordAt(place) {
  return Object.fromEntries(
    DATA.fields.map((field, column) => {
      const value = DATA.records[place][column];
      return [field, NUMBERS.has(field) ? value : textAt(value)];
    }),
  );
}

// A node that is compared: its change, the fields that differ, and both sides as {record, reads}, or null.
function pairAt(transition, place) {
  const [change, fields, before, after] = transition.nodes[place];
  const side = (found) => found && { record: recordAt(found[0]), reads: found[1] };
  return { place, change, fields, before: side(before), after: side(after) };
}

function siteName(transition, index) {
  return transition.sites[index] || "(the model)";
}

function runs() {
  return DATA.snapshots.length;
}

// What all names begin with, to the last dot.
function commonPath(names) {
  const parts = names.map((name) => name.split(".").slice(0, -1));
  let common = 0;
  while (parts.length && parts.every((part) => part.length > common && part[common] === parts[0][common])) {
    common += 1;
  }
  return parts.length && common ? `${parts[0].slice(0, common).join(".")}.` : "";
}

const SITES_PREFIX = commonPath(DATA.sites.map((site) => site.name));

// A path without the parts that it shares with all sites, from the first on.
function inSites(path) {
  const [parts, shared] = [path.split("."), SITES_PREFIX.split(".")];
  const own = parts.findIndex((part, place) => part !== shared[place]);
  return own < 0 ? path : parts.slice(own).join(".");
}
