"use strict";
// The conds of a backward: which close.

function regionTable(backward, running) {
  const modules = backward.regions.map(() => new Set());
  backward.regionOf.forEach((place, node) => place >= 0 && modules[place].add(textAt(backward.nodes.module[node])));
  const rows = (found) =>
    backward.regions.map((region, place) => ({
      class: found[place] ? "runs" : "closed",
      status: found[place] ? "runs" : "closed",
      number: region.number,
      flops: region.flops,
      modules: listed(outermost([...modules[place]]).map(inSites), 2),
      otherwise: listed([...new Set(region.otherwise.map(([, fill]) => fillName(textAt(fill))))], 2),
    }));
  const columns = [
    { key: "number", title: "cond", number: true },
    { key: "status", title: "state" },
    { key: "flops", title: "FLOPs", number: true, shown: (row) => flopsText(row.flops).replace("FLOPs", "") },
    { key: "modules", title: "modules" },
    { key: "otherwise", title: "if closed" },
  ];
  const { element, refresh } = searchTable({
    columns,
    filters: ["status"],
    values: { status: ["runs", "closed"] },
    rows: rows(running),
    said: "cond",
  });
  return { element, refresh: (found) => refresh(rows(found)) };
}

function listed(names, most) {
  const rest = names.length > most ? ` and ${names.length - most} more` : "";
  return names.slice(0, most).join(", ") + rest;
}

function outermost(paths) {
  return paths.filter((path) => path && !paths.some((other) => path.startsWith(`${other}.`)));
}

// What stands in for a result of a closed cond, in a word.
function fillName(operator) {
  const name = operator.split(".")[1] ?? operator;
  return { full: "zeros", empty_strided: "not read" }[name] ?? name;
}
