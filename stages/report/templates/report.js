"use strict";
// The page is whole without this script. It adds: a large view, another layout of the images, filters, and links to what is shown.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const axes = new Map(data.axes.map((axis) => [axis.key, axis]));
  const start = () => ({
    rows: "prompt", columns: "model", fixed: Object.fromEntries(data.axes.map((axis) => [axis.key, axis.first])),
    words: "", list: "", against: "", open: "", pin: "", how: "slide", split: 50,
  });
  let state = start();

  // Images stand in the page once each; a cell is known as variant.prompt.seed, all of them numbers.
  const sources = new Map();
  for (const link of document.querySelectorAll("a[data-cell]")) {
    if (!sources.has(link.dataset.cell)) sources.set(link.dataset.cell, link);
  }
  const cellOf = (variant, prompt, seed) => `${variant}.${prompt}.${seed}`;
  const parts = (cell) => cell.split(".").map(Number);

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "text") element.textContent = value;
      else if (name in element && name !== "list") element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child != null));
    return element;
  }

  // ---- Which variant a place in the layout stands for

  const key = (...values) => values.map((value) => value ?? "").join("|");
  const variants = new Map();
  data.variants.forEach((each, index) => {
    variants.set(key(each.kind, each.alpha, each.rank, each.step, each.lora_scale, each.train_seed), index);
  });
  const merge = (alpha) => variants.get(key("merge", alpha, null, null, null, null));
  function variantAt(at) {
    const kind = at.model, rank = at.rank === "first" ? data.first_ranks[kind] : at.rank;
    if (kind === "merge" || (kind in data.first_ranks && rank === "none")) return merge(at.alpha);
    if (!(kind in data.first_ranks)) return variants.get(key(kind, null, null, null, null, null));
    return variants.get(key(kind, at.alpha, rank, at.step === "end" ? null : at.step, at.lora_scale, at.train_seed));
  }

  const number = (value, signed) =>
    (value < 0 ? "−" : signed && value > 0 ? "+" : "") + Math.abs(value).toFixed(3);
  function mean(metric, variant, prompt, seeds) {
    const values = data.values[metric][variant];
    return seeds.reduce((sum, seed) => sum + values[prompt * data.seeds.length + seed], 0) / seeds.length;
  }

  // ---- The grid in another layout

  function figure(at) {
    const variant = variantAt(at);
    if (variant === undefined) return make("p", {className: "none", text: "not in the sweep"});
    const prompt = at.prompt, seeds = at.seed === "all" ? data.seeds.map((_, index) => index) : [at.seed];
    const across = Math.ceil(Math.sqrt(Math.min(seeds.length, data.images_per_cell)));
    const mosaic = make("div", {className: "mosaic", style: `--across: ${across}`});
    seeds.forEach((seed, index) => {
      const source = sources.get(cellOf(variant, prompt, seed));
      if (!source) return;
      const link = source.cloneNode(true);
      link.classList.toggle("extra", index >= data.images_per_cell);
      mosaic.append(link);
    });
    const scores = Object.entries(data.metrics).map(([metric, name]) => {
      const value = mean(metric, variant, prompt, seeds);
      const text = [number(value)];
      if (state.against !== "") text.push(` (${number(value - mean(metric, Number(state.against), prompt, seeds), true)})`);
      return make("p", {className: "score"}, make("span", {text: name}), make("b", {text: text.join("")}));
    });
    return make("div", {}, mosaic, ...scores);
  }

  const shownPrompt = (index) => {
    const prompt = data.prompts[index];
    return prompt.text.toLowerCase().includes(state.words.toLowerCase()) && (!state.list || prompt.list === state.list);
  };
  const valuesOf = (axis) => axes.get(axis).values.filter(([value]) => axis !== "prompt" || shownPrompt(value));
  const isStatic = () => state.rows === "prompt" && state.columns === "model" && state.against === "" &&
    data.axes.every((axis) => state.fixed[axis.key] === axis.first);

  function build() {
    const columns = valuesOf(state.columns), rows = valuesOf(state.rows);
    const table = make("table", {className: "grid", style: `--columns: ${columns.length}`});
    table.append(make("thead", {}, make("tr", {}, ...columns.map(([, label]) =>
      make("th", {scope: "col"}, make("b", {text: label}))))));
    for (const [row, label] of rows) {
      const at = {...state.fixed, [state.rows]: row};
      table.append(make("tbody", {},
        make("tr", {}, make("th", {scope: "rowgroup", className: "prompt", colSpan: columns.length},
          make("span", {text: label, dir: "auto"}))),
        make("tr", {}, ...columns.map(([column, columnLabel]) => make("td", {"data-label": columnLabel}, figure({...at, [state.columns]: column}))))));
    }
    return table;
  }

  function draw() {
    const still = isStatic();
    byId("static").hidden = !still;
    byId("chosen").hidden = still;
    byId("chosen").replaceChildren(...(still ? [] : [build()]));
    for (const body of document.querySelectorAll("[data-prompt]")) body.hidden = !shownPrompt(Number(body.dataset.prompt));
    const count = valuesOf("prompt").length;
    byId("said").textContent = count === data.prompts.length ? "" : `${count} of ${data.prompts.length} prompts`;
    for (const details of document.querySelectorAll("[data-against]")) {
      if (state.against !== "") details.open = details.dataset.against === state.against;
    }
    for (const select of byId("choose").querySelectorAll("[data-axis]")) {
      select.closest("label").hidden = select.dataset.axis === state.rows || select.dataset.axis === state.columns;
    }
  }

  // ---- What is shown is a link

  function remember() {
    const fresh = start(), query = new URLSearchParams();
    for (const name of ["rows", "columns", "words", "list", "against", "open", "pin", "how"]) {
      if (state[name] !== fresh[name]) query.set(name, state[name]);
    }
    for (const axis of data.axes) {
      if (state.fixed[axis.key] !== axis.first) query.set(axis.key, state.fixed[axis.key]);
    }
    const hash = query.toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function recall() {
    const query = new URLSearchParams(location.hash.slice(1));
    if (location.hash && !location.hash.includes("=")) return false;
    state = start();
    for (const name of ["rows", "columns"]) if (axes.has(query.get(name))) state[name] = query.get(name);
    if (state.rows === state.columns) Object.assign(state, {rows: "prompt", columns: "model"});
    for (const name of ["words", "list"]) state[name] = query.get(name) ?? "";
    if (data.variants[query.get("against")]) state.against = query.get("against");
    for (const name of ["open", "pin"]) if (sources.has(query.get(name))) state[name] = query.get(name);
    if (query.get("how") === "blink") state.how = "blink";
    for (const axis of data.axes) {
      const found = [...axis.values, ["all"]].find(([value]) => String(value) === query.get(axis.key));
      if (found && (found[0] !== "all" || axis.key === "seed")) state.fixed[axis.key] = found[0];
    }
    return true;
  }

  function fillForm() {
    for (const name of ["rows", "columns", "words", "list", "against"]) byId(`choose-${name}`).value = state[name];
    for (const select of byId("choose").querySelectorAll("[data-axis]")) select.value = String(state.fixed[select.dataset.axis]);
  }

  function makeForm() {
    const several = data.axes.filter((axis) => axis.values.length > 1);
    const options = (values) => values.map(([value, label]) => make("option", {value: String(value), text: label}));
    const field = (label, input) => make("label", {}, make("span", {text: label}), input);
    const names = several.map((axis) => [axis.key, axis.name]);
    const choice = (name, values) => make("select", {id: `choose-${name}`}, ...options(values));
    const lists = [["", "all"], ["subject", "that ask for the subject"], ["other", "that do not"]];
    const against = [["", "nothing"], ...data.variants.map((variant, index) => [index, variant.label])];
    byId("choose").append(
      field("Rows", choice("rows", names)), field("Columns", choice("columns", names)),
      ...several.map((axis) => field(axis.name, make("select", {"data-axis": axis.key},
        ...options(axis.key === "seed" ? [["all", "all"], ...axis.values] : axis.values)))),
      field("Prompts", choice("list", lists)),
      field("Prompts with the words", make("input", {id: "choose-words", type: "search"})),
      field("Numbers against", choice("against", against)),
      make("button", {type: "reset", text: "As it was"}));
    byId("choose").addEventListener("input", (event) => {
      const input = event.target, axis = axes.get(input.dataset.axis);
      if (axis) state.fixed[axis.key] = [...axis.values, ["all"]].find(([value]) => String(value) === input.value)[0];
      else state[input.id.replace("choose-", "")] = input.value;
      if (state.rows === state.columns) {
        const other = input.id === "choose-rows" ? "columns" : "rows";
        state[other] = several.find((each) => each.key !== state.rows).key;
        fillForm();
      }
      draw();
      remember();
    });
    byId("choose").addEventListener("reset", (event) => {
      event.preventDefault();
      state = {...start(), open: state.open, pin: state.pin};
      fillForm(); draw(); remember();
    });
    byId("choose").addEventListener("submit", (event) => event.preventDefault());
    byId("choose").hidden = several.length < 2;
  }

  // ---- The large view

  const look = byId("look"), layers = byId("layers");
  let zoom = 1, shift = [0, 0], blinking = 0;

  function fullImage(cell) {
    const source = sources.get(cell);
    return source.getAttribute("href") || source.firstElementChild.getAttribute("src");
  }
  function describe(cell) {
    const [variant, prompt, seed] = parts(cell);
    return `${data.variants[variant].label}, seed ${data.seeds[seed]}: ${data.prompts[prompt].text}`;
  }
  const place = () => { layers.style.transform = `translate(${shift[0]}px, ${shift[1]}px) scale(${zoom})`; };
  function zoomTo(value) {
    zoom = Math.min(16, Math.max(1, value));
    if (zoom === 1) shift = [0, 0];
    byId("zoom-said").textContent = `${Math.round(zoom * 100)} %`;
    place();
  }

  function recipe(cell) {
    const [index, prompt, seed] = parts(cell), variant = data.variants[index];
    const facts = [["Prompt", data.prompts[prompt].text], ["Seed", data.seeds[seed]], ...variant.recipe];
    for (const [metric, name] of Object.entries(data.metrics)) facts.push([name, number(mean(metric, index, prompt, [seed]))]);
    byId("recipe").replaceChildren(...facts.map(([name, value]) =>
      make("div", {}, make("dt", {text: name}), make("dd", {text: String(value), dir: "auto"}))));
    const file = `p${data.prompts[prompt].index}-s${data.seeds[seed]}.png`;
    byId("again").textContent = variant.again.replace("{file}", file);
  }

  function stopBlinking() { clearInterval(blinking); blinking = 0; byId("over").hidden = false; }
  function overlay() {
    const pinned = state.pin && state.pin !== state.open, over = byId("over"), slide = state.how === "slide";
    stopBlinking();
    byId("compare").hidden = !pinned;
    over.hidden = !pinned;
    byId("split-field").hidden = !slide;
    byId("how").textContent = slide ? "Blink" : "Slide";
    byId("pin").setAttribute("aria-pressed", String(state.pin === state.open));
    byId("pinned-said").textContent = pinned ? `Left: ${describe(state.pin)}. Right: ${describe(state.open)}.` : "";
    byId("large").src = fullImage(pinned ? state.pin : state.open);
    byId("large").alt = describe(pinned ? state.pin : state.open);
    if (!pinned) return;
    over.src = fullImage(state.open);
    over.alt = describe(state.open);
    over.style.clipPath = slide ? `inset(0 0 0 ${state.split}%)` : "none";
    if (slide || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    blinking = setInterval(() => { over.hidden = !over.hidden; }, 700);
  }

  function show(cell) {
    state.open = cell;
    const [variant, prompt, seed] = parts(cell);
    byId("look-title").textContent = data.variants[variant].label;
    byId("look-said").textContent =
      `Prompt ${prompt + 1} of ${data.prompts.length}, seed ${seed + 1} of ${data.seeds.length}: ${data.prompts[prompt].text}`;
    const original = sources.get(cell).getAttribute("href");
    byId("original").hidden = !original;
    if (original) byId("original").href = original;
    recipe(cell);
    overlay();
    if (!look.open) { zoomTo(1); look.showModal(); }
    remember();
  }

  function walk(axis, by) {
    const at = parts(state.open), size = [data.variants.length, data.prompts.length, data.seeds.length];
    const next = (at[axis] + by + size[axis]) % size[axis];
    at[axis] = next;
    show(cellOf(...at));
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-cell]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(link.dataset.cell);
  });
  document.addEventListener("keydown", (event) => {
    const link = event.target.closest?.("a[data-cell]");
    if (link && !link.getAttribute("href") && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      show(link.dataset.cell);
    }
  });
  look.addEventListener("keydown", (event) => {
    if (event.target.type === "range" || event.altKey || event.ctrlKey || event.metaKey) return;
    const steps = event.shiftKey ? {ArrowLeft: [2, -1], ArrowRight: [2, 1]} :
      {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, -1], ArrowDown: [1, 1]};
    const keys = {"+": () => zoomTo(zoom * 1.5), "-": () => zoomTo(zoom / 1.5), "0": () => zoomTo(1),
      p: () => byId("pin").click(), b: () => byId("how").click()};
    if (steps[event.key]) walk(...steps[event.key]);
    else if (keys[event.key]) keys[event.key]();
    else return;
    event.preventDefault();
  });
  look.addEventListener("close", () => { stopBlinking(); state.open = ""; remember(); });
  look.addEventListener("click", (event) => {
    if (event.target === look) look.close();
    const step = event.target.closest("[data-walk]");
    if (step) walk(...step.dataset.walk.split(",").map(Number));
    const by = event.target.closest("[data-zoom]");
    if (by) zoomTo(Number(by.dataset.zoom) ? zoom * Number(by.dataset.zoom) : 1);
  });
  byId("pin").addEventListener("click", () => {
    state.pin = state.pin === state.open ? "" : state.open;
    overlay(); remember();
  });
  byId("how").addEventListener("click", () => {
    if (byId("compare").hidden) return;
    if (state.how === "blink" && matchMedia("(prefers-reduced-motion: reduce)").matches) {
      byId("over").hidden = !byId("over").hidden;  // by hand, instead of by itself
      return;
    }
    state.how = state.how === "slide" ? "blink" : "slide";
    overlay(); remember();
  });
  byId("split").addEventListener("input", (event) => { state.split = event.target.value; overlay(); });
  byId("copy").addEventListener("click", async () => {
    getSelection().selectAllChildren(byId("again"));
    try { await navigator.clipboard.writeText(byId("again").textContent); byId("copy").textContent = "Copied"; }
    catch { byId("copy").textContent = "Selected: copy it"; }
  });
  byId("stage").addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomTo(zoom * (event.deltaY < 0 ? 1.15 : 1 / 1.15));
  }, {passive: false});
  byId("stage").addEventListener("pointermove", (event) => {
    if (event.buttons !== 1 || zoom === 1) return;
    shift = [shift[0] + event.movementX, shift[1] + event.movementY];
    place();
  });

  // ---- Begin

  for (const link of document.querySelectorAll("a[data-cell]:not([href])")) {
    link.tabIndex = 0;
    link.setAttribute("role", "button");
  }
  makeForm();
  const begin = () => {
    if (!recall()) return;
    fillForm(); draw();
    if (state.open) show(state.open);
    else if (look.open) look.close();
  };
  addEventListener("hashchange", begin);
  fillForm();
  if (location.hash.includes("=")) begin();
  else draw();
})();
