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
})();
(() => {
  const table = document.getElementById("sources");
  if (!table) return;
  const at = (id) => document.getElementById(id);
  const filter = at("filter"), grouped = at("grouped"), unfold = at("unfold"), more = at("more"), count = at("count");
  const heads = [...table.tHead.rows[0].cells], few = Number(table.dataset.few);
  const groups = [...table.tBodies].map((body) => {
    const sums = body.querySelector("tr.sums");
    return { body, sums, name: body.dataset.group, rows: [...body.rows].filter((row) => row !== sums), open: false, button: null };
  });
  const rows = groups.flatMap((group) => group.rows), flat = document.createElement("tbody");
  const groupOf = new Map(groups.flatMap((group) => group.rows.map((row) => [row, group.name])));
  const first = heads.find((head) => head.hasAttribute("aria-sort"))?.dataset.key ?? "name";
  const view = { sort: first, up: first === "name", all: rows.length <= few };

  const columnOf = (key) => heads.findIndex((head) => head.dataset.key === key);
  const byColumn = (rowOf) => {
    const column = columnOf(view.sort), sign = view.up ? 1 : -1;
    const number = (row) => { const value = row?.cells[column].dataset.value; return value === undefined ? null : Number(value); };
    return (a, b) => {
      const one = rowOf(a), other = rowOf(b);
      if (view.sort === "name") return sign * nameOf(one).localeCompare(nameOf(other), "en", { numeric: true });
      const x = number(one), y = number(other);
      if (x === null || y === null) return (x === null) - (y === null); // what has no number comes last either way
      return sign * (x - y);
    };
  };
  const nameOf = (row) => row.dataset.name ?? row.dataset.groupName;
  // A column without sums sorts groups by the source that it puts first.
  const speaker = (group) => (view.sort === "name" || group.sums.cells[columnOf(view.sort)].dataset.value !== undefined ? group.sums : group.rows[0]);

  const arrange = () => {
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[columnOf(view.sort)].setAttribute("aria-sort", view.up ? "ascending" : "descending");
    if (grouped?.checked) {
      for (const group of groups) {
        group.rows.sort(byColumn((row) => row));
        group.body.append(...group.rows);
      }
      flat.remove();
      table.append(...[...groups].sort(byColumn(speaker)).map((group) => group.body));
    } else {
      flat.append(...[...rows].sort(byColumn((row) => row)));
      for (const group of groups) group.body.remove();
      table.append(flat);
    }
  };
  const show = () => {
    const wanted = filter.value.trim().toLowerCase(), inGroups = Boolean(grouped?.checked);
    const matches = (row) => row.dataset.name.includes(wanted) || groupOf.get(row).includes(wanted);
    let found = 0;
    if (inGroups) {
      for (const group of groups) {
        const matching = group.rows.filter(matches), open = group.open || wanted !== "";
        for (const row of group.rows) row.hidden = true;
        if (open) for (const row of matching) row.hidden = false;
        group.sums.hidden = matching.length === 0;
        group.button.setAttribute("aria-expanded", String(open));
        found += matching.length;
      }
    } else {
      for (const row of flat.rows) {
        row.hidden = !matches(row) || (wanted === "" && !view.all && found >= few);
        if (!row.hidden) found += 1;
      }
    }
    more.hidden = inGroups || view.all || wanted !== "";
    if (unfold) {
      unfold.hidden = !inGroups || wanted !== "";
      unfold.textContent = groups.every((group) => group.open) ? "Close all groups" : "Open all groups";
    }
    count.textContent = found === rows.length ? "" : found ? `${found} of ${rows.length}` : `none of ${rows.length} matches`;
  };

  const address = () => {
    const words = [];
    if (view.sort !== first || view.up !== (first === "name")) words.push(["sort", view.sort], ...(view.up !== (view.sort === "name") ? [["order", view.up ? "up" : "down"]] : []));
    if (filter.value.trim()) words.push(["filter", filter.value.trim()]);
    if (grouped && !grouped.checked) words.push(["groups", "no"]);
    if (view.all && rows.length > few) words.push(["all", "yes"]);
    const hash = new URLSearchParams(words).toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  };
  const obey = () => {
    if (!location.hash.includes("=")) return false; // the name of a section, or nothing
    const words = new URLSearchParams(location.hash.slice(1));
    view.sort = columnOf(words.get("sort")) >= 0 ? words.get("sort") : first;
    view.up = words.has("order") ? words.get("order") === "up" : view.sort === "name";
    filter.value = words.get("filter") ?? "";
    if (grouped) grouped.checked = words.get("groups") !== "no";
    if (words.get("all") === "yes") view.all = true;
    return true;
  };
  const changed = () => { show(); address(); };

  const makeButton = (element, press) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...element.childNodes);
    button.addEventListener("click", press);
    element.append(button);
    return button;
  };
  for (const head of heads.filter((each) => each.dataset.key)) {
    const key = head.dataset.key;
    makeButton(head, () => {
      view.up = view.sort === key ? !view.up : key === "name";
      view.sort = key;
      arrange();
      changed();
    });
  }
  for (const group of groups.filter((each) => each.sums)) {
    group.open = rows.length <= few;
    group.button = makeButton(group.sums.cells[0], () => {
      group.open = !group.open;
      show();
    });
  }
  filter.addEventListener("input", changed);
  grouped?.addEventListener("change", () => { arrange(); changed(); });
  unfold?.addEventListener("click", () => {
    const open = !groups.every((group) => group.open);
    for (const group of groups) group.open = open;
    show();
  });
  more.addEventListener("click", () => { view.all = true; changed(); });
  const start = () => {
    const linked = obey();
    arrange();
    show();
    if (linked) at("numbers").scrollIntoView();
  };
  addEventListener("hashchange", start);
  for (const element of document.querySelectorAll(".scripted")) element.hidden = false;
  for (const element of document.querySelectorAll(".unscripted")) element.hidden = true;
  start();
})();
