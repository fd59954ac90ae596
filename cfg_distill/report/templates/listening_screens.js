// Screens

function showStart(problem = "") {
  const total = (kind) => data.items.filter((item) => item.kind === kind).length;
  const name = make("input", { type: "text", id: "rater", autocomplete: "off", maxLength: 60, spellcheck: "false" });
  const hint = make("p", { className: "faint", id: "name-hint" }, "A name or a code, as you were told. It stands in your file.");
  const start = (event) => {
    event.preventDefault();
    if (nameOf(name.value)) begin({ rater: name.value.trim(), started: new Date().toISOString(), answers: {} });
    else {
      hint.textContent = "Write a name or a code first.";
      name.focus();
    }
  };
  const load = make("input", {
    type: "file",
    accept: ".json,application/json",
    "aria-label": "Load a saved file",
    onchange: async (event) => {
      try {
        begin(sessionOf(await event.target.files[0].text()));
      } catch (error) {
        showStart(error.message);
      }
    },
  });
  const saved = savedSessions().map((each) => {
    const done = Object.entries(each.answers).filter(([id, answer]) => items.has(id) && (answer.quality || answer.more)).length;
    const text = `${each.rater}: ${done} of ${items.size} done`;
    return make("li", { className: "saved" }, text, make("button", { onclick: () => begin(each) }, "Go on"));
  });
  const parts = [make("h1", {}, data.title)];
  if (problem) parts.push(make("p", { className: "card problem", role: "alert" }, problem));
  const first = `You will ${isSound ? "hear" : "read"} ${count(total("quality"), thing)} and give each two scores from 1 to 5.`;
  const second = total("variety") ? ` Then you compare ${count(total("variety"), "pair")} of groups: which one is more varied?` : "";
  const volume = isSound ? " Use headphones. Set the volume at the first clip, and leave it." : "";
  parts.push(
    make("p", {}, `${first}${second} This takes ${minutes(secondsLeft([...items.keys()]))}.${volume}`),
    make("p", {}, "Stop whenever you like: this browser keeps your answers. At the end you download one file and send it back."),
    make(
      "form",
      { className: "card", onsubmit: start },
      make("label", { className: "field", for: "rater" }, "Your name or code"),
      name,
      hint,
      make("button", { className: "main", type: "submit" }, "Begin")
    )
  );
  if (saved.length) parts.push(make("div", { className: "card" }, make("p", { className: "field" }, "Kept in this browser"), make("ul", { className: "bare" }, ...saved)));
  parts.push(make("p", { className: "row" }, make("label", { className: "file" }, "Load a saved file", load), make("span", { className: "faint" }, "to go on with what you began elsewhere")));
  show(...parts);
}

function showStep() {
  if (place >= steps.length) return showEnd();
  if (steps[place] === INTRO) return showIntro();
  return showItem(items.get(steps[place]));
}

function move(by) {
  spend();
  save();
  place = Math.max(0, Math.min(steps.length, place + by));
  showStep();
}

function secondsLeft(ids) {
  const expected = (item) => 10 + clipsOf(item).reduce((sum, clip) => sum + data.clips[clip].seconds, 0);
  const left = ids.map((id) => expected(items.get(id))).reduce((sum, each) => sum + each, 0);
  const done = session ? doneOf(session.answers).filter(isDone) : [];
  if (done.length < 5) return left;
  const spent = done.reduce((sum, id) => sum + session.answers[id].seconds, 0);
  return (left * spent) / done.reduce((sum, id) => sum + expected(items.get(id)), 0);
}

function head() {
  const left = steps.filter((id) => id !== INTRO && !isDone(id));
  const done = items.size - left.length;
  const text = `${done} of ${items.size}` + (left.length ? `, ${minutes(secondsLeft(left))} left` : " done");
  const bar = make("div", { className: "bar" }, make("div", { style: `width: ${(100 * done) / items.size}%` }));
  const copy = make("button", { className: "plain", onclick: download }, "Save a copy");
  return [make("div", { className: "top" }, make("span", { className: "faint", id: "progress" }, text), copy), bar];
}

function foot(hint, next) {
  const back = make("button", { onclick: () => move(-1) }, "Back");
  if (place === 0) back.style.visibility = "hidden";
  return make("div", { className: "foot" }, make("div", {}, back, hint, next));
}

function showIntro() {
  const next = make("button", { className: "main", onclick: () => move(1) }, "Go on");
  const number = steps.length - steps.indexOf(INTRO) - 1;
  screen.className = "";
  show(
    ...head(),
    make("h1", {}, "Now: which group is more varied?"),
    make("p", {}, `Each page shows two groups, A and B, of ${thing}s that answer the same prompt. Choose the group whose ${thing}s differ more from each other.`),
    make("p", {}, "How good they are does not matter here."),
    make("p", { className: "faint" }, `${count(number, "comparison")}.`),
    foot(make("p", { className: "hint" }), next)
  );
  shown = { players: [], next: () => move(1), back: () => move(-1), choose: () => false };
}

