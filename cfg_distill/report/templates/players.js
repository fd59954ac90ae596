  const icons = { play: "M2 1v12l11-6z", pause: "M2 1h3.5v12H2zM8.5 1H12v12H8.5z" };
  // Players: one plays at a time. Without this script the browser's own controls stand in their place.
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  const player = (audio) => {
    const box = document.createElement("div");
    box.className = "player";
    box.innerHTML = '<button type="button"><svg viewBox="0 0 14 14" aria-hidden="true"><path/></svg></button>'
      + '<span class="bar" aria-hidden="true"><i></i></span><time></time>';
    const [button, bar, time] = [box.querySelector("button"), box.querySelector(".bar"), box.querySelector("time")];
    const about = audio.getAttribute("aria-label");
    const length = () => (Number.isFinite(audio.duration) && audio.duration) || Number(audio.dataset.seconds) || 1;
    const show = () => {
      const playing = !audio.paused;
      box.classList.toggle("playing", playing);
      button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${about}`);
      box.querySelector("path").setAttribute("d", playing ? icons.pause : icons.play);
      bar.style.setProperty("--done", audio.currentTime / length());
      time.textContent = clock(audio.currentTime || length());
    };
    const moveTo = (seconds) => { audio.currentTime = Math.max(0, Math.min(seconds, length())); show(); };
    button.addEventListener("click", () => {
      if (!audio.paused) return audio.pause();
      for (const other of all("audio")) if (other !== audio) other.pause();
      return audio.play().catch(() => { time.textContent = "no sound"; });
    });
    button.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -2, ArrowRight: 2 }[event.key];
      if (step) { event.preventDefault(); moveTo(audio.currentTime + step); }
    });
    bar.addEventListener("click", (event) => {
      const place = bar.getBoundingClientRect();
      moveTo(((event.clientX - place.left) / place.width) * length());
    });
    for (const kind of ["play", "pause", "timeupdate", "ended", "loadedmetadata"]) audio.addEventListener(kind, show);
    audio.controls = false;
    audio.before(box);
    show();
  };
