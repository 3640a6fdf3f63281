// The four things that are done to the document. Text gets in as text only: nothing here, or anywhere, reads markup.

const SVG = "http://www.w3.org/2000/svg";

export const $ = id => document.getElementById(id);

export function text(element, value) {      // touches nothing that is so already, for the sake of selections and screen readers
  if (element.textContent !== value) element.textContent = value;
}

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const icon = name => draw("svg", {class: "icon", "aria-hidden": "true"}, draw("use", {href: `#i-${name.replace(" ", "-")}`}));
