// The screens before, between and after the items, and the keyboard.

const LOST = "This browser keeps nothing. Save a copy before you close the page, and load it when you go on.";

function showStart(problem = "") {
  const saved = savedSessions();
  const parts = [make("h1", {}, data.title)];
  if (!canStore) parts.push(make("p", { className: "card problem" }, LOST));
  if (problem) parts.push(make("p", { className: "card problem", role: "alert" }, problem));
  parts.push(...introduction(), startForm());
  if (saved.length) {
    const list = make("ul", { className: "bare" }, ...saved.map(savedLine));
    parts.push(card(make("p", { className: "field" }, "Kept in this browser"), list));
  }
  const label = make("label", { className: "file" }, "Load a saved file", fileInput());
  parts.push(make("p", { className: "row" }, label, make("span", { className: "faint" }, "to go on with a copy")));
  show(...parts);
}

function introduction() {
  const total = (kind) => data.items.filter((item) => item.kind === kind).length;
  const does = `You will ${isSound ? "hear" : "read"} ${count(total("quality"), thing)} and give each two scores from 1 to 5.`;
  const then = total("variety") && `Then you compare ${count(total("variety"), "pair")} of groups: which one is more varied?`;
  const takes = `This takes ${minutes(secondsLeft([...items.keys()]))}.`;
  const volume = isSound && "Use headphones. Set the volume at the first clip, and leave it.";
  const stop = canStore && "Stop whenever you like: this browser keeps your answers.";
  const end = "At the end you download one file and send it back.";
  const joined = (...sentences) => make("p", {}, sentences.filter(Boolean).join(" "));
  return [joined(does, then, takes, volume), joined(stop, end)];
}

function startForm() {
  const properties = { type: "text", id: "rater", autocomplete: "off", maxLength: 60, spellcheck: "false" };
  const name = make("input", properties);
  const hint = make("p", { className: "faint", id: "name-hint" }, "Use the one you were given. It is written into your file.");
  const start = (event) => {
    event.preventDefault();
    if (nameOf(name.value)) {
      begin({ rater: name.value.trim(), started: new Date().toISOString(), answers: {} });
      return;
    }
    hint.textContent = "Write a name or a code first.";
    name.focus();
  };
  const label = make("label", { className: "field", for: "rater" }, "Your name or code");
  const button = make("button", { className: "main", type: "submit" }, "Begin");
  return make("form", { className: "card", onsubmit: start }, label, name, hint, button);
}

function savedLine(saved) {
  const given = Object.entries(saved.answers).filter(([id, answer]) => items.has(id) && (answer.adherence || answer.more));
  const button = make("button", { onclick: () => begin(saved) }, "Go on");
  return make("li", { className: "saved" }, `${saved.rater}: ${given.length} of ${items.size} done`, button);
}

function fileInput() {
  const load = async (event) => {
    try {
      begin(sessionOf(await event.target.files[0].text()));
    } catch (error) {
      showStart(error.message);
    }
  };
  return make("input", { type: "file", accept: ".json,application/json", "aria-label": "Load a saved file", onchange: load });
}

function showStep() {
  if (place >= steps.length) return showEnd();
  return steps[place] === INTRO ? showIntro() : showItem(items.get(steps[place]));
}

function move(by) {
  spend();
  save();
  place = Math.max(0, Math.min(steps.length, place + by));
  showStep();
}

/** The expected time of items, by the rater's own speed so far. */
function secondsLeft(ids) {
  const expected = (id) => 10 + clipsOf(items.get(id)).reduce((sum, clip) => sum + data.clips[clip].seconds, 0);
  const total = (some, of) => some.reduce((sum, id) => sum + of(id), 0);
  const done = session ? doneOf(session.answers).filter(isDone) : [];
  if (done.length < 5) return total(ids, expected);
  return (total(ids, expected) * total(done, (id) => session.answers[id].seconds)) / total(done, expected);
}

function head() {
  const left = steps.filter((id) => id !== INTRO && !isDone(id));
  const done = items.size - left.length;
  const text = `${done} of ${items.size}` + (left.length ? `, ${minutes(secondsLeft(left))} left` : " done");
  const copy = make("button", { className: "plain", onclick: download }, "Save a copy");
  const filled = make("div", { style: `width: ${(100 * done) / items.size}%` });
  return [
    make("div", { className: "top" }, make("span", { className: "faint", id: "progress" }, text), copy),
    make("div", { className: "bar" }, filled),
  ];
}

function foot(hint, next) {
  const back = make("button", { onclick: () => move(-1) }, "Back");
  if (place === 0) back.style.visibility = "hidden";
  return make("div", { className: "foot" }, make("div", {}, back, hint, next));
}

function showIntro() {
  const number = steps.length - steps.indexOf(INTRO) - 1;
  const about =
    `Each page shows two groups, A and B, of ${thing}s that answer the same prompt. ` +
    `Choose the group whose ${thing}s differ more from each other.`;
  screen.className = "";
  show(
    ...head(),
    make("h1", {}, "Now: which group is more varied?"),
    make("p", {}, about),
    make("p", {}, "How good they are does not matter here."),
    make("p", { className: "faint" }, `${count(number, "comparison")}.`),
    foot(make("p", { className: "hint" }), make("button", { className: "main", onclick: () => move(1) }, "Go on"))
  );
  shown = { players: [], next: () => move(1), back: () => move(-1), choose: () => false };
}

function showEnd() {
  const left = items.size - steps.filter(isDone).length;
  const note = make("p", { className: "faint", role: "status" });
  const finish = () => {
    download();
    note.textContent = "The file is in your downloads. Send it to the person who asked you.";
  };
  const text = left ? "Go back to the items that are open, or download what is there." : "Now download your file, and send it to the person who asked you.";
  const button = make("button", { className: "main", id: "download", onclick: finish }, "Download the result");
  screen.className = "";
  show(
    ...head(),
    make("h1", {}, left ? `Still open: ${count(left, "item")}` : "Thank you, that was all"),
    make("p", {}, text),
    make("p", { className: "row" }, button, make("button", { onclick: () => move(-1) }, "Back")),
    note
  );
  shown = { players: [], next: () => {}, back: () => move(-1), choose: () => false };
}

// Keyboard

document.addEventListener("keydown", (event) => {
  if (!shown || event.ctrlKey || event.metaKey || event.altKey) return;
  const target = event.target;
  const onButton = target.tagName === "BUTTON";
  const onRadio = target.type === "radio";
  const takesArrows = target.type === "range"; // ↑ and ↓ are left to a scale, ← and → turn the page
  const acts = {
    Enter: () => !onButton && (shown.next(), true),
    ArrowLeft: () => !takesArrows && (shown.back(), true),
    ArrowRight: () => !takesArrows && (shown.next(), true),
    " ": () => {
      if (onButton || (onRadio && !target.checked) || !shown.players.length) return false;
      // A clip that plays is paused; else the first one that was not heard yet is played, or the first one of all.
      const { players } = shown;
      (players.find((each) => each.plays()) ?? players.find((each) => !each.heard()) ?? players[0]).toggle();
      return true;
    },
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
