"""Points of a front for finished models: what ``cfg-distill evaluate`` runs, and the files of a front."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.anneal import annealed
from cfg_distill.evaluation.headline import Headline
from cfg_distill.evaluation.system import System
from cfg_distill.files import expanded, write_text

if TYPE_CHECKING:
    from cfg_distill.evaluation.points import Point
    from cfg_distill.evaluation.requests import EvaluateRequest
    from cfg_distill.generators import Predictor
    from cfg_distill.metrics.base import SampleMetric


def evaluate_request(request: EvaluateRequest) -> str:
    """Evaluate each model at each temperature and guidance scale; return the table.

    Raises:
        ConfigError: all problems of the request at once; a model whose weights cannot be loaded, or predict NaN.
    """
    from cfg_distill.evaluation.progress import bar_over
    from cfg_distill.generators import device, open_generator

    if problems := request.problems():
        raise ConfigError(problems)
    for metric in request.plan.metrics.values():
        metric.to(device()).load()  # moved first: loading may embed a folder of sound, on the metric's device
    folder = None if request.out is None else expanded(request.out)
    if folder is not None and request.overwrite:
        # Those of an earlier evaluation would be read beside the new ones, or after a stop in place of them.
        (folder / "front.json").unlink(missing_ok=True)
        for name in ("systems", "samples"):
            shutil.rmtree(folder / name, ignore_errors=True)
    systems: list[System] = []
    predictor: Predictor | None = None
    with bar_over("evaluating", [_name(point, request.points) for point in request.points]) as begin:
        for number, point in enumerate(request.points):
            report = begin(number)
            before = request.points[number - 1] if number else None
            if before is None or (point.model, point.dial) != (before.model, before.dial):
                predictor = None  # the next model gets the memory of the last one
                generator = open_generator(point.model, point.dial, dtype=request.dtype).load().to(device())
                predictor = annealed(generator, request.anneal, request.plan.lengths[point.model])
                del generator
            assert predictor is not None
            systems.append(_system(request, number + 1, predictor, point, report))
    return write_front(folder, systems, _headline(request.plan.metrics))


def _system(
    request: EvaluateRequest, number: int, predictor: Predictor, point: Point, report: Callable[[int, int], None]
) -> System:
    """One system, its file, and some samples of it."""
    from cfg_distill.evaluation.measure import evaluate
    from cfg_distill.evaluation.written import Writer

    plan, folder = request.plan, None if request.out is None else expanded(request.out)
    model = point.model
    stem = f"{number:02} {_last(model)}"
    writer = None
    if folder is not None and request.written:
        kept = folder / "samples" / stem
        writer = Writer(
            predictor.parts[0], kept, request.written, request.written_samples, plan.renderers[model], request.audio
        )
    system = evaluate(
        predictor,
        plan.prompts,
        plan.sampling(model, point.temperature),
        request.guidance_of(point.guidance),
        plan.metrics,
        seeds=request.seeds,
        batch_size=request.batch_size,
        name=_name(point, request.points),
        kind="guidance" if point.guidance != 1 else "model",
        listen=writer,
        progress=report,
    )
    system.anneal = None if request.anneal is None else asdict(request.anneal)
    if folder is not None:
        system.save(folder / "systems" / f"{stem}.json")
    if writer is not None:
        writer.finish()
    return system


def _last(model: str) -> str:
    """The last name in the path of a model; of ``.`` and ``..`` that of the folder that they stand for."""
    name = Path(model).name
    return name if name not in ("", "..") else Path(model).resolve().name


def _short(models: Sequence[str]) -> dict[str, str]:
    """Folders by their own names, as long as these tell them apart."""
    last = {model: _last(model) if Path(model).is_dir() else model for model in models}
    return last if len(set(last.values())) == len(last) else {model: model for model in models}


def _name(point: Point, among: Sequence[Point]) -> str:
    """The name of a system: its model, its guidance and its dial, and the temperature where there are several."""
    parts = [_short([each.model for each in among])[point.model].rstrip("/")]
    if point.guidance != 1:
        parts.append(f"guidance {point.guidance:g}")
    if point.dial is not None:
        parts.append(f"dial {point.dial:g}")
    if len({each.temperature for each in among}) > 1:
        parts.append(f"T {point.temperature:g}")
    return ", ".join(parts)


def _headline(metrics: dict[str, SampleMetric]) -> Headline | None:
    """The first metric of each axis, and the second of diversity; None, and so no picture, when an axis has none."""
    on = {axis: [name for name, metric in metrics.items() if metric.axis == axis] for axis in ("quality", "diversity")}
    if not on["quality"] or not on["diversity"]:
        return None
    return Headline(on["quality"][0], *on["diversity"][:2])


def _trained(systems: Sequence[System]) -> str:
    """Words about the training seeds of the students, where there are several."""
    seeds = max((system.training_seeds for system in systems), key=len, default=[])
    return f", training seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""


def write_front(
    out: Path | None,
    systems: Sequence[System],
    headline: Headline | None,
    claims: Sequence[Mapping[str, str]] = (),
    title: str = "",
    more: Mapping[str, Any] | None = None,
    lines: str = "",
) -> str:
    """Write front.json, front.png (given a headline), collapse.png (given curves of collapse) and table.txt, unless ``out`` is
    None; return the table.

    Args:
        out: the folder.
        systems: all systems, in their order. Rows of a ladder are listed behind them.
        headline: the metrics of the picture; None for no picture.
        claims: judged.
        title: of the picture.
        more: further entries of front.json.
        lines: what they say, for table.txt.
    """
    from cfg_distill.evaluation.collapse import PICTURE, curves_of, has_curves
    from cfg_distill.evaluation.figure import collapse_figure, front_figure, save_figure
    from cfg_distill.evaluation.front import ROWS, hypervolumes
    from cfg_distill.evaluation.table import front_table, hypervolume_line, note_of_rows, notes_of

    rows = [each for each in systems if each.kind in ROWS]
    systems = [each for each in systems if each.kind not in ROWS]
    points = [system.point() for system in (*systems, *rows)]
    first = systems[0]
    note = (
        f"{len(first.prompts)} held-out prompts, {first.samples} samples of each, sampling seeds"
        f" {', '.join(map(str, first.seeds))}{_trained(systems)}; bars: 95 % bootstrap intervals over prompts and seeds"
    )
    volumes = hypervolumes(points, headline)
    table = f"{front_table(points)}\n\n{note.replace('bars', '±')}; *: the best mean of its column.\n"
    table += "".join(f"{hypervolume_line(volume)}\n" for volume in volumes)
    for claim in claims:
        table += f"\n{claim['verdict'].upper():9}  {claim['name']} {claim['claim']}\n           {claim['evidence']}\n"
    notes = notes_of(systems, (more or {}).get("protocol", {}).get("stage", "report"))
    notes += note_of_rows(rows, first.prompts)
    table += "".join(f"{line}\n" for line in ["", *notes] if notes) + lines
    if out is None:
        return table
    front = {"systems": points, "claims": list(claims), "choice": None, "hypervolume": volumes, "notes": notes}
    front |= dict(more or {})
    write_text(out / "front.json", json.dumps(front, indent=1) + "\n")
    if headline is not None:
        figure = front_figure(points, headline.quality, headline.diversity, headline.independent, title, note)
        save_figure(figure, out / "front.png")
    if has_curves(first.axes):
        save_figure(collapse_figure(curves_of(points), note.replace("bars", "bands")), out / PICTURE)
    write_text(out / "table.txt", table)
    return table
