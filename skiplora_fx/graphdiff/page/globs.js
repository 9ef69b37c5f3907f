"use strict";
// Globs as Python's fnmatchcase takes them: *, ?, [abc], [!abc].

function globPattern(glob) {
  const parts = glob.match(/\[!?\]?[^\]]*\]|[^]/gu) ?? [];
  const pattern = parts.map((part) => {
    if (part === "*") {
      return ".*";
    }
    if (part === "?") {
      return ".";
    }
    const signs = part.length > 1 && part.startsWith("[") ? part.slice(1, -1).replace(/[\\\]^[]/g, "\\$&") : null;
    return signs === null ? part.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&") : `[${signs.replace(/^!/, "^")}]`;
  });
  try {
    return new RegExp(`^${pattern.join("")}$`, "su");
  } catch {
    return /(?!)/; // a range without any sign, such as [z-a], matches nothing
  }
}

// texts: several globs, between spaces or commas.
function globsIn(texts) {
  return texts
    .split(/[\s,]+/)
    .filter(Boolean)
    .map((text) => ({ text, pattern: globPattern(text) }));
}
