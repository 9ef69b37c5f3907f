"use strict";
// What is gated, and what trains and is not, and why.

function buildSites(panel) {
  const timeline = DATA.timeline && new Map(DATA.timeline.sites.map((id, place) => [id, place]));
  const gated = DATA.sites.map((site, place) => siteRow(site, place, timeline));
  const rejected = DATA.rejections.map((miss) => ({
    class: "rejected",
    status: "not gated",
    graph: miss.graph,
    name: miss.name,
    reason: miss.reason,
    family: miss.family,
    where: miss.source || miss.node,
  }));
  const share = (key) => (row) => (row[key] === null || row[key] === undefined ? "" : percent(row[key]));
  const columns = [
    { key: "status", title: "status" },
    { key: "name", title: "site" },
    { key: "adapter", title: "adapter" },
    { key: "kind", title: "kind" },
    { key: "rank", title: "rank", number: true },
    { key: "saves", title: "saves alone", number: true, shown: share("saves") },
    ...(timeline
      ? [
          { key: "ratio", title: "last M", number: true },
          { key: "skipped", title: "was shut", number: true, shown: share("skipped") },
        ]
      : []),
    { key: "hunks", title: "hunks", number: true },
    { key: "reason", title: "reason" },
    { key: "family", title: "family" },
    { key: "where", title: "where" },
  ];
  const rows = [...gated, ...rejected];
  const there = columns.filter((column) =>
    rows.some((row) => row[column.key] !== null && row[column.key] !== undefined && row[column.key] !== ""),
  );
  const filters = ["status", "kind", "family", "reason"].filter((key) => there.some((column) => column.key === key));
  const { element } = searchTable({ columns: there, filters, rows, pick: goToSite, said: "site" });
  const note =
    "saves alone: share of the backward's FLOPs that shutting this one leaves out. " +
    "A click on a gated site shows what was done there.";
  panel.append(element, make("p", { class: "told", hidden: gated.length === 0 }, note));
}

function siteRow(site, place, timeline) {
  const opens = DATA.sites.map((_, other) => other !== place);
  const { flops, total } = callUnder(site.call, opens);
  const column = timeline?.get(site.id);
  return {
    class: "gated",
    status: "gated",
    graph: site.graph,
    index: site.index,
    name: site.name || "(the model)",
    adapter: site.adapter,
    kind: site.kind,
    rank: site.rank,
    saves: total ? (total - flops) / whatIfTotal() : null,
    ratio: column === undefined ? null : DATA.timeline.last[column],
    skipped: column === undefined ? null : DATA.timeline.skipped[column],
    hunks: site.hunks,
  };
}

function whatIfTotal() {
  return DATA.calls.reduce((sum, graph) => sum + (BACKWARDS[graph]?.total ?? 0), 0);
}

function goToSite(row) {
  if (row.status === "gated" && row.hunks) {
    showTab("changes");
    TABS.get("changes").view.goSite(row.graph, row.index);
  }
}
