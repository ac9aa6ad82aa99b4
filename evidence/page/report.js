// Sorting, filtering, and drawing the chosen figure. No framework; without it the page is complete but still.
"use strict";

const text = (cell) => cell.dataset.value ?? cell.textContent.trim();

// Numbers before words, empty cells last in either direction.
function compare(a, b, direction) {
  if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;
  const [x, y] = [Number.parseFloat(a), Number.parseFloat(b)];
  const numbers = !Number.isNaN(x) && !Number.isNaN(y);
  return direction * (numbers ? x - y : a.localeCompare(b, "en", { numeric: true }));
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compare(text(a.cells[column]), text(b.cells[column]), up ? 1 : -1));
      table.tBodies[0].append(...rows);
    });
  });
}

function filterable(table) {
  const search = document.querySelector(`[data-filter="${table.id}"]`);
  const selects = [...document.querySelectorAll(`[data-for="${table.id}"]`)];
  const count = document.getElementById(`${table.id}-count`);
  if (!search) return;
  const rows = [...table.tBodies[0].rows];
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const content = row.textContent.toLowerCase();
      const chosen = selects.every((s) => !s.value || row.dataset[s.dataset.column] === s.value);
      row.hidden = !(chosen && words.every((word) => content.includes(word)));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  };
  [search, ...selects].forEach((input) => input.addEventListener("input", apply));
  apply();
}

function drawable(select) {
  const key = select.dataset.figures;
  const figures = JSON.parse(document.getElementById(`data-${key}`).textContent);
  const plot = document.getElementById(`plot-${key}`);
  const draw = () => {
    const figure = figures[Number(select.value)];
    plot.setAttribute("aria-label", figure.title);
    document.getElementById(`title-${key}`).textContent = `${figure.title}.`;
    const narrow = plot.clientWidth < 560;
    const legend = narrow ? { ...figure.layout.legend, orientation: "h", y: -0.25 } : figure.layout.legend;
    const height = narrow ? figure.layout.height + 100 : figure.layout.height;
    Plotly.react(plot, figure.data, { ...figure.layout, legend, height }, { responsive: true, displaylogo: false });
  };
  select.addEventListener("change", draw);
  draw();
}

document.querySelectorAll("table.sortable").forEach((table) => {
  sortable(table);
  filterable(table);
});
document.querySelectorAll("[data-figures]").forEach(drawable);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
