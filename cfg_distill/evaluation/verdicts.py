"""What a climbed ladder says of metrics: which rungs they order rightly, and which buy them.

Shapes: B prompts, G samples per prompt, P prompts of a metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from cfg_distill.evaluation.front import Interval, bootstrap_interval
from cfg_distill.evaluation.intervals import LEAST_PROMPTS
from cfg_distill.evaluation.ladder import Rung, RungKind
from cfg_distill.evaluation.system import System
from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples

if TYPE_CHECKING:
    from cfg_distill.metrics.base import SampleMetric

Outcome = Literal["holds", "unclear", "bought"]
SHARE = 0.2
"""The share of the diversity of different samples that no group of rewritings of one sample may reach."""
COPIES = "copies"
"""The rung that :func:`validate` adds: the first sample of each group of ``different``, G times."""
_ORDER: tuple[RungKind, ...] = ("real", "guided", "base")
_ON_DIVERSITY: tuple[RungKind, ...] = ("same", "different")


@dataclass(frozen=True)
class Verdict:
    """Whether a metric orders one rung rightly.

    Attributes:
        metric: its name.
        rung: the rung that must lie lower.
        above: the rung that must lie above it.
        difference: of the lower rung minus its bound, in the metric's own unit, mean and 95 % interval over prompts; None
            where the metric has no value on both rungs for any prompt.
        outcome: ``holds`` where the whole interval lies below 0, and as many prompts have a value as an interval needs
            (:data:`cfg_distill.evaluation.intervals.LEAST_PROMPTS`); ``bought`` where the mean is not below 0; else
            ``unclear``: more prompts would decide.
        prompts: the number of prompts on which the metric has a value on both rungs.
    """

    metric: str
    rung: str
    above: str
    difference: Interval | None
    outcome: Outcome
    prompts: int


@dataclass(frozen=True)
class Row:
    """A rung and the values of the metrics that judge it: mean and 95 % interval over prompts.

    The value of a metric that does not apply is None.
    """

    name: str
    kind: RungKind
    values: dict[str, Interval | None]


@dataclass
class Validation:
    """A climbed ladder.

    Attributes:
        prompts: number of prompts.
        samples: samples per prompt.
        share: see :data:`SHARE`.
        axes: metric -> axis.
        rows: the rungs in the ladder's order.
        verdicts: of the metrics of quality and diversity.
        seen: degenerate rung -> the guards and metrics of quality that show it.
        not_run: metric -> why it could not be run here.
    """

    prompts: int
    samples: int
    share: float
    axes: dict[str, str]
    rows: list[Row]
    verdicts: list[Verdict]
    seen: dict[str, list[str]]
    not_run: dict[str, str] = field(default_factory=dict)

    def buyers(self, metric: str, outcome: Outcome = "bought") -> list[str]:
        """The rungs that buy a metric (or of which it is unclear whether they do)."""
        return list(dict.fromkeys(v.rung for v in self.verdicts if v.metric == metric and v.outcome == outcome))

    def outcome(self, metric: str) -> Outcome:
        """The worst verdict of a metric of quality or diversity; ``unclear`` where the ladder says nothing about it."""
        found = [verdict.outcome for verdict in self.verdicts if verdict.metric == metric]
        return max(found, key=get_args(Outcome).index, default="unclear")

    @property
    def unseen(self) -> list[str]:
        """Degenerate rungs that no guard and no metric of quality shows."""
        return [rung for rung, metrics in self.seen.items() if not metrics]

    @property
    def holds(self) -> bool:
        """Whether every metric of quality and diversity holds, and every degenerate rung is seen."""
        sticks = [metric for metric, axis in self.axes.items() if axis != "guard"]
        return all(self.outcome(metric) == "holds" for metric in sticks) and not self.unseen

    def as_json(self) -> dict[str, Any]:
        """Plain values: the entry ``ladder`` of a report. Intervals are objects with ``mean``, ``low`` and ``high``."""
        rows = [
            {
                "name": row.name,
                "kind": row.kind,
                "values": {metric: value and value._asdict() for metric, value in row.values.items()},
                "outcomes": {each.metric: each.outcome for each in self.verdicts if each.rung == row.name},
                "seen": self.seen.get(row.name),
            }
            for row in self.rows
        ]
        verdicts = [
            vars(each) | {"difference": each.difference and each.difference._asdict()} for each in self.verdicts
        ]
        return vars(self) | {"holds": self.holds, "rows": rows, "verdicts": verdicts}


def validate(
    metrics: Mapping[str, SampleMetric],
    rungs: Iterable[Rung],
    share: float = SHARE,
    progress: Callable[[str], None] | None = None,
) -> Validation:
    r"""Score every rung by every metric, and say which metrics are bought.

    All differences are taken prompt by prompt, and get a 95 % bootstrap interval over prompts. A metric of quality q must put
    each rung below each rung of the next higher kind that the ladder has; a degenerate rung must lie below ``base`` (or the
    lowest of ``guided`` and ``real`` that there is). A metric of diversity d has its own zero, the value of copies of one
    sample, and its own unit, the value of different samples. A rung of kind ``same`` must keep below a share s of the unit:

    .. math:: d_\text{same} - d_\text{copies} - s \, (d_\text{different} - d_\text{copies}) < 0

    A guard sees a degenerate rung when the rung is worse than every rung of the kinds real, guided and base. Rungs of the kinds
    same and different are scored by the metrics of diversity alone, and all other rungs by all other metrics.

    Args:
        metrics: name -> metric, loaded. Their states are reset.
        rungs: of a ladder, all with the same prompts.
        share: s.
        progress: called with the name of each rung before it is scored.

    Raises:
        ValueError: two rungs of one name and kind, or of different prompts.
    """
    values: dict[tuple[str, RungKind], dict[str, np.ndarray]] = {}
    prompts: list[str] = []
    samples = 0
    for rung in _with_copies(rungs):
        if prompts and rung.samples.prompts != prompts:
            raise ValueError(f"Expected rungs of the same prompts, but `{rung.name}` has others.")
        if (rung.name, rung.kind) in values:
            raise ValueError(f"Expected one rung of kind {rung.kind} named `{rung.name}`, but got two.")
        prompts, samples = rung.samples.prompts, rung.samples.group
        if progress is not None:
            progress(rung.name)
        on_diversity = rung.kind in _ON_DIVERSITY
        asked = {name: metric for name, metric in metrics.items() if (metric.axis == "diversity") == on_diversity}
        values[rung.name, rung.kind] = scores(asked, rung.samples)
    axes = {name: metric.axis for name, metric in metrics.items()}
    verdicts: list[Verdict] = []
    for name, axis in axes.items():
        of_P = {key: scored[name] for key, scored in values.items() if name in scored}
        verdicts += _of_quality(name, of_P) if axis == "quality" else []
        verdicts += _of_diversity(name, of_P, share) if axis == "diversity" else []
    rows = [Row(*key, {name: _interval(of_P) for name, of_P in scored.items()}) for key, scored in values.items()]
    seen = {name: _seeing(name, metrics, values, verdicts) for name, kind in values if kind == "degenerate"}
    return Validation(len(prompts), samples, share, dict(axes), rows, verdicts, seen)


def scores(metrics: Mapping[str, SampleMetric], samples: Samples) -> dict[str, np.ndarray]:
    """The values of each metric for each prompt, ``[P]``; NaN where it does not apply."""
    found = {}
    for name, metric in metrics.items():
        metric.reset()
        metric.update(samples)
        found[name] = metric.per_prompt().double().cpu().numpy()
    return found


def _with_copies(rungs: Iterable[Rung]) -> Iterable[Rung]:
    copied = False
    for rung in rungs:
        yield rung
        if rung.kind == "different" and not copied:
            copied = True
            yield Rung(COPIES, "same", _copies(rung.samples))


def _copies(samples: Samples) -> Samples:
    """The first sample of each group in place of all of its group."""
    drawn = samples.rollout
    cells = (drawn.tokens_BGKT, drawn.mask_BGKT, drawn.log_probs_BGKT)
    tokens_BGKT, mask_BGKT, log_probs_BGKT = (each[:, :1].expand_as(each).contiguous() for each in cells)
    outputs = [output for group in samples.groups() for output in [group[0]] * samples.group]
    return replace(samples, outputs=outputs, rollout=Rollout(tokens_BGKT, mask_BGKT, log_probs_BGKT))


_Values = Mapping[tuple[str, RungKind], np.ndarray]


def _of(values: _Values, *kinds: RungKind) -> list[str]:
    return [name for name, kind in values if kind in kinds]


def _of_quality(metric: str, values: _Values) -> list[Verdict]:
    """Each rung against each rung of the next higher kind that there is; all degenerate kinds are one kind."""
    present = [kind for kind in (*_ORDER, "degenerate") if _of(values, kind)]
    return [
        _verdict(metric, low, high, values[low, below] - values[high, above])
        for above, below in pairwise(present)
        for high, low in product(_of(values, above), _of(values, below))
    ]


def _of_diversity(metric: str, values: _Values, share: float) -> list[Verdict]:
    if not _of(values, "different"):
        return []
    copies_P = values[COPIES, "same"]
    found = []
    for different in _of(values, "different"):
        unit_P = values[different, "different"] - copies_P
        found.append(_verdict(metric, COPIES, different, -unit_P))
        for same in _of(values, "same"):
            if same != COPIES:
                # A group without a value (of empty samples, for one) earns nothing.
                earned_P = np.nan_to_num(values[same, "same"] - copies_P) if np.isfinite(unit_P).any() else unit_P
                found.append(_verdict(metric, same, different, earned_P - share * unit_P))
    return found


def _verdict(metric: str, rung: str, above: str, difference_P: np.ndarray) -> Verdict:
    interval, prompts = _interval(difference_P), _known(difference_P)
    outcome: Outcome = "unclear"
    if interval is not None and interval.mean >= 0:
        outcome = "bought"
    elif interval is not None and interval.high < 0 and prompts >= LEAST_PROMPTS:
        outcome = "holds"
    return Verdict(metric, rung, above, interval, outcome, prompts)


def _known(values_P: np.ndarray) -> int:
    """The number of prompts with a value."""
    return int(np.isfinite(values_P).sum())


def _interval(values_P: np.ndarray) -> Interval | None:
    return bootstrap_interval(values_P) if _known(values_P) else None


def _seeing(
    rung: str,
    metrics: Mapping[str, SampleMetric],
    values: Mapping[tuple[str, RungKind], Mapping[str, np.ndarray]],
    verdicts: Sequence[Verdict],
) -> list[str]:
    """The metrics of quality that put a degenerate rung in its place, and the guards that see it."""
    held = [name for name, metric in metrics.items() if metric.axis == "quality"]
    found = [name for name in held if {v.outcome for v in verdicts if v.metric == name and v.rung == rung} == {"holds"}]
    references = [key for key in values if key[1] in _ORDER]
    for name, metric in metrics.items():
        if metric.axis == "guard" and references:
            apart = [values[rung, "degenerate"][name] - values[key][name] for key in references]
            known = [bootstrap_interval(apart_P) for apart_P in apart if _known(apart_P) >= LEAST_PROMPTS]
            rises = bool(known) and all(interval.low > 0 for interval in known)
            falls = bool(known) and all(interval.high < 0 for interval in known)
            if (rises and metric.higher_is_better is not True) or (falls and metric.higher_is_better is not False):
                found.append(name)
    return found


def rungs_as_systems(rungs: Iterable[Rung], metrics: Mapping[str, SampleMetric], model: str = "") -> list[System]:
    """The real and the degenerate rungs as systems of the kinds ``real`` and ``degenerate``, for the table of a study.

    They were sampled from no model: their temperature and guidance are 1, their cost 0, and their one seed 0. Their prompts are
    the prompts of the ladder. The kind stands before the name: ``real: written``, which no system of a study can be called.

    Args:
        rungs: of a ladder; other kinds are left out.
        metrics: name -> metric, loaded. Their states are reset.
        model: where the samples come from, for front.json: the class path of the ladder.
    """
    systems = []
    for rung in rungs:
        if rung.kind not in ("real", "degenerate"):
            continue
        kind: Any = rung.kind
        values = {name: [value_P.tolist()] for name, value_P in scores(metrics, rung.samples).items()}
        axes = {name: metric.axis for name, metric in metrics.items()}
        systems.append(
            System(
                name=f"{kind}: {rung.name}", kind=kind, model=model, temperature=1.0, guidance=1.0, seeds=[0],
                relative_cost=0.0,
                samples=rung.samples.group, prompts=list(rung.samples.prompts), axes=dict(axes), values=values,
            )
        )  # fmt: skip
    return systems
