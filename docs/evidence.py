"""The tables, the numbers and the picture of a study, for docs/evidence.md, quickstart.md, text.md and smollm2.md.

    python docs/evidence.py runs/tunes/study study
    python docs/evidence.py runs/quickstart quickstart
    python docs/evidence.py runs/smollm2_soup smollm2_soup
    python docs/evidence.py runs/smollm2_full smollm2    (or smollm2_ignored, smollm2_knob)
    python docs/evidence.py runs/tunes/music music    (or distilled, guidance_2, collapse, judged, tune_soups)

It prints the tables, and writes docs/evidence/NAME.json and, of a study with claims, docs/images/front_NAME.png; of one
with curves of collapse, docs/images/NAME.png.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
TUNES = ("quality", "diversity", "figures_diversity", "judge_diversity", "melodic_diversity")
QUICK = ("quality", "diversity", "figures_diversity", "melodic_diversity")
SECOND = ("quality", "diversity", "figures_diversity", "rhythms_diversity", "melodic_diversity")
STUDY = ("quality", "diversity", "figures_diversity", "rhythms_diversity", "quality_without_real")
TEXT = ("substance", "diversity", "word_diversity", "state_diversity", "log_probability", "degeneration")
COLLAPSE = ("distinct@2", "distinct@8", "distinct@32", "coverage@4", "coverage@16")
SYSTEMS = {
    "real: written": "written answers",
    "real: held-out tunes": "held-out real tunes",
    "base": "base",
    "base guidance 1.25 T 1": "guidance 1.25",
    "base guidance 1.5 T 1": "guidance 1.5",
    "guidance 1.5": "guidance 1.5",
    "guidance 2": "guidance 2",
    "base guidance 3 T 1": "guidance 3",
    "scale guidance 1.25 T 1": "guidance 1.25",
    "scale guidance 1.5 T 1": "guidance 1.5",
    "scale guidance 3 T 1": "guidance 3",
    "base guidance 2 T 0.8": "guidance 2, temperature 0.8",
    "base guidance 2 T 1.2": "guidance 2, temperature 1.2",
    "guidance 3": "guidance 3",
    "base T 0.6": "base, temperature 0.6",
    "base T 0.8": "base, temperature 0.8",
    "base T 1.2": "base, temperature 1.2",
    "base top-p 0.9": "base, top-p 0.9",
    "base min-p 0.05": "base, min-p 0.05",
    "base min-p 0.1": "base, min-p 0.1",
    "base varied": "base, asked for variety",
    "guided guidance 2 T 0.8": "guidance 2, temperature 0.8",
    "guided guidance 3 T 1": "guidance 3",
    "guided guidance 3 T 0.8": "guidance 3, temperature 0.8",
    "guided guidance 3 T 1.2": "guidance 3, temperature 1.2",
    "guided guidance 1.5 T 0.8": "guidance 1.5, temperature 0.8",
    "guided guidance 1.5 T 1.2": "guidance 1.5, temperature 1.2",
    "guided guidance 2 T 1.2": "guidance 2, temperature 1.2",
    "fine-tuned": "fine-tuned on guided samples",
    "quality": "quality student",
    "eighth": "merge 1/8",
    "quarter": "merge 1/4",
    "half": "merge 1/2",
    "three quarters": "merge 3/4",
    "seven eighths": "merge 7/8",
    "diversity": "diversity student",
    "diversity b": "diversity student, other random numbers",
    "diversity c": "diversity student, other random numbers again",
    "soup": "soup of the three: knob 1",
    "beyond": "beyond the soup",
    "guidance 1.5 filtered": "guidance 1.5, min-p 0.01",
    "knob 1.75": "knob 1.75",
    "knob 2": "knob 2",
    "knob 2.5": "knob 2.5",
    "knob 2.5 filtered": "knob 2.5, min-p 0.01",
    "pairs": "two encoders, `PairwiseDiversity`",
    "pairs half": "merge 1/2 of it",
    "kinds": "two encoders, `VendiScore`",
    "kinds half": "merge 1/2 of it",
    "judged": "phrases and the judge's layer, `VendiScore`",
    "soup_quality": "soup of three quality students",
    "soup_half": "half of each soup",
    "soup_diversity": "soup of three diversity students",
    "degenerate: shuffled bars": "common bars, shuffled",
    "degenerate: random notes": "random notes",
}
"""Name in a study -> name on the page."""
STUDIES = {
    "study": ("cfg-distill study recipes/tunes/study.yaml", STUDY),
    "study_second": ("cfg-distill study recipes/tunes/study.yaml, of commit 5245dd3", SECOND),
    "study_first": ("cfg-distill study recipes/tunes/study.yaml, of commit 6e07368", TUNES),
    "quickstart": ("make quickstart", QUICK),
    "smollm2_soup": ("cfg-distill study recipes/smollm2/study_soup.yaml", TEXT),
    "smollm2_soup_five": ("cfg-distill study recipes/smollm2/study_soup.yaml, of commit 28e3b36", TEXT),
    "smollm2_soup_three": ("cfg-distill study recipes/smollm2/study_soup.yaml, of commit e8c737e", TEXT),
    "smollm2_ignored": ("cfg-distill study docs/evidence/smollm2_ignored.yaml", TEXT),
    "smollm2": ("cfg-distill study recipes/smollm2/study_full.yaml", TEXT),
    "guidance_3": ("cfg-distill study docs/evidence/guidance_3.yaml", TUNES),
    "guidance_2": ("cfg-distill study docs/evidence/guidance_2.yaml", TUNES),
    "two_encoders": ("cfg-distill study docs/evidence/two_encoders.yaml", TUNES),
    "judged": ("cfg-distill study docs/evidence/judged.yaml", TUNES),
    "music": ("cfg-distill study docs/evidence/music.yaml", STUDY),
    "distilled": ("cfg-distill study docs/evidence/distilled.yaml", STUDY),
    "smollm2_knob": ("cfg-distill study docs/evidence/smollm2_knob.yaml", TEXT),
    "collapse": ("cfg-distill study docs/evidence/collapse.yaml", COLLAPSE),
    "tune_soups": ("cfg-distill evaluate, as docs/evidence.md says", TUNES),
}
"""Name of a study -> the command that makes it, and the columns of its table."""
KEPT = ("name", "kind", "relative_cost", "quality", "diversity", "guards")


def rounded(value: Any) -> Any:
    """Numbers to four digits, everywhere inside."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def row(system: dict[str, Any], study: str) -> str:
    """A system's means, with half the width of each interval."""
    values = system["quality"] | system["diversity"] | system["guards"]
    columns = [values[axis] for axis in STUDIES[study][1]]
    cells = [f"{each['mean']:.3f} ±{(each['high'] - each['low']) / 2:.3f}" for each in columns]
    passes = "-" if system["kind"] in ("real", "degenerate") else f"{system['relative_cost']:g}"
    return f"| {SYSTEMS[system['name']]} | {passes} | {' | '.join(cells)} |"


