// One item on the screen: its prompt, its clips or texts, and the question.

const PLAY = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M7 4.5v15l12.5-7.5z"/></svg>';
const PAUSE = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M6 4.5h4v15H6zm8 0h4v15h-4z"/></svg>';

const broken = new Set(); // clips that could not be loaded: a rater goes on, and their items stay open
let ahead = []; // the clips of the next item, for pages that come from a web server

function showItem(item) {
  const answer = answerOf(item.id);
  const compares = item.kind === "variety";
  const number = steps.slice(0, place + 1).filter((id) => id !== INTRO).length;
  const hint = make("p", { className: "hint", id: "hint" });
  const next = make("button", { className: "main", id: "next", onclick: () => go() }, "Next");
  const players = [];
  const questions = compares
    ? [choices(item, answer, refresh)]
    : SCALES.map((scale) => tiles(scale, answer, refresh));

  function refresh(isAnswer) {
    if (isAnswer) {
      answer.at = new Date().toISOString();
      save();
    }
    const lacking = missing(item);
    next.setAttribute("aria-disabled", String(lacking !== "" && !isBroken(item)));
    hint.textContent = lacking && isBroken(item) ? "Go on without this item." : lacking;
    hint.classList.remove("wanted");
    const unheard = clipsOf(item).some((clip) => audible(clip) && !answer.heard.includes(clip));
    questions.forEach((each) => each.classList.toggle("waiting", unheard));
  }

  function go() {
    const lacking = missing(item);
    if (!lacking || isBroken(item)) return move(1);
    hint.classList.add("wanted");
    return say(lacking);
  }

  function listed(clip, place, clips) {
    if (!isSound) return words(clip);
    if (!audible(clip)) return make("p", { className: "empty" }, "This clip is empty: it has no sound.");
    const label = clips.length > 1 ? `clip ${place + 1}` : "the clip";
    const player = makePlayer(clip, label, answer, players, refresh);
    players.push(player);
    return player.element;
  }

  function grouped() {
    const groups = groupsOf(item, session.rater).map((group, side) => {
      const title = make("h2", {}, `Group ${"AB"[side]}`);
      return make("section", { className: "card" }, title, ...group.clips.map(listed));
    });
    return make("div", { className: "groups" }, ...groups);
  }

  screen.className = compares ? "wide" : "";
  show(
    ...head(),
    make("h1", { className: "unseen" }, `Item ${number} of ${items.size}`),
    card(make("p", { className: "label" }, "Prompt"), make("p", { className: "prompt" }, item.prompt)),
    compares ? grouped() : card(...item.clips.map(listed)),
    card(...questions),
    keysOf(item),
    foot(hint, next)
  );
  shown = {
    item,
    players,
    next: go,
    back: () => place > 0 && move(-1),
    choose: (key) => chooseByKey(key, item, answer, questions, players),
  };
  since = performance.now();
  refresh(false);
  fetchAhead();
}

const isBroken = (item) => clipsOf(item).some((clip) => broken.has(clip));
const card = (...children) => make("div", { className: "card" }, ...children);

function keysOf(item) {
  const compares = item.kind === "variety";
  const plays = compares ? `Space or 1 to ${clipsOf(item).length}` : "Space";
  const pairs = [
    [compares ? "A  E  B" : "1 to 5", compares ? "choose" : "score"],
    ["Enter", "next"],
    ["←", "back"],
  ];
  if (isSound) pairs.unshift([plays, "play"]);
  const line = make("p", { className: "faint keys" });
  for (const [key, does] of pairs) line.append(make("kbd", {}, key), ` ${does}   `);
  return line;
}

function fetchAhead() {
  const next = items.get(steps[place + 1]);
  ahead = next ? clipsOf(next).filter(audible).map((clip) => new Audio(data.clips[clip].file)) : [];
  ahead.forEach((audio) => (audio.preload = "auto"));
}

// The questions

function tile(name, value, big, small, checked, choose) {
  const input = make("input", { type: "radio", name, value, checked });
  input.addEventListener("change", choose);
  const face = make("span", { className: "tile" }, make("b", {}, big), make("small", {}, small));
  return make("label", {}, input, face);
}

