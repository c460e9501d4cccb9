// Layers over the pictures: custom properties reach into what <use> draws, selectors do not.
for (const box of document.querySelectorAll("[data-layer]"))
  box.addEventListener("change", () => {
    const layer = box.dataset.layer, off = layer.startsWith("r") && layer !== "ref" ? "hidden" : "0";
    const style = document.documentElement.style;
    box.checked ? style.removeProperty(`--${layer}-on`) : style.setProperty(`--${layer}-on`, off);
  });

// A picture in large.
const large = document.getElementById("large");
for (const button of document.querySelectorAll(".picture"))
  button.addEventListener("click", () => {
    large.lastElementChild.replaceChildren(button.firstElementChild.cloneNode(true));
    large.showModal();
  });
large?.lastElementChild.addEventListener("click", () => large.close());

// The table of cases: sorted by a click on a column, filtered by model and text, a hundred rows at a time.
const STEP = 100, cell = (name, text) => Object.assign(document.createElement(name), { textContent: text });
const [head, body] = document.getElementById("table").children;
const [model, find, count, more] = ["model", "find", "count", "more"].map(id => document.getElementById(id));
const titles = ["Model", "Case", ...DATA.columns.map(column => column.title), "Empty regions"];
const shape = [row => DATA.models[row[0]], row => row[1],
  ...DATA.columns.map((column, i) => row => row[i + 2] === null ? "–" : row[i + 2].toFixed(column.decimals)),
  row => row.at(-1)];
const kind = i => i < 2 || i === titles.length - 1 ? "text" : "";
const { compare: inOrder } = new Intl.Collator(undefined, { numeric: true });
let sorted = -1, upwards = true, shown = STEP;

function compare(a, b) {
  const [x, y] = [a[sorted], b[sorted]], [noX, noY] = [x, y].map(value => value === null || value === "");
  if (noX || noY) return noX - noY;  // what has no score or remark comes last, either way
  return (upwards ? 1 : -1) * (typeof x === "number" ? x - y : inOrder(x, y));
}

function draw() {
  const text = find.value.toLowerCase(), only = model ? model.value : "";
  const rows = DATA.rows.filter(row => (only === "" || row[0] === +only) &&
    (row[1].toLowerCase().includes(text) || row.at(-1).toLowerCase().includes(text)));
  if (sorted >= 0) rows.sort(compare);
  body.replaceChildren(...rows.slice(0, shown).map(row => {
    const line = document.createElement("tr");
    line.append(...shape.map((show, i) => Object.assign(cell("td", show(row)), { className: kind(i) })));
    return line;
  }));
  count.textContent = rows.length > shown ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
  more.hidden = rows.length <= shown;
  [...head.firstElementChild.children].forEach((th, i) =>
    th.setAttribute("aria-sort", i !== sorted ? "none" : upwards ? "ascending" : "descending"));
}

head.insertRow().append(...titles.map((title, i) => {
  const th = Object.assign(document.createElement("th"), { scope: "col", className: kind(i) }), button = cell("button", title);
  button.addEventListener("click", () => {
    // A first click brings up what one looks for: the worst cases.
    const worst = kind(i) || !DATA.columns[i - 2].small;
    upwards = sorted === i ? !upwards : Boolean(worst);
    sorted = i;
    draw();
  });
  th.append(button);
  return th;
}));
for (const control of [model, find]) control?.addEventListener("input", () => { shown = STEP; draw(); });
find.form.addEventListener("submit", event => event.preventDefault());
more.addEventListener("click", () => { shown += 5 * STEP; draw(); });
draw();
