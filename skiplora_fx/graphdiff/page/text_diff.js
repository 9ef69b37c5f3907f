"use strict";
// Unified diffs, drawn by diff2html, which escapes what it is given.

const LINES_AT_ONCE = 400;

function hunkText(labels, pairs) {
  const lines = pairs.flatMap((pair) => {
    if (pair.change === "same") {
      return [` ${recordLine(pair.after.record)}`];
    }
    const sides = [
      ["-", pair.before],
      ["+", pair.after],
    ].filter(([, side]) => side !== null);
    return sides.map(([sign, side]) => sign + recordLine(side.record));
  });
  const there = (side) => pairs.filter((pair) => pair[side] !== null).length;
  const head = `@@ -1,${there("before")} +1,${there("after")} @@`;
  return [`--- ${labels[0]}`, `+++ ${labels[1]}`, head, ...lines].join("\n");
}

function recordLine(record) {
  const notes = [record.types, record.module, record.region === null ? "" : `region ${record.region}`].filter(Boolean);
  return notes.length ? `${record.call}  # ${notes.join(" ")}` : record.call;
}

function diffElement(text) {
  const html = Diff2Html.html(text, {
    drawFileList: false,
    outputFormat: "line-by-line",
    matching: "lines",
    colorScheme: "auto",
  });
  const parsed = new DOMParser().parseFromString(html, "text/html");
  return make("div", { class: "diff" }, ...document.importNode(parsed.body, true).childNodes);
}

// A long diff, some of its parts at a time. Returns {element, jump(step)}: to the next part, or the one before.
function longDiff(text, leftOut) {
  const [head, ...parts] = text.split(/^(?=@@ )/m);
  const element = make("div", { class: "long-diff" });
  const more = make("button", { class: "more", onclick: grow }, "show more");
  const end = make("p", { class: "told" });
  element.append(more, end);
  let shown = 0;

  function grow() {
    const begin = shown;
    let lines = 0;
    while (shown < parts.length && lines < LINES_AT_ONCE) {
      lines += parts[shown].split("\n").length;
      shown += 1;
    }
    if (shown > begin) {
      more.before(...diffElement(head + parts.slice(begin, shown).join("")).childNodes);
    }
    more.hidden = shown === parts.length;
    const rest = leftOut ? `; ${counted(leftOut, "line")} more are not in this file` : "";
    end.textContent = parts.length ? `${shown} of ${counted(parts.length, "part")}${rest}` : "Nothing differs.";
  }

  function jump(step) {
    const top = element.getBoundingClientRect().top;
    const heads = [...element.querySelectorAll("td.d2h-info:not(.d2h-code-linenumber)")];
    const places = heads.map((found) => found.getBoundingClientRect().top - top);
    const next = step > 0 ? places.find((place) => place > 4) : places.findLast((place) => place < -4);
    if (next === undefined && step > 0 && !more.hidden) {
      grow();
      jump(step);
    } else if (next !== undefined) {
      element.scrollTop += next;
    }
  }

  grow();
  return { element, jump };
}