function tiles(scale, answer, refresh) {
  const all = scale.words.map((word, index) => {
    const score = index + 1;
    return tile(scale.key, String(score), String(score), word, answer[scale.key] === score, () => {
      answer[scale.key] = score;
      refresh(true);
    });
  });
  const row = make("div", { className: "tiles" }, ...all);
  return make("fieldset", { id: scale.key }, make("legend", {}, scale.question), row);
}

function choices(item, answer, refresh) {
  const [one, other] = groupsOf(item, session.rater);
  const three = [
    [one.id, "A", "is more varied"],
    ["equal", "=", "about equal"],
    [other.id, "B", "is more varied"],
  ];
  const all = three.map(([value, big, small]) =>
    tile("more", value, big, small, answer.more === value, () => {
      answer.more = value;
      answer.shown = [one.id, other.id]; // A and B, so that a habit of one side can be seen
      refresh(true);
    })
  );
  const row = make("div", { className: "tiles three" }, ...all);
  return make("fieldset", { id: "more" }, make("legend", {}, "Which group is more varied?"), row);
}

function chooseByKey(key, item, answer, questions, players) {
  const pick = (question, index) => {
    const input = question.querySelectorAll("input")[index];
    input.click();
    input.focus({ preventScroll: true });
    return true;
  };
  if (item.kind === "variety") {
    const index = ["a", "e", "b"].indexOf(key.toLowerCase());
    if (index >= 0) return pick(questions[0], index);
    const player = /^[1-9]$/.test(key) && players[Number(key) - 1];
    if (player) player.toggle();
    return Boolean(player);
  }
  if (!/^[1-5]$/.test(key)) return false;
  // The first scale without a score; when both have one, the scale that has the focus.
  const open = SCALES.findIndex((scale) => !answer[scale.key]);
  const focused = questions.findIndex((each) => each.contains(document.activeElement));
  return pick(questions[open >= 0 ? open : Math.max(focused, 0)], Number(key) - 1);
}

// Clips and texts

function words(clip) {
  const text = data.clips[clip].text;
  if (text.trim()) return make("p", { className: "words" }, text);
  return make("p", { className: "empty words" }, "This text is empty.");
}

function makePlayer(clip, label, answer, siblings, refresh) {
  const { file, seconds } = data.clips[clip];
  const audio = new Audio(file);
  audio.preload = "auto";
  const button = make("button", { className: "play", type: "button", onclick: () => toggle() });
  const range = { type: "range", className: "seek", min: "0", max: String(seconds), step: "0.01", value: "0" };
  const seek = make("input", { ...range, "aria-label": `Place in ${label}` });
  const time = make("span", { className: "clock" });
  const element = make("div", { className: "player" }, button, seek, time);
  const plays = () => !audio.paused && !audio.ended;
  const heard = () => answer.heard.includes(clip);
  element.classList.toggle("heard", heard());

  function draw() {
    button.innerHTML = plays() ? PAUSE : PLAY;
    button.setAttribute("aria-label", `${plays() ? "Pause" : "Play"} ${label}`);
    follow();
  }
  function follow() {
    seek.value = String(audio.currentTime);
    seek.style.setProperty("--part", `${(100 * audio.currentTime) / seconds}%`);
    time.textContent = `${clock(audio.currentTime)} / ${clock(seconds)}`;
    if (plays()) requestAnimationFrame(follow);
  }
  function toggle() {
    if (plays()) return audio.pause();
    siblings.forEach((other) => other.stop());
    return audio.play().catch(() => {}); // stopped before it began; a missing file reports itself below
  }
  audio.addEventListener("play", () => {
    answer.plays += 1;
    if (!heard()) answer.heard.push(clip);
    element.classList.add("heard");
    refresh(false);
    save();
  });
  for (const event of ["play", "pause", "ended", "seeked"]) audio.addEventListener(event, draw);
  audio.addEventListener("error", () => {
    const text = `This clip cannot be played. Is the folder whole? The file is ${file}.`;
    element.replaceChildren(make("p", { className: "problem card", role: "alert" }, text));
    broken.add(clip);
    refresh(false);
  });
  seek.addEventListener("input", () => (audio.currentTime = Number(seek.value)));
  draw();
  return { element, toggle, plays, heard, stop: () => audio.pause() };
}
