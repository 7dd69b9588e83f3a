"use strict";
(() => {
  const data = document.getElementById("data");
  if (!data) return;
  const PAGE = 25;
  const byId = (id) => document.getElementById(id);
  const share = (part, whole) => (whole ? part / whole : NaN);
  // [label, level, rows, answered, right] and then precision, recall, F1
  const rows = JSON.parse(data.textContent).map((row) => [
    ...row,
    share(row[4], row[3]),
    share(row[4], row[2]),
    share(2 * row[4], row[2] + row[3]),
  ]);
  const heads = [...document.querySelectorAll("#table th")];
  const body = document.querySelector("#table tbody");
  const state = { key: 2, down: true, page: 0, shown: rows };

  const compare = (a, b) => {
    const [x, y] = [a[state.key], b[state.key]];
    if (typeof x === "string") return state.down ? y.localeCompare(x) : x.localeCompare(y);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // last
    return (state.down ? y - x : x - y) || b[2] - a[2];
  };
  const percent = (value) => (Number.isNaN(value) ? "–" : (100 * value).toFixed(1) + "\u00a0%");
  const count = (value) => value.toLocaleString("en");

  function draw() {
    const start = state.page * PAGE;
    const page = state.shown.slice(start, start + PAGE);
    body.replaceChildren(
      ...page.map((row) => {
        const line = document.createElement("tr");
        [row[0], count(row[1]), count(row[2]), count(row[3]), ...row.slice(5).map(percent)].forEach(
          (text, place) => {
            const cell = line.insertCell();
            cell.textContent = text; // never as HTML: names come from the data
            cell.className = place ? "n" : "path";
          },
        );
        return line;
      }),
    );
    const all = state.shown.length;
    byId("where").textContent = all
      ? `${count(start + 1)}–${count(start + page.length)} of ${count(all)}`
      : "no class fits";
    byId("back").disabled = !start;
    byId("on").disabled = start + PAGE >= all;
  }

  function select() {
    const part = byId("filter").value.trim().toLowerCase();
    const level = Number(byId("level").value);
    state.shown = rows
      .filter((row) => !level || row[1] === level)
      .filter((row) => row[0].toLowerCase().includes(part))
      .sort(compare);
    state.page = 0;
    draw();
  }

  function turn(by) {
    state.page += by;
    draw();
  }

  heads.forEach((head) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const key = Number(head.dataset.key);
      state.down = key === state.key ? !state.down : key === 2 || key === 3;
      state.key = key;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      select();
    });
  });
  byId("filter").addEventListener("input", select);
  byId("level").addEventListener("change", select);
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("back").addEventListener("click", () => turn(-1));
  byId("on").addEventListener("click", () => turn(1));
  byId("tools").hidden = byId("pager").hidden = false;
  select();
})();
