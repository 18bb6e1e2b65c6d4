"use strict";
{
  const $ = (id) => document.getElementById(id);
  const about = JSON.parse($("about").textContent);
  // From the highest score to the lowest. A cut is in whole hundredths, like the histogram's bins.
  const tiles = [...document.querySelectorAll(".tile")];
  const bins = tiles.map((tile) => Number(tile.dataset.bin));
  const slider = $("cut-slider");
  const [least, most] = [slider.min, slider.max].map((text) => Math.round(100 * text));
  const rowsFrom = new Map();
  let rows = 0;
  for (let bin = about.first + about.counts.length; bin >= about.first; bin--) {
    rows += about.counts[bin - about.first] ?? 0;
    rowsFrom.set(bin, rows);
  }

  const labels = tiles.map(() => "");
  const undone = [];
  let current = 0;
  let cut = about.cut;
  let above = tiles.length;

  const place = `spark-aesthetic review ${about.id}`;
  const letters = { k: "keep", d: "drop", "-": "" };
  let stored = true;

  function save() {
    const text = labels.map((label) => label[0] ?? "-").join("");
    try {
      localStorage.setItem(place, JSON.stringify({ cut, text }));
    } catch {
      stored = false;
      $("unkept").hidden = false;
    }
  }

  function load() {
    let before = null;
    try {
      before = JSON.parse(localStorage.getItem(place));
    } catch {
      // The browser stores nothing. The first mark shows the warning.
    }
    [...(before?.text ?? "")].forEach((letter, at) => setLabel(at, letters[letter]));
    setCut(before?.cut ?? cut);
  }

  function setLabel(at, label) {
    labels[at] = label;
    tiles[at].dataset.label = label;
    tiles[at].querySelector(".mark").textContent = label;
    if (at === current) preview();
  }

  function setCut(hundredths) {
    cut = Math.min(Math.max(hundredths, least), most);
    const text = (cut / 100).toFixed(2);
    slider.value = text;
    if (document.activeElement !== $("cut-number")) $("cut-number").value = text;
    $("kept-area").setAttribute("x", cut - least);
    const kept = rowsFrom.get(cut) ?? (cut < about.first ? rows : 0);
    $("kept-rows").value = kept.toLocaleString("en");
    $("kept-share").value = `${((100 * kept) / rows).toFixed(2)}%`;
    $("condition").textContent = `${about.score} >= ${text}${about.suffix}`;
    const first = bins.findIndex((bin) => bin < cut);
    const now = first < 0 ? tiles.length : first;
    for (let at = Math.min(above, now); at < Math.max(above, now); at++) tiles[at].classList.toggle("below", at >= now);
    above = now;
    tell();
  }

  // Show the counts, marks and buttons that depend on all labels.
  function tell() {
    const count = (label, from, to) => labels.slice(from, to).filter((other) => other === label).length;
    for (const label of ["keep", "drop"]) {
      $(`above-${label}`).textContent = count(label, 0, above);
      $(`below-${label}`).textContent = count(label, above);
      const line = (bin, at) => (labels[at] === label ? `M${bin - least + 0.5} ${label === "keep" ? "0.1V0.9" : "1.1V1.9"}` : "");
      $(`rug-${label}`).setAttribute("d", bins.map(line).join(""));
    }
    const marked = labels.filter(Boolean).length;
    $("progress").value = marked;
    $("status").value = `${marked} of ${tiles.length} marked: ${count("keep")} keep, ${count("drop")} drop`;
    $("undo").disabled = undone.length === 0;
    $("download").disabled = marked === 0;
  }

  function tellOfBand(tile) {
    const inside = [...tile.closest(".band").querySelectorAll(".tile")].map((other) => other.dataset.label);
    const [keep, drop] = ["keep", "drop"].map((label) => inside.filter((other) => other === label).length);
    tile.closest(".band").querySelector(".marked").textContent = keep + drop ? `; ${keep} keep, ${drop} drop` : "";
  }

  function preview() {
    const tile = tiles[current];
    const image = tile.querySelector("img");
    if (image) $("preview").src = image.src;
    else $("preview").removeAttribute("src");
    $("preview-score").textContent = tile.querySelector(".score").textContent;
    $("preview-key").textContent = `${tile.querySelector(".key").textContent} ${labels[current]}`;
  }

  function select(at, { focus = true, scroll = true } = {}) {
    tiles[current].setAttribute("aria-selected", "false");
    tiles[current].tabIndex = -1;
    current = Math.min(Math.max(at, 0), tiles.length - 1);
    const tile = tiles[current];
    tile.setAttribute("aria-selected", "true");
    tile.tabIndex = 0;
    preview();
    if (focus) tile.focus({ preventScroll: true });
    if (scroll) tile.scrollIntoView({ block: "nearest" });
  }

  function mark(label, options) {
    undone.push([current, labels[current]]);
    change(current, label);
    select(current + 1, options);
  }

  function undo(options) {
    if (undone.length === 0) return;
    const [at, label] = undone.pop();
    change(at, label);
    select(at, options);
  }

  function change(at, label) {
    setLabel(at, label);
    tellOfBand(tiles[at]);
    tell();
    save();
  }

  function selectUnmarked(options) {
    const later = labels.indexOf("", current + 1);
    const any = later < 0 ? labels.indexOf("") : later;
    if (any >= 0) select(any, options);
  }

  // Return the nearest tile of the next row (step 1) or of the previous row (step -1).
  function vertical(step) {
    const { offsetLeft: left, offsetTop: top } = tiles[current];
    let nearest = null;
    for (let at = current + step; tiles[at]; at += step) {
      if (tiles[at].offsetTop === top) continue;
      if (nearest !== null && tiles[at].offsetTop !== tiles[nearest].offsetTop) break;
      const distance = (other) => Math.abs(tiles[other].offsetLeft - left);
      if (nearest === null || distance(at) < distance(nearest)) nearest = at;
    }
    return nearest ?? current;
  }

  function download() {
    // A spreadsheet reads a cell that begins like this as a formula. An apostrophe makes it text; calibrate removes it.
    const formula = /^['=+\-@\t\r\uff1d\uff0b\uff0d\uff20]/;
    const shown = (text) => (formula.test(text) && !/^-?\d+$/.test(text) ? `'${text}` : text);
    const quoted = (text) => `"${shown(text).replaceAll('"', '""')}"`;
    const line = (key, ...others) => `${[...key.map(quoted), ...others].join(",")}\n`;
    const labelled = tiles.filter((tile) => tile.dataset.label);
    const lines = labelled.map(({ dataset }) => line(JSON.parse(dataset.key), dataset.score, dataset.label));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([line(about.key, "score", "label"), ...lines], { type: "text/csv" }));
    link.download = `labels-${about.id}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  const keys = {
    k: () => mark("keep"),
    d: () => mark("drop"),
    u: () => undo(),
    n: () => selectUnmarked(),
    c: () => select(above - 1),
    j: () => select(current + 1),
    h: () => select(current - 1),
    ArrowRight: () => select(current + 1),
    ArrowLeft: () => select(current - 1),
    ArrowDown: () => select(vertical(1)),
    ArrowUp: () => select(vertical(-1)),
    Home: () => select(0),
    End: () => select(tiles.length - 1),
  };

  document.addEventListener("keydown", (event) => {
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const writing = event.target === $("cut-number") || (event.target === slider && name.length > 1);
    if (writing || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, name)) return;
    event.preventDefault();
    keys[name]();
  });
  document.querySelector("main").addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (tile) select(tiles.indexOf(tile));
  });
  for (const input of [slider, $("cut-number")]) {
    input.addEventListener("input", () => {
      if (input.value !== "") setCut(Math.round(100 * input.value));
    });
    input.addEventListener("change", () => {
      $("cut-number").value = (cut / 100).toFixed(2);
      save();
    });
  }
  // Pressing a button must not scroll to a tile's focus ring, and a screen reader must keep its place.
  $("keep").addEventListener("click", () => mark("keep", { focus: false }));
  $("drop").addEventListener("click", () => mark("drop", { focus: false }));
  $("undo").addEventListener("click", () => undo({ focus: false }));
  $("next").addEventListener("click", () => selectUnmarked({ focus: false }));
  $("download").addEventListener("click", download);
  addEventListener("beforeunload", (event) => {
    if (!stored && labels.some(Boolean)) event.preventDefault();
  });

  load();
  document.querySelectorAll(".band").forEach((band) => tellOfBand(band.querySelector(".tile")));
  // On a narrow screen (as in review.css) the title and the cut are above the images, so the page opens there.
  const narrow = matchMedia("(max-width: 799px)").matches;
  select(Math.max(above - 1, 0), { focus: false, scroll: !narrow });
}
