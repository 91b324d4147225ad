"use strict";

const find = (id) => document.getElementById(id);

/* Sort rows by the data-v of one column: numbers as numbers, the rest as text, missing values last either way. */
function sortRows(table, column, ascending) {
  const body = table.tBodies[0];
  const keyed = Array.from(body.rows, (row) => {
    const value = row.cells[column].getAttribute("data-v");
    return { row, missing: value === null, value: column === 0 ? value : Number(value) };
  });
  const order = column === 0
    ? (a, b) => a.value.localeCompare(b.value, "en", { numeric: true })
    : (a, b) => a.value - b.value;
  keyed.sort((a, b) => a.missing - b.missing || (a.missing ? 0 : ascending ? order(a, b) : order(b, a)));
  body.append(...keyed.map((entry) => entry.row));
}

function makeSortable(table) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.setAttribute("type", "button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortRows(table, column, ascending);
      enterAtFirst(table);
    });
  });
}

function makeFilter(table) {
  const name = find("name");
  const state = find("state");
  const rows = Array.from(table.tBodies[0].rows);
  const apply = () => {
    const wanted = name.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = row.cells[0].textContent.toLowerCase().includes(wanted)
        && (state.value === "" || row.getAttribute("data-state") === state.value);
      row.hidden = !fits;
      shown += fits;
    }
    find("shown").textContent = shown.toLocaleString("en") + " of " + rows.length.toLocaleString("en") + " layers";
    enterAtFirst(table);
  };
  name.addEventListener("input", apply);
  state.addEventListener("change", apply);
  find("filter").hidden = false;
  return () => { name.value = ""; state.value = ""; apply(); };
}

/* One row is reached by Tab; the arrow keys, Home and End go on from there. */
function enterAtFirst(table) {
  const rows = Array.from(table.tBodies[0].rows);
  rows.forEach((row) => row.setAttribute("tabindex", "-1"));
  const first = rows.find((row) => !row.hidden);
  if (first) first.setAttribute("tabindex", "0");
}

function makeKeyboard(table) {
  table.tBodies[0].addEventListener("keydown", (event) => {
    const row = event.target.closest("tr");
    const rows = Array.from(table.tBodies[0].rows).filter((other) => !other.hidden);
    const at = rows.indexOf(row);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to === undefined || !rows[to]) return;
    event.preventDefault();
    row.setAttribute("tabindex", "-1");
    rows[to].setAttribute("tabindex", "0");
    rows[to].focus();
  });
}

/* The map and the table point at each other. */
function connectMap(table, showAll) {
  const cells = new Map();
  document.querySelectorAll("rect[data-layer]").forEach((cell) => cells.set(cell.getAttribute("data-layer"), cell));
  const say = (cell) => { find("cell").textContent = cell.querySelector("title").textContent; };
  for (const [layer, cell] of cells) {
    cell.addEventListener("pointerenter", () => say(cell));
    cell.addEventListener("click", () => {
      const row = find("layer-" + layer);
      if (row.hidden) showAll();
      row.setAttribute("tabindex", "0");
      row.focus();
    });
  }
  const mark = (event, on) => {
    const row = event.target.closest("tr");
    const cell = row && cells.get(row.id.slice("layer-".length));
    if (cell) cell.classList.toggle("on", on);
  };
  table.tBodies[0].addEventListener("focusin", (event) => mark(event, true));
  table.tBodies[0].addEventListener("focusout", (event) => mark(event, false));
}

/* What is copied is what is seen. Where the browser refuses, the text is selected for Ctrl+C. */
function makeCopy(button, source) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected: press Ctrl+C";
    }
  });
}

function makeDownload(button) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    const address = URL.createObjectURL(new Blob([find("data").textContent], { type: "application/json" }));
    link.setAttribute("href", address);
    link.setAttribute("download", "eckart_measurement.json");
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  });
}

const layers = find("layers");
if (layers) {
  makeSortable(layers);
  makeKeyboard(layers);
  connectMap(layers, makeFilter(layers));
  enterAtFirst(layers);
}
if (find("copy")) makeCopy(find("copy"), find("command"));
makeDownload(find("download"));
document.documentElement.setAttribute("data-ready", "");
