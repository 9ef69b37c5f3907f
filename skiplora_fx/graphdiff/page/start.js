"use strict";
// What is shown at first.

document.getElementById("about").textContent = DATA.snapshots
  .map((snapshot) => `${snapshot.model}, scope ${snapshot.scope}, torch ${snapshot.versions.torch ?? "?"}`)
  .join("  →  ");
addTab("summary", "Summary", buildSummary);
addTab("changes", "Changes", buildChanges);
addTab("sites", "Sites", buildSites);
addTab("what-if", "What if", buildWhatIf);
if (DATA.timeline !== null) {
  addTab("timeline", "Timeline", buildTimeline);
}
takeKeys();
const wanted = location.hash.slice(1);
showTab(TABS.has(wanted) ? wanted : "summary");
document.documentElement.dataset.ready = Math.round(performance.now());
