"use strict";
(() => {
  const plotted = [...document.querySelectorAll("[data-source]")];
  const point = (name) => {
    document.body.classList.toggle("pointing", name !== null);
    for (const element of plotted) element.classList.toggle("pointed", element.dataset.source === name);
  };
  for (const element of plotted) {
    element.addEventListener("pointerenter", () => point(element.dataset.source));
    element.addEventListener("pointerleave", () => point(null));
  }
  const table = document.getElementById("sources");
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows], few = Number(table.dataset.few);
  const filter = document.getElementById("filter"), more = document.getElementById("more"), count = document.getElementById("count");
  let all = rows.length <= few;
  const show = () => {
    const wanted = filter.value.trim().toLowerCase();
    let visible = 0;
    for (const row of body.rows) {
      const matches = row.dataset.name.includes(wanted);
      row.hidden = !matches || (!wanted && !all && visible >= few);
      if (!row.hidden) visible += 1;
    }
    more.hidden = all || wanted !== "";
    count.textContent = visible === rows.length ? "" : `${visible} of ${rows.length}`;
  };
  filter.addEventListener("input", show);
  more.addEventListener("click", () => { all = true; show(); });
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    const button = head.querySelector("button");
    if (!button) continue;
    button.addEventListener("click", () => {
      const numeric = column > 0;
      const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : numeric;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => numeric ? Number(row.cells[column].dataset.value ?? -1) : row.dataset.name;
      rows.sort((a, b) => { const x = value(a), y = value(b); return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1); });
      body.append(...rows);
      show();
    });
  }
  show();
})();
