// Charts: with the pointer, by keyboard, and as tables.
"use strict";
(() => {
  const area = document.getElementById("charts");
  const known = new Map();
  const format = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const value = (number, unit) => (number === null ? "–" : `${format.format(number)}${unit ? ` ${unit}` : ""}`);

  // A canvas needs colours as values; what a class has depends on the theme.
  function colour(root, className) {
    const probe = root.appendChild(element("i", className));
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }

  class Chart {
    constructor(data) {
      this.root = element("figure", "card chart");
      this.head = this.root.appendChild(element("header"));
      this.plot = this.root.appendChild(element("div", "plot"));
      this.plot.tabIndex = 0;
      this.plot.setAttribute("role", "group");
      this.keys = this.root.appendChild(element("div", "keys"));
      this.tip = this.plot.appendChild(element("div", "tip"));
      this.tip.hidden = true;
      this.spoken = this.root.appendChild(element("p", "unseen"));
      this.spoken.setAttribute("aria-live", "polite");
      this.details = this.root.appendChild(element("details"));
      this.details.appendChild(element("summary", "", "Values as a table"));
      this.table = this.details.appendChild(element("div", "values"));
      this.table.tabIndex = 0;
      this.details.addEventListener("toggle", () => this.fillTable());
      this.plot.addEventListener("keydown", (event) => this.key(event));
      this.plot.addEventListener("blur", () => this.hide());
      area.appendChild(this.root);
      this.update(data);
      new ResizeObserver(() => this.u && this.u.setSize(this.size())).observe(this.plot);
    }

    size() {
      return { width: Math.max(120, this.plot.clientWidth), height: this.plot.clientHeight || 190 };
    }

    update(data) {
      const names = Object.keys(data.series);
      const isSame = this.data && names.join("\n") === Object.keys(this.data.series).join("\n");
      this.data = data;
      this.names = names;
      const last = data.x.length - 1;
      const latest = names.length === 1 ? value(data.series[names[0]][last], data.unit) : "";
      this.head.replaceChildren(element("h3", "", data.title), element("span", "latest figure", latest), element("p", "muted small", data.subtitle));
      this.plot.setAttribute("aria-label", `Chart of ${data.title}, ${data.subtitle}. Read its values with the arrow keys.`);
      this.keys.replaceChildren(...(names.length > 1 ? names.map((name, index) => {
        const key = element("span");
        key.append(element("i", `s${index + 1}`), name);
        return key;
      }) : []));
      this.fillTable();
      const values = [data.x, ...names.map((name) => data.series[name])];
      if (this.u && isSame) this.u.setData(values);
      else this.draw(values);
    }

    draw(values = [this.data.x, ...this.names.map((name) => this.data.series[name])]) {
      if (this.u) this.u.destroy();
      const axis = { stroke: colour(this.root, "axis-probe"), ticks: { show: false }, font: "12px system-ui, sans-serif",
        grid: { stroke: colour(this.root, "grid-probe"), width: 1 } };
      this.u = new uPlot({
        ...this.size(),
        legend: { show: false },
        scales: { x: { time: false, range: (u, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) } },
        axes: [
          { ...axis, size: 30, grid: { show: false }, incrs: [1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000, 1e4, 2e4, 5e4, 1e5, 1e6] },
          { ...axis, size: 44, values: (u, ticks) => ticks.map((tick) => format.format(tick)) },
        ],
        series: [{}, ...this.names.map((name, index) => ({
          label: name, stroke: colour(this.root, `s${index + 1}`), width: 2, spanGaps: true,
          // A line begins with its second point.
          points: { show: (u) => u.data[0].length < (this.names.length === 1 ? 30 : 2), size: 5 },
        }))],
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 8 } },
        hooks: { setCursor: [(u) => this.show(u)] },
      }, values, this.plot);
    }

    show(u) {
      const index = u.cursor.idx;
      if (index === null || index === undefined || u.cursor.left < 0) {
        this.tip.hidden = true;
        return;
      }
      const rows = this.names.map((name, number) => {
        const row = element("div");
        row.append(element("i", `s${number + 1}`), `${this.names.length > 1 ? `${name} ` : ""}`, element("b", "figure", value(this.data.series[name][index], this.data.unit)));
        return row;
      });
      this.tip.replaceChildren(element("div", "muted", `${this.data.x_label} ${this.data.x[index]}`), ...rows);
      this.tip.hidden = false;
      const left = u.bbox.left / devicePixelRatio + u.valToPos(this.data.x[index], "x");
      const width = this.tip.offsetWidth;
      const beside = left + 14 + width > this.plot.clientWidth ? left - 14 - width : left + 14;
      this.tip.style.transform = `translate(${Math.max(0, beside)}px, 8px)`;
    }

    hide() {
      this.u.setCursor({ left: -10, top: -10 });
    }

    key(event) {
      const last = this.data.x.length - 1;
      const now = this.u.cursor.idx ?? last + 1;
      const to = { ArrowLeft: now - 1, ArrowRight: now > last ? last : now + 1, Home: 0, End: last }[event.key];
      if (event.key === "Escape") this.hide();
      if (to === undefined) return;
      event.preventDefault();
      const index = Math.min(last, Math.max(0, to));
      this.u.setCursor({ left: this.u.valToPos(this.data.x[index], "x"), top: 20 });
      this.spoken.textContent = `${this.data.x_label} ${this.data.x[index]}: ${this.names.map((name) => `${name} ${value(this.data.series[name][index], this.data.unit)}`).join(", ")}`;
    }

    fillTable() {
      if (!this.details.open) return;
      const table = element("table");
      const head = table.createTHead().insertRow();
      for (const name of [this.data.x_label, ...this.names]) {
        const cell = head.appendChild(element("th", "num", name));
        cell.scope = "col";
      }
      const body = table.createTBody();
      for (let index = this.data.x.length - 1; index >= 0; index--) {
        const row = body.insertRow();
        row.appendChild(element("th", "num", this.data.x[index])).scope = "row";
        for (const name of this.names) row.appendChild(element("td", "num", value(this.data.series[name][index], this.data.unit)));
      }
      this.table.replaceChildren(table);
    }
  }

  let isAsking = false;
  let isStale = false;
  async function load() {
    isStale = isAsking;
    if (isAsking) return;
    isAsking = true;
    try {
      const answer = await fetch(area.dataset.charts, { headers: { "X-Live": "1" } });
      if (answer.ok && !answer.redirected) show((await answer.json()).charts);
    } catch {
      // No connection: the page says so, and the next change asks again.
    }
    isAsking = false;
    if (isStale) load();
  }

  function show(charts) {
    const wait = document.getElementById("charts-wait");
    if (charts.length && wait) wait.remove();
    else if (wait) wait.textContent = wait.dataset.none;
    for (const data of charts) {
      if (known.has(data.name)) known.get(data.name).update(data);
      else known.set(data.name, new Chart(data));
    }
  }

  area.addEventListener("changed", load);
  addEventListener("theme", () => known.forEach((chart) => chart.draw()));
  load();
})();
