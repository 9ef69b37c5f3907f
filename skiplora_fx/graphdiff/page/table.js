"use strict";
// A table that is searched, sorted by its heads, and filtered by the values of a column.

const MOST_ROWS = 250;

// columns: [{key, title, number, shown(row)}], filters: keys, whose values are those of the rows or given as values; pick(row) is called with the row that is clicked.
function searchTable({ columns, filters = [], values = {}, rows, pick, said }) {
  const state = { search: "", chosen: {}, key: null, down: false, most: MOST_ROWS, rows };
  const search = make("input", {
    type: "search",
    placeholder: "search",
    "aria-label": `search ${said}`,
    oninput: () => update({ search: search.value.toLowerCase(), most: MOST_ROWS }),
  });
  const selects = filters.map((key) => {
    const title = columns.find((column) => column.key === key).title;
    const select = make("select", {
      "aria-label": `filter by ${title}`,
      "data-key": key,
      onchange: () => update({ chosen: { ...state.chosen, [key]: select.value }, most: MOST_ROWS }),
    });
    const there = values[key] ?? [...new Set(rows.map((row) => String(row[key] ?? "")))].filter(Boolean).sort();
    return options(select, [["", `any ${title}`], ...there.map((value) => [value, shortened(value, 60)])]);
  });
  const told = make("span", { class: "told", role: "status" });
  const heads = columns.map((column) => {
    const sort = () =>
      update({ key: column.key, down: state.key === column.key ? !state.down : Boolean(column.number) });
    const title = make("button", { onclick: sort }, column.title);
    return make("th", { scope: "col", class: column.number ? "number" : null }, title);
  });
  const body = make("tbody");
  const more = make(
    "button",
    { class: "more", hidden: true, onclick: () => update({ most: state.most * 4 }) },
    "show more",
  );
  const bar = make("div", { class: "bar" }, search, ...selects, told);
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body);
  const element = make("div", { class: "search-table" }, bar, make("div", { class: "scroll" }, table, more));

  function update(change) {
    Object.assign(state, change);
    const found = state.rows.filter(fits);
    found.sort(state.key === null ? () => 0 : inOrder);
    body.replaceChildren(...found.slice(0, state.most).map(line));
    more.hidden = found.length <= state.most;
    told.textContent = `${found.length.toLocaleString("en")} of ${counted(state.rows.length, said)}`;
    heads.forEach((head, place) => {
      const sorted = columns[place].key === state.key;
      head.setAttribute("aria-sort", sorted ? (state.down ? "descending" : "ascending") : "none");
    });
  }

  function fits(row) {
    const chosen = Object.entries(state.chosen).every(
      ([key, value]) => value === "" || String(row[key] ?? "") === value,
    );
    return (
      chosen &&
      (state.search === "" || columns.some((column) => cell(row, column).toLowerCase().includes(state.search)))
    );
  }

  // What has no value comes last, whichever way the rest is sorted.
  function inOrder(one, other) {
    const [a, b] = [one[state.key] ?? null, other[state.key] ?? null];
    if (a === null || b === null) {
      return (a === null) - (b === null);
    }
    const order = typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return state.down ? -order : order;
  }

  function cell(row, column) {
    return String(column.shown === undefined ? (row[column.key] ?? "") : column.shown(row));
  }

  function line(row) {
    const cells = columns.map((column) => {
      const text = cell(row, column);
      return make("td", { class: column.number ? "number" : null, title: text.length > 30 ? text : null }, text);
    });
    const chosen = pick && {
      tabindex: 0,
      onclick: () => pick(row),
      onkeydown: (event) => event.key === "Enter" && pick(row),
    };
    return make("tr", { class: row.class ?? null, ...chosen }, ...cells);
  }

  update({});
  return { element, refresh: (fresh) => update({ rows: fresh }) };
}