function showItem(item) {
  const answer = answerOf(item.id);
  const wide = item.kind === "variety";
  screen.className = wide ? "wide" : "";
  const hint = make("p", { className: "hint", id: "hint" });
  const next = make("button", { className: "main", id: "next", onclick: () => go() }, "Next");
  const fieldsets = wide ? [choices(item, answer, refresh)] : SCALES.map((scale) => tiles(scale, answer, refresh));
  const players = [];
  const listing = (clips) =>
    clips.map((clip, number) => (isSound ? listed(clip, clips.length > 1 ? number + 1 : 0) : words(clip)));

  function listed(clip, number) {
    if (!audible(clip)) return make("p", { className: "empty" }, "This clip is empty: it has no sound.");
    const player = makePlayer(clip, number ? `clip ${number}` : "the clip", answer, players, refresh);
    players.push(player);
    return player.element;
  }
  function refresh(by) {
    if (by) answer.at = new Date().toISOString();
    if (by) save();
    const lacking = missing(item);
    next.setAttribute("aria-disabled", String(lacking !== ""));
    hint.textContent = lacking;
    hint.classList.remove("wanted");
    const unheard = clipsOf(item).some((clip) => audible(clip) && !answer.heard.includes(clip));
    fieldsets.forEach((each) => each.classList.toggle("waiting", unheard));
  }
  function go() {
    const lacking = missing(item);
    if (!lacking) return move(1);
    hint.classList.add("wanted");
    say(lacking);
  }
  const prompt = make("div", { className: "card" }, make("p", { className: "label" }, "Prompt"), make("p", { className: "prompt" }, item.prompt));
  const body = wide
    ? make("div", { className: "groups" }, ...groupsOf(item, session.rater).map((group, n) => make("section", { className: "card" }, make("h2", {}, `Group ${"AB"[n]}`), ...listing(group.clips))))
    : make("div", { className: "card" }, ...listing(item.clips));
  const keys = make("p", { className: "faint keys" });
  const pairs = [isSound && (wide ? [`Space or 1 to ${clipsOf(item).length}`, "play"] : ["Space", "play"]), wide ? ["A  E  B", "choose"] : ["1 to 5", "score"], ["Enter", "next"], ["←", "back"]];
  for (const [key, does] of pairs.filter(Boolean)) keys.append(make("kbd", {}, key), ` ${does}   `);
  show(...head(), prompt, body, make("div", { className: "card" }, ...fieldsets), keys, foot(hint, next));
  shown = { item, players, next: go, back: () => place > 0 && move(-1), choose: (key) => chooseByKey(key, item, answer, fieldsets, players) };
  since = performance.now();
  refresh(false);
}

function tiles(scale, answer, refresh) {
  const tile = (word, index) => {
    const input = make("input", { type: "radio", name: scale.key, value: String(index + 1), checked: answer[scale.key] === index + 1 });
    input.addEventListener("change", () => {
      answer[scale.key] = index + 1;
      refresh(true);
    });
    return make("label", {}, input, make("span", { className: "tile" }, make("b", {}, String(index + 1)), make("small", {}, word)));
  };
  return make("fieldset", { id: scale.key }, make("legend", {}, scale.question), make("div", { className: "tiles" }, ...scale.words.map(tile)));
}

function choices(item, answer, refresh) {
  const [one, other] = groupsOf(item, session.rater);
  const tile = ([value, big, small]) => {
    const input = make("input", { type: "radio", name: "more", value, checked: answer.more === value });
    input.addEventListener("change", () => {
      answer.more = value;
      answer.shown = [one.id, other.id]; // A and B, so that a habit of one side can be seen
      refresh(true);
    });
    return make("label", {}, input, make("span", { className: "tile" }, make("b", {}, big), make("small", {}, small)));
  };
  const three = [[one.id, "A", "is more varied"], ["equal", "=", "about equal"], [other.id, "B", "is more varied"]];
  return make("fieldset", { id: "more" }, make("legend", {}, "Which group is more varied?"), make("div", { className: "tiles three" }, ...three.map(tile)));
}

function words(clip) {
  const text = data.clips[clip].text;
  return text.trim() ? make("p", { className: "words" }, text) : make("p", { className: "empty words" }, "This text is empty.");
}

const PLAY = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M7 4.5v15l12.5-7.5z"/></svg>';
const PAUSE = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M6 4.5h4v15H6zm8 0h4v15h-4z"/></svg>';

