// Shows what a model wrote: always as text nodes, with the last box marked and formulas drawn by KaTeX once visible.

const LONGEST_FORMULA = 2000; // characters
const TAIL = 700; // characters of a long response that are shown at first
const KATEX_OPTIONS = { throwOnError: false, trust: false, strict: "ignore", maxSize: 20, maxExpand: 200 };
const ENVIRONMENTS = "align\\*?|aligned|equation\\*?|gather\\*?|gathered|cases|array|[bpvV]?matrix";
const BODY = `[\\s\\S]{1,${LONGEST_FORMULA}}?`;
const FORMULA = new RegExp(
  [
    `\\$\\$(?<dollars>${BODY})\\$\\$`,
    `\\\\\\[(?<bracket>${BODY})\\\\\\]`,
    `\\\\\\((?<paren>${BODY})\\\\\\)`,
    `(?<environment>\\\\begin\\{(?<name>${ENVIRONMENTS})\\}${BODY}\\\\end\\{\\k<name>\\})`,
    `\\$(?!\\s)(?<dollar>(?:\\\\.|[^$\\\\\\n]){1,${LONGEST_FORMULA}}?)(?<!\\s)\\$(?!\\d)`,
  ].join("|"),
  "g",
);

// Makes an element; children are nodes or text, never HTML.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Control characters as their pictures, so that they are seen.
function shown(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (character) => {
    const code = character.charCodeAt(0);
    return String.fromCharCode(code === 127 ? 0x2421 : 0x2400 + code);
  });
}

// [start, end] of the last \boxed{...}, its braces balanced; up to the end of the text where they are not; or null.
function lastBox(text) {
  const start = text.lastIndexOf("\\boxed{");
  if (start < 0) return null;
  let depth = 0;
  for (let i = start + 6; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "{") depth++;
    else if (text[i] === "}" && --depth === 0) return [start, i + 1];
  }
  return [start, text.length];
}

// Where a long text's end begins: at the start of a line, and before its box.
function tailStart(text, box) {
  if (text.length <= TAIL * 1.3) return 0;
  let start = text.length - TAIL;
  if (box && box[0] > text.length - 4 * TAIL) start = Math.min(start, Math.max(0, box[0] - 200));
  const line = text.lastIndexOf("\n", start);
  return line > start - TAIL / 2 ? line + 1 : start;
}

// A box with the text; a long one begins with its end.
function textBox(text, { box = null, formulas, collapse = false }) {
  const element = make("div", { class: "passage" });
  const show = (start) => {
    element.replaceChildren();
    if (start > 0) {
      const more = make("button", { type: "button", class: "more", onclick: () => show(0) });
      more.textContent = `show all: ${start.toLocaleString("en")} more characters before this`;
      element.append(more);
    }
    element.append(formatted(text, start, box, formulas));
  };
  show(collapse ? tailStart(text, box) : 0);
  return element;
}

function formatted(text, start, box, formulas) {
  const fragment = document.createDocumentFragment();
  let position = start;
  const plain = (end) => {
    if (end > position) fragment.append(...withMark(text, position, end, box));
    position = Math.max(position, end);
  };
  for (const [from, to, source, display] of formulas ? findFormulas(text, box) : []) {
    if (from < position) continue;
    plain(display ? from - text.slice(position, from).match(/\s*$/)[0].length : from);
    const holdsBox = box && box[0] >= from && box[1] <= to;
    fragment.append(formula(text.slice(from, to), source, display, holdsBox));
    position = display ? to + text.slice(to).match(/^\s*/)[0].length : to; // it stands on a line of its own anyway
  }
  plain(text.length);
  return fragment;
}

// The text from `from` to `to` as nodes, with the part inside `box` marked.
function withMark(text, from, to, box) {
  const start = box ? Math.max(from, box[0]) : to;
  const end = box ? Math.min(to, box[1]) : to;
  if (start >= end) return [shown(text.slice(from, to))];
  return [shown(text.slice(from, start)), make("mark", {}, shown(text.slice(start, end))), shown(text.slice(end, to))];
}

// [from, to, LaTeX, display] of each formula, and of a box that stands outside of one.
function findFormulas(text, box) {
  const found = [];
  for (const match of text.matchAll(FORMULA)) {
    const { dollars, bracket, paren, environment, dollar } = match.groups;
    const source = dollars ?? bracket ?? paren ?? environment ?? dollar;
    found.push([match.index, match.index + match[0].length, source, !(paren ?? dollar)]);
  }
  if (box && box[1] - box[0] <= LONGEST_FORMULA && !found.some(([from, to]) => from < box[1] && box[0] < to)) {
    found.push([...box, text.slice(...box), false]);
    found.sort((a, b) => a[0] - b[0]);
  }
  return found;
}

// Shows its source until it comes into view.
function formula(text, source, display, holdsBox) {
  const element = make("span", { class: holdsBox ? "formula boxed" : "formula" }, shown(text));
  drawing.set(element, [source, display]);
  visible.observe(element);
  return element;
}

const drawing = new WeakMap();
const visible = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      visible.unobserve(target);
      draw(target, ...drawing.get(target));
    }
  },
  { rootMargin: "300px" },
);

function draw(element, source, display) {
  const text = element.textContent;
  try {
    katex.render(source, element, { ...KATEX_OPTIONS, displayMode: display });
    if (element.querySelector(".katex-error")) element.textContent = text;
  } catch {
    element.textContent = text; // not a formula, or too deep
  }
}
