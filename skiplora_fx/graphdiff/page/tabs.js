"use strict";
// Views, each built when it is first looked at, and the keys that each of them knows.

const TABS = new Map();

// build(panel) may return {keys: {key: action}, help: text, shown: action}.
function addTab(id, title, build) {
  const panel = make("section", { id, role: "tabpanel", "aria-labelledby": `tab-${id}`, hidden: true });
  const button = make(
    "button",
    {
      id: `tab-${id}`,
      role: "tab",
      "aria-controls": id,
      "aria-selected": "false",
      tabindex: -1,
      onclick: () => showTab(id),
    },
    title,
  );
  document.getElementById("panels").append(panel);
  document.getElementById("tabs").append(button);
  TABS.set(id, { panel, button, build, view: null });
}

function showTab(id) {
  for (const [other, tab] of TABS) {
    tab.panel.hidden = other !== id;
    tab.button.setAttribute("aria-selected", String(other === id));
    tab.button.tabIndex = other === id ? 0 : -1;
  }
  const tab = TABS.get(id);
  tab.view ??= tab.build(tab.panel) ?? {};
  tab.view.shown?.();
  showHelp(tab.view.help);
  history.replaceState(null, "", `#${id}`);
}

function shownTab() {
  return [...TABS].find(([, tab]) => !tab.panel.hidden)[0];
}

function showHelp(help) {
  const entries = [[`1–${TABS.size}`, "view"], ...(help ?? [])];
  document
    .getElementById("help")
    .replaceChildren(...entries.flatMap(([keys, told]) => [make("span", {}, make("kbd", {}, keys), ` ${told}`)]));
}

function takeKeys() {
  document.getElementById("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step !== undefined) {
      const ids = [...TABS.keys()];
      const next = ids[(ids.indexOf(shownTab()) + step + ids.length) % ids.length];
      showTab(next);
      TABS.get(next).button.focus();
    }
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input:not([type=range]), select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    const numbered = [...TABS.keys()][Number(event.key) - 1];
    const action = numbered === undefined ? TABS.get(shownTab()).view.keys?.[event.key] : () => showTab(numbered);
    if (action !== undefined) {
      event.preventDefault();
      action();
    }
  });
}
