"use strict";
// The gates, by block: each a button that is pressed while the gate is open.

function gateList(opens, changed) {
  const blocks = blocksOf(DATA.sites);
  const buttons = DATA.sites.map((site, place) =>
    make(
      "button",
      { class: "gate", "data-site": place, title: site.name, onclick: () => changed([place], !opens[place]) },
      shortened(
        site.name.slice(site.block.length).replace(/^\./, "") || site.name.slice(SITES_PREFIX.length) || "(the model)",
        28,
      ),
    ),
  );
  const heads = blocks.map(({ block, places }) =>
    make(
      "button",
      {
        class: "block",
        title: `${block}: all of it`,
        onclick: () => changed(places, !places.some((place) => opens[place])),
      },
      block.slice(SITES_PREFIX.length) || block || "(the model)",
    ),
  );
  const groups = blocks.map(({ places }, at) =>
    make("li", {}, heads[at], make("span", {}, ...places.map((place) => buttons[place]))),
  );

  function refresh() {
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", String(opens[place])));
    blocks.forEach(({ places }, at) => {
      const open = places.filter((place) => opens[place]).length;
      heads[at].setAttribute("aria-pressed", open === 0 ? "false" : open === places.length ? "true" : "mixed");
    });
  }

  return { element: make("ol", { class: "gates" }, ...groups), blocks, refresh };
}

// [{block, places}] in the order of the forward.
function blocksOf(sites) {
  const found = new Map();
  sites.forEach((site, place) => found.set(site.block, [...(found.get(site.block) ?? []), place]));
  return [...found].map(([block, places]) => ({ block, places }));
}
