"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Numbers of a point of the front, beside it.
  const tip = document.getElementById("tip");
  const light = (dot, on) => {
    for (const twin of all(".dot")) twin.classList.toggle("lit", on && twin.dataset.system === dot.dataset.system);
    tip.hidden = !on;
    if (!on) return;
    tip.textContent = dot.getAttribute("aria-label");
    const mark = dot.querySelector(".hit").getBoundingClientRect();
    const left = mark.left + mark.width / 2 - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 8)) + scrollX}px`;
    const above = mark.top - tip.offsetHeight - 6;
    tip.style.top = `${(above > 8 ? above : mark.bottom + 6) + scrollY}px`;
  };
  for (const dot of all(".dot")) {
    dot.addEventListener("pointerenter", () => light(dot, true));
    dot.addEventListener("pointerleave", () => light(dot, false));
    dot.addEventListener("focus", () => light(dot, true));
    dot.addEventListener("blur", () => light(dot, false));
  }
  // One point of a picture is reached by Tab; arrows go on to its neighbours, from left to right.
  const across = (dot) => Number(dot.querySelector(".hit").getAttribute("cx"));
  for (const front of all("svg.front")) {
    front.addEventListener("keydown", (event) => {
      const dots = all(".dot", front).sort((a, b) => across(a) - across(b));
      const here = dots.indexOf(event.target.closest(".dot"));
      const places = { ArrowRight: here + 1, ArrowUp: here + 1, ArrowLeft: here - 1, ArrowDown: here - 1, Home: 0, End: dots.length - 1 };
      if (here < 0 || !(event.key in places)) return;
      event.preventDefault();
      const next = dots[Math.max(0, Math.min(places[event.key], dots.length - 1))];
      for (const dot of dots) dot.setAttribute("tabindex", dot === next ? "0" : "-1");
      next.focus();
    });
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

{% include "players.js" %}
  const enhance = (within) => all("audio", within).forEach(player);
  // Copies for the knob are taken before the originals are enhanced.
  const samples = {};
  for (const system of all("[data-system][data-prompt]")) {
    samples[`${system.dataset.prompt}/${system.dataset.system}`] = all(".sample", system).map((each) => each.cloneNode(true));
  }
  enhance(document);

  // The knob: a point of the line between both students. Between two merges its numbers are a straight line.
  const dial = document.getElementById("dial");
  if (!dial) return;
  // 1.625, but 0.50.
  const told = (knob) => knob.toFixed(3).replace(/0$/, "");
  const between = (stops, knob) => {
    const next = stops.findIndex((stop) => stop[0] >= knob); // -1 beyond the last stop, which stands for all that is beyond
    const after = next < 0 ? stops.length - 1 : Math.max(1, next);
    const [a, b] = [stops[after - 1], stops[after]];
    const share = Math.max(0, Math.min(1, (knob - a[0]) / (b[0] - a[0])));
    return a.map((value, place) => value + share * (b[place] - value));
  };
  const select = document.getElementById("heard-prompt");
  const heard = document.getElementById("heard");
  let shown = "";
  const hear = (name) => {
    if (!select || shown === `${select.value}/${name}`) return;
    shown = `${select.value}/${name}`;
    document.getElementById("heard-name").textContent = name;
    for (const audio of all("audio", heard)) audio.pause();
    heard.replaceChildren(...(samples[shown] || []).map((each) => each.cloneNode(true)));
    enhance(heard);
  };
  const turn = () => {
    const knob = Number(dial.value);
    const nearest = data.line.reduce((a, b) => (Math.abs(b.knob - knob) < Math.abs(a.knob - knob) ? b : a));
    const exact = Math.abs(nearest.knob - knob) < 0.005;
    for (const front of all("svg.front")) {
      const stops = JSON.parse(front.dataset.line);
      if (stops.length < 2) continue;
      const [, x, y] = between(stops, knob);
      const cursor = front.querySelector(".cursor");
      cursor.setAttribute("cx", x.toFixed(1));
      cursor.setAttribute("cy", y.toFixed(1));
    }
    document.getElementById("knob-value").textContent = told(knob);
    const values = between(data.line.map((stop) => [stop.knob, ...stop.values]), knob).slice(1);
    for (const cell of all("[data-metric]")) cell.textContent = (exact ? "" : "≈ ") + values[cell.dataset.metric].toFixed(3);
    const beyond = knob < data.line[0].knob || knob > data.line[data.line.length - 1].knob;
    const where = exact ? `This is ${nearest.name}, as it was measured.`
      : beyond ? `Not measured: beyond ${nearest.name}, the last measured model, whose numbers these are.`
      : `Not measured: a straight line between its neighbours. The nearest measured model is ${nearest.name}.`;
    document.getElementById("knob-note").textContent = where;
    dial.setAttribute("aria-valuetext", `${told(knob)}. ${where}`);
    const command = document.getElementById("knob-command");
    if (command) command.textContent = command.dataset.command.replace("KNOB", told(knob));
    hear(nearest.name);
  };
  dial.addEventListener("input", turn);
  if (select) select.addEventListener("change", turn);
  turn();
})();
