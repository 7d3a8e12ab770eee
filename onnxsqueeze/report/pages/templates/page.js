"use strict";
(() => {
  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.addEventListener("click", () => {
      const down = head.dataset.down !== "yes";
      heads.forEach((each) => delete each.dataset.down);
      if (down) head.dataset.down = "yes";
      const value = (row) => { const cell = row.cells[column]; return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent; };
      const rows = [...table.tBodies[0].rows].sort((one, two) => {
        const a = value(one), b = value(two);
        const order = typeof a === "number" ? b - a : a.localeCompare(b);
        return down ? order : -order;
      });
      table.tBodies[0].append(...rows);
    }));
  }
})();
