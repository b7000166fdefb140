// What the parts of the page are made of.

/** Make an element with properties and children; text stays text. */
export function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A table of heads and rows; each row's first cell names it. */
export function table(heads, rows) {
  return element("table", {}, element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows.map(([first, ...cells]) => element("tr", {},
      element("th", { scope: "row" }, first), ...cells.map((cell) => element("td", {}, cell ?? ""))))));
}

/** Put a table where it can be scrolled, by the keyboard, too. */
export function scrolling(made, label) {
  const box = element("div", { className: "scroll", tabIndex: 0 }, made);
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", label);
  return box;
}

/** A row of texts on a bar that fills a share of it. */
export function bar(share, ...texts) {
  const made = element("span", { className: "bar" }, ...texts.map((text) => element("span", {}, text)));
  made.style.setProperty("--share", `${100 * share}%`);
  return made;
}

export const percent = (share) => `${(100 * share).toFixed(1)} %`;
