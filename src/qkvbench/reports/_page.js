"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Text goes into the page as text nodes only, so none of it is read as markup.
  const made = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
  const drawn = (name, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  // --- A link into a folded part opens it.

  function reveal(hash) {
    let target = null;
    try {
      target = document.getElementById(decodeURIComponent(hash.slice(1)));
    } catch {
      // A fragment that is no text names no part.
    }
    for (let each = target; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
    return target;
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest('a[href^="#"]');
    if (link) reveal(link.getAttribute("href"));
  });
  addEventListener("hashchange", () => reveal(location.hash)?.scrollIntoView());
  if (location.hash) reveal(location.hash)?.scrollIntoView();

  // --- Some folded parts belong on paper, where nobody can unfold them.

  addEventListener("beforeprint", () =>
    $$("details[data-print]:not([open])").forEach((each) => {
      each.open = true;
      each.dataset.print = "folded";
    }),
  );
  addEventListener("afterprint", () =>
    $$('details[data-print="folded"]').forEach((each) => {
      each.open = false;
      each.dataset.print = "";
    }),
  );

  // --- The table is sorted by its heads: up, down, and the order of the study.

  const body = $(".main tbody");
  const study = [...body.rows];
  $$(".main thead th").forEach((head, column) => {
    const button = made("button", { type: "button" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: "none" }[head.ariaSort] || "ascending";
      $$(".main thead th").forEach((each) => each.removeAttribute("aria-sort"));
      if (next !== "none") head.setAttribute("aria-sort", next);
      const key = (row) => (column ? Number(row.cells[column].dataset.key ?? NaN) : row.cells[0].textContent);
      const order = (one, other) => {
        const [a, b] = [key(one), key(other)];
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
        return (a < b ? -1 : a > b ? 1 : 0) * (next === "descending" ? -1 : 1);
      };
      body.append(...(next === "none" ? study : [...study].sort(order)));
    });
  });

  // --- The picture.

  const state = { task: 0, axis: "", first: 0, second: 0 };
  const svgs = $$("#picture .picture");
  const [task, first, second] = ["#task", "#first", "#second"].map((selector) => $(selector));

  function mark(svg, letters, values) {
    const [arm, kind, x, y, low, high, name, dx, dy, anchor, leader] = values;
    const group = $(`.mark[data-arm="${arm}"]`, svg) || drawn("g", { "data-arm": arm });
    group.setAttribute("class", `mark ${kind}`);
    group.setAttribute("transform", `translate(${x} ${y})`);
    const cap = 0.25 * letters;
    const parts = [drawn("circle", { r: 0.78 * letters, class: "halo" })];
    if (low !== null && high !== null) {
      const ends = [low - y, high - y];
      const caps = ends.map((end) => `M${-cap} ${end}h${2 * cap}`).join("");
      parts.push(drawn("path", { d: `M0 ${ends[0]}V${ends[1]}${caps}`, class: "bar" }));
    }
    if (leader) parts.push(drawn("path", { d: `M0 0L${dx} ${dy}`, class: "leader" }));
    parts.push(drawn("path", { d: shape(kind, letters), class: "dot" }));
    if (name) parts.push(drawn("text", { x: dx, y: dy + 0.32 * letters, class: "label", "text-anchor": anchor }, name));
    group.replaceChildren(...parts);
    const [verdict, difference] = data.pairs[state.task][0][arm] || ["the baseline", ""];
    group.setAttribute("role", "button");
    group.setAttribute("aria-label", `${data.arms[arm].arm}: ${verdict} ${difference}`);
    return group;
  }

  function shape(kind, letters) {
    const r = (kind.includes("behind") ? 0.27 : 0.4) * letters;
    if (!kind.includes("reference")) return `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
    const wide = 1.35 * 0.4 * letters;
    return `M0 ${-wide}L${wide} 0L0 ${wide}L${-wide} 0Z`;
  }

  function draw(svg, picture) {
    const letters = Number(svg.getAttribute("font-size"));
    const [left, right, , bottom] = picture.box;
    const height = svg.viewBox.baseVal.height;
    const text = (x, y, words, kind, anchor) => drawn("text", { x, y, class: kind, "text-anchor": anchor }, words);
    const back = [
      text(left, letters, picture.quality, "axis", "start"),
      text(right, height - 0.4 * letters, picture.cost, "axis", "end"),
    ];
    for (const [y, words] of picture.y) {
      back.push(drawn("path", { d: `M${left} ${y}H${right}`, class: "grid" }));
      back.push(text(left - 0.5 * letters, y + 0.34 * letters, words, "tick", "end"));
    }
    for (const [x, words] of picture.x) {
      back.push(drawn("path", { d: `M${x} ${bottom}v4`, class: "grid" }));
      back.push(text(x, bottom + 1.35 * letters, words, "tick", "middle"));
    }
    if (picture.base !== null) back.push(drawn("path", { d: `M${left} ${picture.base}H${right}`, class: "level" }));
    back.push(drawn("path", { d: picture.front, class: "frontier" }));
    const marks = picture.marks.map((values) => mark(svg, letters, values));
    const focused = svg.contains(document.activeElement) ? document.activeElement : null;
    const about = $$("title, desc", svg);
    about[0].textContent = picture.title;
    svg.setAttribute("role", "group");
    svg.setAttribute("aria-label", picture.title);
    for (const each of [...svg.children]) if (!about.includes(each) && !marks.includes(each)) each.remove();
    about[about.length - 1].after(...back);
    for (const each of marks) if (each.parentNode !== svg) svg.append(each);
    focused?.focus();
  }

  function show() {
    const pictures = data.pictures[state.task][state.axis];
    svgs.forEach((svg, index) => draw(svg, pictures[index]));
    $$("#axis input").forEach((each) => {
      each.disabled = !data.axes[each.value].includes(state.task);
      each.checked = each.value === state.axis;
    });
    task.value = state.task;
    choose();
    describe(state.second);
  }

  function choose() {
    for (const [select, arm] of [[first, state.first], [second, state.second]]) select.value = arm;
    for (const svg of svgs) {
      const marks = $$(".mark", svg);
      const stop = marks.find((each) => Number(each.dataset.arm) === state.second) || marks[0];
      for (const each of marks) {
        const chosen = [state.first, state.second].includes(Number(each.dataset.arm));
        each.classList.toggle("chosen", chosen);
        each.setAttribute("aria-pressed", chosen);
        each.setAttribute("tabindex", each === stop ? 0 : -1);
      }
    }
    const [one, other] = [state.first, state.second];
    $("#difference caption").textContent =
      `${data.arms[other].arm} minus ${data.arms[one].arm}, task by task`;
    $("#difference tbody").replaceChildren(
      ...data.tasks.map((name, index) => {
        const [verdict, difference, p] = data.pairs[index][one][other] || ["the same arm", "", ""];
        const row = made(
          "tr",
          index === state.task ? { class: "current" } : {},
          made("th", { scope: "row" }, name),
          made("td", { class: "numeric" }, difference),
          made("td", { class: tone(verdict), title: p }, verdict),
        );
        return row;
      }),
    );
  }

  function tone(verdict) {
    if (/^[▼▽]/.test(verdict)) return "worse";
    if (/^[▲△]/.test(verdict)) return "better";
    return /^[≈~]/.test(verdict) ? "same" : "quiet";
  }

  function describe(arm) {
    const { arm: equation, name } = data.arms[arm];
    const [score, ...places] = data.cells[state.task][arm];
    const place = places[Object.keys(data.axes).indexOf(state.axis)];
    const [verdict, difference, p] = data.pairs[state.task][0][arm] || ["", "", ""];
    const lines = [[data.tasks[state.task], score]];
    if (difference) lines.push([`against ${data.arms[0].arm}`, `${difference} ${p}`]);
    if (verdict) lines.push(["verdict", verdict]);
    if (place) lines.push(["frontier", place]);
    lines.push(["costs", data.costs[arm].filter(Boolean).join(" · ")]);
    const list = made("dl");
    for (const [head, words] of lines) list.append(made("dt", {}, head), made("dd", {}, words));
    // The runs are those of the table of every run.
    const links = $$("td:nth-child(n + 3)", document.getElementById(`cell-${state.task}-${arm}`));
    const runs = links.flatMap((cell) => [...cell.children].map((each) => each.cloneNode(true)));
    list.append(made("dt", {}, "runs"), made("dd", { class: "links" }, ...runs));
    const title = made("h2", {}, made("code", {}, equation), " ", made("span", { class: "quiet" }, name));
    $("#point").replaceChildren(title, list);
  }

  function select(arm) {
    if (arm === state.second) return;
    if (!first.disabled) state.first = state.second;
    state.second = arm;
    choose();
    describe(arm);
  }

  // --- Downloads.

  function save(name, content) {
    const link = made("a", { href: URL.createObjectURL(content), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function figure() {
    const clone = svgs[0].cloneNode(true);
    const { width, height } = clone.viewBox.baseVal;
    fill(clone, { xmlns: "http://www.w3.org/2000/svg", width, height, role: "img" }, []);
    $$(".halo", clone).forEach((each) => each.remove());
    $$(".mark", clone).forEach((each) => {
      each.classList.remove("chosen");
      for (const name of ["role", "tabindex", "aria-label", "aria-pressed"]) each.removeAttribute(name);
    });
    clone.prepend(drawn("style", {}, data.style));
    return { text: new XMLSerializer().serializeToString(clone), width, height };
  }

  const savers = {
    csv: () => save("table.csv", new Blob([data.files.csv], { type: "text/csv" })),
    tex: () => save("table.tex", new Blob([data.files.tex], { type: "text/x-tex" })),
    md: () => save("table.md", new Blob([data.files.md], { type: "text/markdown" })),
    svg: () => save("picture.svg", new Blob([figure().text], { type: "image/svg+xml" })),
    png: () => {
      const { text, width, height } = figure();
      const image = new Image();
      image.onload = () => {
        const canvas = made("canvas", { width: 3 * width, height: 3 * height });
        const context = canvas.getContext("2d");
        context.fillStyle = "#fff";
        context.fillRect(0, 0, canvas.width, canvas.height);
        context.drawImage(image, 0, 0, canvas.width, canvas.height);
        canvas.toBlob((content) => save("picture.png", content), "image/png");
      };
      image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    },
  };
  $$("[data-save]").forEach((each) => each.addEventListener("click", savers[each.dataset.save]));
  $$(".downloads").forEach((each) => (each.hidden = false));

  if (!data.shown) return;
  [state.task, state.axis] = data.shown;
  state.second = data.compared;
  task.addEventListener("change", () => {
    state.task = Number(task.value);
    if (!data.axes[state.axis].includes(state.task)) {
      state.axis = Object.keys(data.axes).find((axis) => data.axes[axis].includes(state.task));
    }
    show();
  });
  $$("#axis input").forEach((each) =>
    each.addEventListener("change", () => {
      state.axis = each.value;
      show();
    }),
  );
  first.addEventListener("change", () => {
    state.first = Number(first.value);
    choose();
  });
  second.addEventListener("change", () => {
    state.second = Number(second.value);
    choose();
    describe(state.second);
  });
  for (const svg of svgs) {
    const armOf = (event) => event.target.closest(".mark")?.dataset.arm;
    for (const kind of ["pointerover", "focusin"]) {
      svg.addEventListener(kind, (event) => armOf(event) && describe(Number(armOf(event))));
    }
    svg.addEventListener("click", (event) => armOf(event) && select(Number(armOf(event))));
    svg.addEventListener("keydown", (event) => {
      const at = event.target.closest(".mark");
      if (!at) return;
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        select(Number(at.dataset.arm));
        at.focus();
        return;
      }
      const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const place = (each) => each.transform.baseVal[0].matrix.e;
      const marks = $$(".mark", svg).sort((one, other) => place(one) - place(other));
      const to = marks[(marks.indexOf(at) + steps[event.key] + marks.length) % marks.length];
      to.focus();
    });
  }
  // Tasks without a score have no picture.
  [...task.options].forEach((each, index) => {
    each.disabled = !Object.values(data.axes).some((tasks) => tasks.includes(index));
  });
  $(".explorer").classList.add("live");
  for (const selector of [".controls", "#comparison"]) $(selector).hidden = false;
  show();
})();
