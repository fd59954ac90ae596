"""The tables, the numbers and the picture of a study of tunes, for docs/evidence.md and docs/quickstart.md.

    python docs/evidence.py runs/tunes/study study
    python docs/evidence.py runs/quickstart quickstart

It prints the tables, and writes docs/evidence/NAME.json and docs/images/front_NAME.png.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
AXES = ("quality", "diversity", "figures_diversity", "judge_diversity", "melodic_diversity")
SYSTEMS = {
    "real: held-out tunes": "held-out real tunes",
    "base": "base",
    "base guidance 1.25 T 1": "guidance 1.25",
    "base guidance 1.5 T 1": "guidance 1.5",
    "guidance 1.5": "guidance 1.5",
    "guidance 2": "guidance 2",
    "base guidance 3 T 1": "guidance 3",
    "guidance 3": "guidance 3",
    "base T 0.8": "base, temperature 0.8",
    "fine-tuned": "fine-tuned on guided samples",
    "quality": "quality student",
    "eighth": "merge 1/8",
    "quarter": "merge 1/4",
    "half": "merge 1/2",
    "three quarters": "merge 3/4",
    "diversity": "diversity student",
    "degenerate: shuffled bars": "common bars, shuffled",
    "degenerate: random notes": "random notes",
}
"""Name in a study -> name on the page."""
COMMANDS = {"study": "cfg-distill study recipes/tunes/study.yaml", "quickstart": "make quickstart"}
KEPT = ("name", "kind", "relative_cost", "quality", "diversity", "guards")


def rounded(value: Any) -> Any:
    """Numbers to four digits, everywhere inside."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def row(system: dict[str, Any]) -> str:
    """A system's means, with half the width of each interval."""
    values = system["quality"] | system["diversity"]
    cells = [f"{each['mean']:.3f} ±{(each['high'] - each['low']) / 2:.3f}" for each in (values[axis] for axis in AXES)]
    passes = "-" if system["kind"] in ("real", "degenerate") else f"{system['relative_cost']:g}"
    return f"| {SYSTEMS[system['name']]} | {passes} | {' | '.join(cells)} |"


def main(folder: Path, page: str) -> None:
    front = rounded(json.loads((folder / "front.json").read_text(encoding="utf-8")))
    by_name = {system["name"]: system for system in front["systems"]}
    print(f"| system | passes per token | {' | '.join(axis.replace('_', ' ') for axis in AXES)} |")
    print("|---" * (2 + len(AXES)) + "|")
    for name in SYSTEMS:
        if name in by_name:
            print(row(by_name[name]))
    for claim in front["claims"]:
        print(f"\n{claim['name']}: {claim['claim']}: {claim['verdict']}\n    {claim['evidence']}")
    for each in front["fronts"]:
        print(f"\nheights above the front under {each['diversity']}, {each['cost']} cost")
        for point in each["curve"]:
            height = point["height"]
            bounds = f"{height['mean']:+.3f} [{height['low']:+.3f}, {height['high']:+.3f}]"
            print(f"    {point['system']:16} {bounds} {point['verdict']}")
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    numbers = {
        "command": COMMANDS[page],
        "training_seeds": study["study"]["training_seeds"],
        "systems": [{key: system[key] for key in KEPT} for system in front["systems"]],
        "claims": front["claims"],
        "fronts": front["fronts"],
        "timing": front["timing"],
    }
    text = json.dumps(numbers, ensure_ascii=False)
    (DOCS / "evidence" / f"{page}.json").write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(folder / "front.png", DOCS / "images" / f"front_{page}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
