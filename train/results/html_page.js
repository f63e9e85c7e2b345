// The page's own part: sorting, colours of the theme, keys, and loading the page again.
// plotly.js draws. What the reader has set is kept when the page is loaded again.

const key = `resnet-train ${location.pathname}`;
const state = { zoom: {}, hidden: [], sort: {}, paused: false };
Object.assign(state, JSON.parse(sessionStorage.getItem(key)));
const keep = () => sessionStorage.setItem(key, JSON.stringify(state));

// Sorting

function sortBy(table, column, direction) {
  const value = (row) => {
    const cell = row.cells[column];
    return "sort" in cell.dataset ? Number(cell.dataset.sort) : cell.textContent.trim();
  };
  const rank = { number: 0, string: 1 }; // a cell without a number comes last
  const rows = [...table.tBodies[0].rows].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (typeof a !== typeof b) return rank[typeof a] - rank[typeof b];
    return direction * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  });
  table.tBodies[0].append(...rows);
  [...table.tHead.rows[0].cells].forEach((cell, place) => {
    const order = direction > 0 ? "ascending" : "descending";
    cell.setAttribute("aria-sort", place === column ? order : "none");
  });
}

document.querySelectorAll("table.sortable").forEach((table, number) => {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    cell.querySelector("button").addEventListener("click", () => {
      const direction = cell.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      sortBy(table, column, direction);
      state.sort[number] = [column, direction];
      keep();
    });
  });
  if (state.sort[number]) sortBy(table, ...state.sort[number]);
});

// Charts

const source = document.getElementById("charts").textContent;
const config = {
  displaylogo: false,
  displayModeBar: true,
  responsive: true,
  modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
};
const isTouched = matchMedia("(pointer: coarse)").matches; // there a drag scrolls the page

function draw() {
  const style = getComputedStyle(document.documentElement);
  const colour = (_, name) => style.getPropertyValue(name).trim();
  const figures = JSON.parse(source.replace(/var\((--[\w-]+)\)/g, colour));
  for (const [name, { data, layout }] of Object.entries(figures)) {
    for (const trace of data) trace.visible = !state.hidden.includes(trace.legendgroup);
    const [x, y] = state.zoom[name] ?? [];
    if (x) layout.xaxis.range = x;
    if (x && !layout.yaxis.fixedrange) layout.yaxis.range = y;
    Plotly.react(name, data, { ...layout, dragmode: isTouched ? false : "zoom" }, config);
  }
}

function move(chart, name) {
  const { range } = chart.layout.xaxis;
  const width = range[1] - range[0];
  const [low, high] = {
    ArrowLeft: [-0.2, -0.2],
    ArrowRight: [0.2, 0.2],
    "+": [0.2, -0.2],
    "-": [-0.3, 0.3],
  }[name];
  Plotly.relayout(chart, { "xaxis.range": [range[0] + low * width, range[1] + high * width] });
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
for (const chart of document.querySelectorAll(".chart")) {
  chart.on("plotly_relayout", () => {
    const { xaxis, yaxis } = chart.layout;
    state.zoom[chart.id] = xaxis.autorange ? undefined : [xaxis.range, yaxis.range];
    keep();
  });
  chart.addEventListener("keydown", (event) => {
    if (event.target !== chart || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "0") {
      Plotly.relayout(chart, { "xaxis.autorange": true, "yaxis.autorange": true });
    } else if (["ArrowLeft", "ArrowRight", "+", "-"].includes(event.key)) {
      move(chart, event.key);
    } else {
      return;
    }
    event.preventDefault();
  });
}

for (const button of document.querySelectorAll(".legend button")) {
  const { group } = button.dataset;
  button.setAttribute("aria-pressed", !state.hidden.includes(group));
  button.addEventListener("click", () => {
    const isShown = state.hidden.includes(group);
    state.hidden = isShown ? state.hidden.filter((other) => other !== group) : [...state.hidden, group];
    button.setAttribute("aria-pressed", isShown);
    keep();
    draw();
  });
}

// Loading again

const box = document.getElementById("refresh");
if (box) {
  box.checked = !state.paused;
  box.addEventListener("change", () => {
    state.paused = !box.checked;
    keep();
  });
  setInterval(() => box.checked && location.reload(), 1000 * refreshSeconds);
}
