"use strict";
{
  const every = (selector, root = document) => [...root.querySelectorAll(selector)];
  const cards = every(".utterance");
  const rows = every("tr[data-task]");
  const filter = document.getElementById("filter");
  const verdict = document.getElementById("verdict");
  const shown = document.getElementById("shown");
  const more = document.getElementById("more");
  const first = Number(more?.dataset.first ?? 0);
  let whole = false;

  function matches(element) {
    const name = element.dataset.task.toLowerCase();
    const kind = verdict?.value ?? "";
    return name.includes((filter?.value ?? "").trim().toLowerCase()) && (!kind || element.dataset.verdict === kind);
  }

  function narrow() {
    for (const row of rows) row.hidden = !matches(row);
    const found = cards.filter(matches);
    for (const card of cards) card.hidden = true;
    const some = whole || !more ? found : found.slice(0, first);
    for (const card of some) card.hidden = false;
    if (more) {
      more.hidden = some.length === found.length;
      more.textContent = `Show all ${found.length} utterances`;
    }
    for (const audio of every(".utterance[hidden] audio")) audio.pause();
    if (shown) {
      const kept = rows.filter((row) => !row.hidden).length;
      shown.textContent = `${kept} of ${rows.length} rows`;
    }
  }

  // Empty values come last, whichever way is sorted.
  function compare(a, b, way) {
    if (a === "" || b === "") return (a === "") - (b === "");
    const numbers = [Number(a), Number(b)];
    return way * (numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1]);
  }

  for (const button of every("thead button")) {
    button.addEventListener("click", () => {
      const header = button.closest("th");
      const table = header.closest("table");
      const way = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of every("th[aria-sort]", table)) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      const value = (row) => row.cells[header.cellIndex].dataset.value ?? "";
      const sorted = [...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b), way));
      table.tBodies[0].append(...sorted);
    });
  }
  for (const button of every(".pick")) {
    button.addEventListener("click", () => {
      filter.value = filter.value === button.textContent ? "" : button.textContent;
      narrow();
    });
  }
  filter?.addEventListener("input", narrow);
  verdict?.addEventListener("change", narrow);
  more?.addEventListener("click", () => {
    whole = true;
    narrow();
  });
  // One recording at a time.
  document.addEventListener("play", (event) => {
    for (const audio of every("audio")) if (audio !== event.target) audio.pause();
  }, true);
  for (const tools of every(".tools")) tools.hidden = false;
  narrow();
}