def main(folder: Path, name: str) -> None:
    command, axes = STUDIES[name]
    front = rounded(json.loads((folder / "front.json").read_text(encoding="utf-8")))
    by_name = {system["name"]: system for system in front["systems"]}
    print(f"| system | passes per token | {' | '.join(axis.replace('_', ' ') for axis in axes)} |")
    print("|---" * (2 + len(axes)) + "|")
    for system in SYSTEMS:
        if system in by_name:
            print(row(by_name[system], name))
    claims, fronts = front["claims"], front.get("fronts", [])  # an evaluation alone has no fronts
    for claim in claims:
        print(f"\n{claim['name']}: {claim['claim']}: {claim['verdict']}\n    {claim['evidence']}")
    for each in fronts:
        print(f"\nheights above the front under {each['diversity']}, {each['cost']} cost")
        for point in each["curve"]:
            height = point["height"]
            bounds = f"{height['mean']:+.3f} [{height['low']:+.3f}, {height['high']:+.3f}]"
            print(f"    {point['system']:16} {bounds} {point['verdict']}")
    study = folder / "study.json"
    settings = json.loads(study.read_text(encoding="utf-8"))["study"] if study.is_file() else {}
    numbers = {
        "command": command,
        "training_seeds": settings.get("training_seeds", []),
        "systems": [{key: system[key] for key in KEPT} for system in front["systems"]],
        "claims": claims,
        "fronts": fronts,
        "timing": front.get("timing", []),
    }
    text = json.dumps(numbers, ensure_ascii=False)
    (DOCS / "evidence" / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    if claims:
        shutil.copyfile(folder / "front.png", DOCS / "images" / f"front_{name}.png")
    if (folder / "collapse.png").is_file():
        shutil.copyfile(folder / "collapse.png", DOCS / "images" / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