function makePlayer(clip, label, answer, siblings, refresh) {
  const { file, seconds } = data.clips[clip];
  const audio = new Audio(file);
  audio.preload = "auto";
  const button = make("button", { className: "play", type: "button", onclick: () => toggle() });
  const seek = make("input", { type: "range", className: "seek", min: "0", max: String(seconds), step: "0.01", value: "0", "aria-label": `Place in ${label}` });
  const time = make("span", { className: "clock" });
  const element = make("div", { className: "player" }, button, seek, time);
  element.classList.toggle("heard", answer.heard.includes(clip));

  function draw() {
    const playing = !audio.paused && !audio.ended;
    button.innerHTML = playing ? PAUSE : PLAY;
    button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${label}`);
    follow();
    if (playing) requestAnimationFrame(again);
  }
  function again() {
    follow();
    if (!audio.paused && !audio.ended) requestAnimationFrame(again);
  }
  function follow() {
    seek.value = String(audio.currentTime);
    seek.style.setProperty("--part", `${(100 * audio.currentTime) / seconds}%`);
    time.textContent = `${clock(audio.currentTime)} / ${clock(seconds)}`;
  }
  function toggle() {
    if (!audio.paused) return audio.pause();
    siblings.forEach((other) => other.stop());
    return audio.play().catch(() => {}); // a player that was stopped before it began; a missing file reports itself below
  }
  audio.addEventListener("play", () => {
    answer.plays += 1;
    if (!answer.heard.includes(clip)) answer.heard.push(clip);
    element.classList.add("heard");
    refresh(false);
    save();
  });
  for (const event of ["play", "pause", "ended", "seeked"]) audio.addEventListener(event, draw);
  audio.addEventListener("error", () => {
    element.replaceChildren(make("p", { className: "problem card", role: "alert" }, `This clip cannot be played. Is the folder whole? The file is ${file}.`));
  });
  seek.addEventListener("input", () => (audio.currentTime = Number(seek.value)));
  draw();
  return { element, toggle, stop: () => audio.pause(), plays: () => !audio.paused, heard: () => answer.heard.includes(clip) };
}

function showEnd() {
  screen.className = "";
  const left = items.size - steps.filter(isDone).length;
  const next = make("button", { className: "main", id: "download", onclick: () => { download(); note.textContent = "The file lies in your downloads. Send it to the person who asked you."; } }, "Download the result");
  const note = make("p", { className: "faint", role: "status" });
  show(
    ...head(),
    make("h1", {}, left ? `Still open: ${count(left, "item")}` : "Thank you, that was all"),
    make("p", {}, left ? "Go back to what you skipped, or download what is there." : "Download the file and send it to the person who asked you."),
    make("p", { className: "row" }, next, make("button", { onclick: () => move(-1) }, "Back")),
    note
  );
  shown = { players: [], next: () => {}, back: () => move(-1), choose: () => false };
}

// Keyboard

function chooseByKey(key, item, answer, fieldsets, players) {
  const pick = (fieldset, index) => {
    const input = fieldset.querySelectorAll("input")[index];
    input.click();
    input.focus({ preventScroll: true });
    return true;
  };
  if (item.kind === "variety") {
    const index = ["a", "e", "b"].indexOf(key.toLowerCase());
    if (index >= 0) return pick(fieldsets[0], index);
    const player = /^[1-9]$/.test(key) && players[Number(key) - 1];
    return player ? (player.toggle(), true) : false;
  }
  if (!/^[1-5]$/.test(key)) return false;
  // The scale that has the focus; else the first one without a score.
  const focused = fieldsets.findIndex((each) => each.contains(document.activeElement));
  const open = SCALES.findIndex((scale) => !answer[scale.key]);
  const which = open >= 0 ? open : Math.max(focused, 0);
  return pick(fieldsets[which], Number(key) - 1);
}

document.addEventListener("keydown", (event) => {
  if (!shown || event.ctrlKey || event.metaKey || event.altKey) return;
  const target = event.target;
  const onButton = target.tagName === "BUTTON";
  const onRadio = target.type === "radio";
  const acts = {
    Enter: () => !onButton && (shown.next(), true),
    " ": () => {
      if (onButton || (onRadio && !target.checked) || !shown.players.length) return false;
      // What plays is paused; else the first clip that was not heard yet is played, or the first one of all.
      const { players } = shown;
      (players.find((each) => each.plays()) ?? players.find((each) => !each.heard()) ?? players[0]).toggle();
      return true;
    },
    ArrowLeft: () => !onRadio && target.type !== "range" && (shown.back(), true),
    ArrowRight: () => !onRadio && target.type !== "range" && (shown.next(), true),
  };
  const act = acts[event.key] ?? (() => target.type !== "text" && shown.choose(event.key));
  if (act()) event.preventDefault();
});

window.addEventListener("beforeunload", (event) => {
  if (session && !canStore && !downloaded) event.preventDefault();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) spend();
  else since = performance.now();
});

showStart();
