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
      nodes: region.nodes,
      modules: shortened([...modules[place]].filter(Boolean).join(", "), 200),
      otherwise: [...new Set(region.otherwise.map(([, fill]) => textAt(fill)))].join(", "),
    }));
  const columns = [
    { key: "number", title: "cond", number: true },
    { key: "status", title: "state" },
    { key: "flops", title: "FLOPs", number: true, shown: (row) => flopsText(row.flops).replace("FLOPs", "") },
    { key: "nodes", title: "nodes", number: true },
    { key: "modules", title: "modules" },
    { key: "otherwise", title: "if closed" },
  ];
  const { element, refresh } = searchTable({ columns, rows: rows(running), said: "cond" });
  return { element, refresh: (found) => refresh(rows(found)) };
}
