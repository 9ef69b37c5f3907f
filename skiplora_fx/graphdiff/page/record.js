"use strict";
// All that is known of a node, before and after.

function recordTable(pair, labels) {
  const [before, after] = [pair.before?.record, pair.after?.record];
  const shown = DATA.fields.filter((field) => known(before, field) || known(after, field));
  const rows = shown.map((field) => {
    const differs = before && after && before[field] !== after[field];
    const cells = [before, after].map((side) => make("td", {}, known(side, field) ? String(side[field]) : "–"));
    return make("tr", { class: differs ? "differs" : null }, make("th", { scope: "row" }, field), ...cells);
  });
  const heads = ["", ...labels].map((label) => make("th", { scope: "col" }, label));
  return make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
}

function known(record, field) {
  return record !== undefined && record[field] !== null && record[field] !== "";
}
