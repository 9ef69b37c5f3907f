"use strict";
// What of the backward runs under some decisions, by the conditions that were compiled.

const BACKWARDS = DATA.backwards.map((backward) => backward && prepared(backward));
const CALL_SITES = DATA.calls.map((_, call) =>
  DATA.sites.flatMap((site, place) => (site.call === call ? [place] : [])),
);

// With the place of each node's region, and the FLOPs that run always and at most.
function prepared(backward) {
  const places = new Map(backward.regions.map((region, place) => [region.number, place]));
  const { region, flops } = backward.nodes;
  const always = flops.reduce((sum, one, node) => (region[node] === null ? sum + one : sum), 0);
  const total = flops.reduce((sum, one) => sum + one, 0);
  return { ...backward, regionOf: region.map((number) => (number === null ? -1 : places.get(number))), always, total };
}

// opens: for each site of the graph. Returns for each region whether it runs.
function regionsThatRun(backward, opens) {
  const values = [false, true];
  for (const [site, low, high] of backward.rows) {
    values.push(opens[site] ? values[high] : values[low]);
  }
  return backward.regions.map((region) => values[backward.roots[region.condition]]);
}

function callUnder(call, opens) {
  const backward = BACKWARDS[DATA.calls[call]];
  if (!backward) {
    return { running: [], flops: 0, total: 0 };
  }
  const running = regionsThatRun(
    backward,
    CALL_SITES[call].map((place) => opens[place]),
  );
  const flops = backward.regions.reduce(
    (sum, region, place) => (running[place] ? sum + region.flops : sum),
    backward.always,
  );
  return { running, flops, total: backward.total };
}

// opens: for each of DATA.sites.
function whatIf(opens) {
  const calls = DATA.calls.map((_, call) => callUnder(call, opens));
  const [flops, total] = ["flops", "total"].map((key) => calls.reduce((sum, one) => sum + one[key], 0));
  return { calls, flops, total, share: total ? flops / total : 1 };
}
