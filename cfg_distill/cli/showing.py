"""Samples for a person: printed, and written as text, as tunes (ABC, MIDI, WAV) or as sound (WAV)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from cfg_distill.audio import Waveform, write_audio
from cfg_distill.samples import Samples


def show(samples: Samples, tunes: bool) -> None:
    """Print the samples; of sound, what can be said of it."""
    for prompt, group in zip(samples.prompts, samples.groups(), strict=True):
        for number, output in enumerate(group, start=1):
            print(f"== {prompt} ({number} of {len(group)})")
            print(_as_text(output, prompt, tunes), end="\n\n")


def write(samples: Samples, out: Path, tunes: bool) -> None:
    """Write the samples into a folder, named after place, prompt and number."""
    out.mkdir(parents=True, exist_ok=True)
    for place, (prompt, group) in enumerate(zip(samples.prompts, samples.groups(), strict=True), start=1):
        words = "-".join(re.findall(r"\w+", prompt.lower()))[:60].strip("-") or "unconditional"
        for number, output in enumerate(group, start=1):
            stem = f"{place:02d}-{words}-{number}"
            if isinstance(output, Waveform):
                gain = write_audio(out / f"{stem}.wav", output)
                if gain:
                    print(f"{stem}.wav: turned down by {-gain:.1f} dB, so that it does not clip.")
            elif tunes:
                from cfg_distill.tunes.rendering import render

                render(output, out, stem, prompt)
            else:
                (out / f"{stem}.txt").write_text(output, encoding="utf-8")
    print(f"Wrote {len(samples.outputs)} samples to {out}.")


def _as_text(output: Any, prompt: str, tunes: bool) -> str:
    if isinstance(output, Waveform):
        channels = {1: "mono", 2: "stereo"}.get(len(output.samples), f"{len(output.samples)} channels")
        peak = f"{20 * math.log10(output.peak):.1f} dBFS" if output.peak else "silence"
        return f"{output.seconds:.2f} s, {output.rate} Hz, {channels}, peak {peak}"
    if not tunes:
        return output
    from cfg_distill.tunes.prompts import understand
    from cfg_distill.tunes.rendering import setting_of, to_abc

    return to_abc(setting_of(output, understand(prompt)), prompt).rstrip()
