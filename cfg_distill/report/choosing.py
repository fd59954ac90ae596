"""``cfg-distill choose``: the choice as text, in front.json and, on request, as a copy of the model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.evaluation.choice import Choice, guard_of, problems_of_rule
from cfg_distill.evaluation.intervals import signed
from cfg_distill.files import expanded, problems_of_out, staged_folder
from cfg_distill.files.columns import aligned
from cfg_distill.report.measured import tell_choice
from cfg_distill.report.page import PAGE, write_report
from cfg_distill.report.results import Results, read_results


def choose_study(
    study: str | Path,
    margin: float | None = None,
    guards: Sequence[str] | None = None,
    against: str | None = None,
    out: str | Path | None = None,
) -> str:
    """Choose the point of a study to ship; write the choice into front.json; copy the model on request.

    Args:
        study: the folder of the results, or the study file.
        margin: how far below the guided base the quality may lie; None takes the one of the study's claims.
        guards: bounds as they are typed; None takes those of the study's claims.
        against: the guided system; None takes the one of the study's claims.
        out: a new folder for a copy of the chosen model; None for none.

    Returns:
        The choice as text.

    Raises:
        ConfigError: the results cannot be read, or all problems of the arguments; nothing is written.
    """
    results = read_results(study)
    out = None if out is None else expanded(out)
    problems = [] if out is None else _problems_of_copy(out, results.folder)
    rule = results.rule()
    if margin is not None:
        rule = replace(rule, margin=margin)
    if guards is not None:
        rule = replace(rule, guards=[])
        for text in guards:
            try:
                rule = replace(rule, guards=[*rule.guards, guard_of(text)])
            except ConfigError as error:
                problems += error.under("guard")
    problems += problems_of_rule(rule, list(results.systems.values()))
    try:
        results.guided(against)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    choice = results.choose(against, rule)
    lines = [choice_text(choice, results), ""]
    if out is not None and choice.chosen is not None:
        source = results.model_folder(choice.chosen.system)
        with staged_folder(out) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            said = tell_choice(folder, out.name, results, choice.chosen.system)
        lines.append(f"Copied {source} to {out}." + (f" {said}" if said else ""))
    elif out is not None:
        lines.append(f"Nothing was copied to {out}, since no point keeps the rule.")
    results.keep(choice)
    written = "front.json"
    if (results.folder / PAGE).exists():
        write_report(results.folder)
        written += f" and {PAGE}"
    lines.append(f"Wrote the choice into {written} of {results.folder}.")
    return "\n".join(lines)


def decide(study: str | Path) -> str:
    """Write the choice of a study by its own claims, where it has claims, and nobody has made a choice yet.

    Args:
        study: the folder of the results.

    Returns:
        The choice and its reason, old or new; empty without claims.

    Raises:
        ConfigError: the results cannot be read.
    """
    results = read_results(study)
    if not results.claims:
        return ""
    if not results.front.get("choice"):
        results.keep(results.choose())
    kept = results.front["choice"]
    return f"{heading(kept['system'], kept['knob'])} {kept['reason']}"


def _problems_of_copy(out: Path, study: Path) -> list[Problem]:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        return [Problem("out", f"`{out}` exists, and a copy replaces nothing. Name a new folder.")]
    return problems_of_out(out, [study], overwrite=False)


def choice_text(choice: Choice, results: Results) -> str:
    """The choice, its reason, every difference from the guided base, and why each other point was rejected."""
    chosen = None if choice.chosen is None else choice.chosen.system
    lines = [
        heading(chosen.name, chosen.knob) if chosen else heading(None, None),
        choice.reason,
        "",
        *_rule_lines(choice),
    ]
    for axis, title in (("quality", "Quality"), ("diversity", "Diversity"), ("guard", "Guards")):
        metrics = [metric for metric in results.on(axis) if any(metric in c.differences for c in choice.candidates)]
        if metrics and choice.candidates:
            lines += ["", f"{title}: difference from {choice.guided.name}, paired by prompt, with its 95 % interval"]
            lines += _table(choice, metrics)
    rejected = [(each.system.name, choice.why_not(each)) for each in choice.candidates]
    rejected = [(name, why) for name, why in rejected if why]
    if rejected:
        width = max(len(name) for name, _ in rejected)
        lines += ["", "Not chosen"]
        lines += [f"  {name:{width}}  {'; '.join(why)}" for name, why in rejected]
    return "\n".join(lines)


def heading(system: str | None, knob: float | None) -> str:
    """The choice in a few words.

    Example:
        >>> heading("half", 0.5), heading(None, None)
        ('Recommended: half (knob 0.5).', 'No point is recommended.')
    """
    if system is None:
        return "No point is recommended."
    return f"Recommended: {system}" + ("" if knob is None else f" (knob {knob:g})") + "."


def _rule_lines(choice: Choice) -> list[str]:
    rule, guided = choice.rule, choice.guided.name
    guards = ", ".join(map(str, rule.guards)) or "none"
    lines = [
        f"Rule: the whole interval of the difference in {rule.quality} from {guided} lies above -{rule.margin:g};"
        f" guards: {guards}.",
        f"Among the points that keep it: the largest gain, as a share of {guided}'s own, under the least of"
        f" {', '.join(rule.diversity)}.",
    ]
    if choice.left_out:
        which = ", ".join(choice.left_out)
        lines.append(f"Left out: {which}. Too few prompts have a value in {guided}, or in a point that keeps the rule.")
    return lines


def _table(choice: Choice, metrics: Sequence[str]) -> list[str]:
    rows = [["point", *metrics]]
    for each in choice.candidates:
        mark = "*" if each is choice.chosen else ""
        cells = [signed(each.differences[metric]) if metric in each.differences else "-" for metric in metrics]
        rows.append([each.system.name + mark, *cells])
    return [f"  {line}" for line in aligned(rows, ruled=())]
