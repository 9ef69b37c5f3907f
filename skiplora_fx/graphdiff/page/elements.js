"use strict";
// Elements, and numbers as text. Nothing is made from markup, so texts of the model stay text.

function make(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function draw(tag, attributes, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

// Attributes that are null or false are left out; one that begins with "on" is a listener.
function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) {
      element.addEventListener(name.slice(2), value);
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, title]) => make("option", { value }, title)));
  return select;
}

function counted(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function flopsText(flops) {
  const powers = ["", "k", "M", "G", "T", "P"];
  const power = Math.min(Math.floor(Math.log10(Math.max(flops, 1)) / 3), powers.length - 1);
  return `${Number((flops / 1000 ** power).toPrecision(3))} ${powers[power]}FLOPs`;
}

// The middle of what is too long is left out: names differ at their ends.
function shortened(text, most) {
  const kept = Math.floor((most - 1) / 2);
  return text.length <= most ? text : `${text.slice(0, most - 1 - kept)}…${text.slice(text.length - kept)}`;
}

// An operator's last name where what is before it only says in which part of torch it lies.
function shortTarget(target) {
  return /^(torch\.|_operator\.)/.test(target) ? target.split(".").at(-1) : target;
}
