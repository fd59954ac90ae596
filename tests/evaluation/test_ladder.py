"""The ladder: a metric is bought by what it pays, and holds where it orders the rungs; the command says so."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from scipy.stats import bootstrap

from cfg_distill.cli import main
from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.ladder import Ladder, Rung, samples_of
from cfg_distill.evaluation.ladder_table import ladder_table
from cfg_distill.evaluation.validating import LADDERS, ValidateRequest, domain_of, named_in
from cfg_distill.evaluation.verdicts import COPIES, rungs_as_systems, validate
from cfg_distill.metrics import DistinctN, Repetition, TextMetric

PROMPTS = [f"prompt {n}" for n in range(8)]


class Words(TextMetric):
    """Different words per text: a quality that a shuffled text buys."""

    axis = "quality"

    def score_group(self, texts: list[str]) -> float:
        return sum(len(set(text.split())) for text in texts) / len(texts)


class FirstLetters(TextMetric):
    """Different first letters in a group: a diversity."""

    axis = "diversity"

    def score_group(self, texts: list[str]) -> float:
        return float(len({text[:1] for text in texts}))


class Shouts(TextMetric):
    """A guard: the share of texts in capitals."""

    axis = "guard"
    higher_is_better = False

    def score_group(self, texts: list[str]) -> float:
        return sum(text.isupper() for text in texts) / len(texts)


def group(prompt: int, words: int) -> list[str]:
    """Two texts of about so many words, more of them in later prompts and in the second text."""
    return [" ".join(f"{letter}{n}" for n in range(words + prompt % 2 + place)) for place, letter in enumerate("ab")]


def rung(name: str, kind: str, groups: list[list[str]]) -> Rung:
    return Rung(name, kind, samples_of(PROMPTS, groups))  # type: ignore[arg-type]


class Climb(Ladder):
    """Real text of 9 words, guided of 7, base of 5; loops, shuffled and shouted text; copies and letter case."""

    def prompts(self) -> list[str]:
        return PROMPTS

    def rungs(self, prompts):
        groups = {words: [group(n, words) for n in range(len(PROMPTS))] for words in (9, 7, 5)}
        yield rung("real", "real", groups[9])
        yield rung("guided", "guided", groups[7])
        yield rung("base", "base", groups[5])
        yield rung("loop", "degenerate", [["a a a a a a a a"] * 2] * len(PROMPTS))
        yield rung("shuffled", "degenerate", [[" ".join(t.split()[::-1]) for t in g] for g in groups[7]])
        yield rung("shouted", "degenerate", [[t.upper() for t in g] for g in groups[7]])
        yield rung("different", "different", groups[9])
        yield rung("letter case", "same", [[g[0], g[0].upper()] for g in groups[9]])
        yield rung("spaces", "same", [[g[0], g[0] + " "] for g in groups[9]])


METRICS = {
    "words": Words(),
    "repetition": Repetition(n=1),
    "shouts": Shouts(),
    "letters": FirstLetters(),
    "distinct": DistinctN(1),
}


@pytest.fixture(scope="module")
def climbed():
    return validate(METRICS, Climb().rungs(PROMPTS))


def test_a_metric_of_quality_is_bought_by_what_it_pays_and_by_nothing_else(climbed):
    assert climbed.buyers("words") == ["shuffled", "shouted"]
    found = {(each.rung, each.above): each for each in climbed.verdicts if each.metric == "words"}
    assert {key for key in found if key[0] in ("guided", "base")} == {("guided", "real"), ("base", "guided")}
    assert {above for below, above in found if below in ("loop", "shuffled", "shouted")} == {"base"}
    assert found["guided", "real"].difference == (-2.0, -2.0, -2.0) and found["guided", "real"].outcome == "holds"
    assert found["loop", "base"].difference.mean == 1 - 6.0  # the base has 5, 6, 6 and 7 words


def test_an_interval_over_prompts_is_scipys(climbed):
    (verdict,) = [each for each in climbed.verdicts if (each.metric, each.rung) == ("words", "loop")]
    differences = [1 - (5 + n % 2 + 0.5) for n in range(8)]
    other = bootstrap((differences,), lambda x, axis: x.mean(axis), n_resamples=5000, method="percentile", rng=0)
    assert verdict.difference.low == pytest.approx(other.confidence_interval.low, abs=0.07)
    assert verdict.difference.high == pytest.approx(other.confidence_interval.high, abs=0.07)


def test_a_metric_of_diversity_is_counted_from_copies_in_units_of_different_samples(climbed):
    """Letter case doubles the first letters, as different samples do; a space at the end changes nothing."""
    assert climbed.buyers("letters") == ["letter case"]
    assert climbed.buyers("distinct") == ["letter case"]
    found = {each.rung: each.difference.mean for each in climbed.verdicts if each.metric == "letters"}
    assert found == pytest.approx({COPIES: -1.0, "letter case": 1 - climbed.share, "spaces": -climbed.share})


def test_copies_are_made_of_the_first_sample_and_its_tokens():
    rungs = {r.name: r for r in Climb().rungs(PROMPTS)}
    seen = []

    class Keeps(FirstLetters):
        def update(self, samples):
            seen.append(samples)
            super().update(samples)

    validate({"letters": Keeps()}, [rungs["different"]])
    different, copies = seen
    assert copies.outputs[:2] == [different.outputs[0]] * 2
    assert torch.equal(copies.rollout.mask_BGKT[:, 1], different.rollout.mask_BGKT[:, 0])


def test_a_guard_sees_what_is_worse_than_every_good_rung(climbed):
    assert climbed.seen == {"loop": ["words", "repetition"], "shuffled": [], "shouted": ["shouts"]}
    assert climbed.unseen == ["shuffled"] and not climbed.holds


def test_a_metric_without_a_value_is_unclear_and_an_empty_group_earns_nothing():
    class Nothing(Words):
        def score_group(self, texts):
            return math.nan

    rungs = {r.name: r for r in Climb().rungs(PROMPTS)}
    empty = rung("empty", "same", [["", ""]] * len(PROMPTS))
    found = validate(
        {"none": Nothing(), "distinct": DistinctN(1)}, [rungs["base"], rungs["loop"], rungs["different"], empty]
    )
    assert found.outcome("none") == "unclear" and found.buyers("none", "unclear") == ["loop"]
    assert found.outcome("distinct") == "holds"


def test_a_ladder_without_base_or_guided_compares_with_the_lowest_kind_it_has():
    found = validate({"words": Words()}, [r for r in Climb().rungs(PROMPTS) if r.kind in ("real", "degenerate")])
    assert {(each.rung, each.above) for each in found.verdicts} == {
        (n, "real") for n in ("loop", "shuffled", "shouted")
    }
    assert found.outcome("words") == "holds"


def test_rungs_of_other_prompts_or_of_one_name_are_refused():
    one, other = rung("real", "real", [["a", "b"]] * 8), Rung("base", "base", samples_of(["x"], [["a", "b"]]))
    with pytest.raises(ValueError, match="`base` has others"):
        validate({"words": Words()}, [one, other])
    with pytest.raises(ValueError, match="got two"):
        validate({"words": Words()}, [one, one])
    with pytest.raises(ValueError, match="a group of one size"):
        samples_of(["x", "y"], [["a"], ["b", "c"]])


def test_real_and_degenerate_rungs_are_systems_of_a_table():
    systems = rungs_as_systems(Climb().rungs(PROMPTS), METRICS, "my.Ladder")
    assert [(system.name, system.kind) for system in systems] == [
        ("real: real", "real"), ("degenerate: loop", "degenerate"),
        ("degenerate: shuffled", "degenerate"), ("degenerate: shouted", "degenerate"),
    ]  # fmt: skip
    real = systems[0]
    assert real.prompts == PROMPTS and real.samples == 2 and real.relative_cost == 0 and real.axes["shouts"] == "guard"
    assert real.values["words"] == [[9.5 + n % 2 for n in range(8)]]
    assert real.point()["diversity"]["letters"]["mean"] == 2.0


def test_the_table_marks_what_buys_and_what_is_seen(climbed):
    table = ladder_table(climbed)
    quality, diversity, guards, _, verdicts = table.split("\n\n")
    rows = {
        block.split()[0]: {line.split("  ")[0]: line for line in block.splitlines()}
        for block in (quality, diversity, guards)
    }
    assert [name for name, line in rows["quality"].items() if "!" in line] == ["shuffled", "shouted"]
    assert [name for name, line in rows["diversity"].items() if "!" in line] == ["letter case"]
    assert [name for name, line in rows["guard"].items() if "*" in line] == ["loop", "shouted"]
    assert "words     bought by shuffled, shouted\nletters   bought by letter case\n" in verdicts
    assert "Seen by no guard and no metric of quality: shuffled." in table


def test_guidance_above_the_real_is_told_as_saturation_and_does_not_hold():
    rungs = {r.name: r for r in Climb().rungs(PROMPTS)}
    better = rung("guided more", "guided", [group(n, 12) for n in range(len(PROMPTS))])
    found = validate({"words": Words()}, [rungs["real"], better, rungs["base"], rungs["loop"]])
    assert "words  saturated: guided more above real\n" in ladder_table(found)
    assert found.outcome("words") == "bought" and not found.holds


# The command


@pytest.fixture
def mine(folder: Path) -> Path:
    """A module with the ladder and metrics of this file, and a metrics file."""
    (folder / "my_ladder.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "m.yaml").write_text(
        "words: {class_path: my_ladder.Words}\nletters: {class_path: my_ladder.FirstLetters}\n"
    )
    return folder


def test_the_command_exits_with_1_when_a_metric_is_bought_and_with_0_when_all_hold(mine, capsys):
    assert main(["validate-metrics", "m.yaml", "--ladder", "my_ladder.Climb"]) == 1
    shown = capsys.readouterr()
    assert "bought by shuffled, shouted" in shown.out
    assert shown.err.splitlines()[:2] == ["scoring real", "scoring guided"]
    (mine / "good.yaml").write_text("repetition: {class_path: cfg_distill.metrics.Repetition}\n")
    (mine / "easy.py").write_text(
        "from my_ladder import Climb\n\n\nclass Easy(Climb):\n    def rungs(self, prompts):\n"
        "        return [r for r in super().rungs(prompts) if r.name not in ('shuffled', 'shouted', 'letter case')]\n"
    )
    assert main(["validate-metrics", "m.yaml", "--ladder", "easy.Easy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ladder"] == "easy.Easy" and found["holds"] is True
    assert {row["name"]: row["outcomes"] for row in found["rows"]}["loop"] == {"words": "holds"}


def test_bad_input_is_told_together_with_exit_code_2(mine, capsys):
    metrics = "words: {class_path: my_ladder.Word}\nd: {class_path: my_ladder.DistinctN, init_args: {n: 0}}\n"
    (mine / "bad.yaml").write_text(metrics)
    assert main(["validate-metrics", "bad.yaml", "--ladder", "txt", "--share", "2"]) == 2
    told = capsys.readouterr().err
    assert "4 problems" in told, told
    assert all(
        part in told
        for part in ("`my_ladder` has no `Word`", "`d.init_args.n`", "one of tunes, text, sound", "`--share`")
    )
    assert main(["validate-metrics", "missing.yaml", "--ladder", "my_ladder.Climb"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["validate-metrics", "m.yaml", "--ladder", "my_ladder.Words"]) == 2
    assert "expected a Ladder" in capsys.readouterr().err


def test_a_metric_whose_weights_are_not_here_is_named_and_the_others_run(mine, capsys):
    (mine / "more.py").write_text(
        "from my_ladder import ConfigError, Words\n\n\nclass Away(Words):\n    def load(self):\n"
        "        raise ConfigError('no weights here')\n"
    )
    (mine / "m.yaml").write_text("away: {class_path: more.Away}\nletters: {class_path: my_ladder.FirstLetters}\n")
    assert main(["validate-metrics", "m.yaml", "--ladder", "my_ladder.Climb"]) == 1
    assert "not run: no weights here" in capsys.readouterr().out
    (mine / "m.yaml").write_text("away: {class_path: more.Away}\n")
    assert main(["validate-metrics", "m.yaml", "--ladder", "my_ladder.Climb"]) == 2
    assert "cannot be run here" in capsys.readouterr().err


def test_rewards_and_metrics_of_a_recipe_are_found():
    found = named_in("recipes/tunes/diversity.yaml")
    assert list(found.rewards) == ["diversity (reward)"]
    assert found.metrics and domain_of(found.specs) == "tunes"
    assert domain_of(named_in("recipes/musicgen/metrics.yaml").specs) == "sound"
    assert domain_of(named_in("recipes/smollm2/metrics.yaml").specs) == "text"
    assert "information" in named_in("recipes/smollm2/study.yaml").metrics


def test_a_reward_is_judged_by_its_kind(mine):
    (mine / "my_rewards.py").write_text(
        "import torch\nfrom cfg_distill.rewards import PairwiseReward\n\n\nclass Apart(PairwiseReward):\n"
        "    def pairs(self, samples):\n"
        "        return torch.tensor([[[float(a != b) for b in g] for a in g] for g in samples.groups()])\n"
    )
    (mine / "fit.yaml").write_text(
        "model:\n  losses:\n    diversity:\n      class_path: cfg_distill.losses.PolicyGradient\n      init_args:\n"
        "        reward: {class_path: my_rewards.Apart, init_args: {baseline: running_mean}}\n"
    )
    request = ValidateRequest("fit.yaml", "my_ladder.Climb")
    assert request.problems() == []
    found = request.plan.run()
    assert found.axes == {"diversity (reward)": "diversity"}
    assert found.buyers("diversity (reward)") == ["letter case", "spaces"]


def test_a_reward_may_be_a_plain_class_path(mine):
    losses = (
        "model:\n  losses:\n    one: {class_path: cfg_distill.losses.PolicyGradient, init_args: {reward: my.Words}}\n"
    )
    more = (
        "    two: {class_path: my.Loss, init_args: {reward: {class_path: my.Mix, init_args: {rewards: {a: my.A}}}}}\n"
    )
    (mine / "fit.yaml").write_text(losses + more)
    assert named_in("fit.yaml").rewards == {
        "one (reward)": {"class_path": "my.Words"},
        "two a": {"class_path": "my.A"},
    }


def test_a_model_folder_names_its_metrics_and_ladder_and_a_foreign_one_needs_trust(mine, tiny_model):
    folder = mine / "model"
    folder.mkdir()
    for file in Path(tiny_model).iterdir():
        (folder / file.name).symlink_to(file)
    metrics = {"words": {"class_path": "my_ladder.Words"}}
    (folder / "cfg_distill.json").write_text(json.dumps({"metrics": metrics, "ladder": "my_ladder.Climb"}))
    (problem,) = ValidateRequest("model").problems()
    assert problem.key == "file" and "If you trust the module" in str(problem)
    request = ValidateRequest("model", trust=["my_ladder"])
    assert request.problems() == [] and request.plan.ladder_name == "my_ladder.Climb"
    assert request.plan.run().buyers("words") == ["shuffled", "shouted"]
    (folder / "cfg_distill.json").write_text(json.dumps({"ladder": 3}))
    with pytest.raises(ConfigError, match="expected a class path as `ladder`"):
        named_in("model")


def test_every_shipped_ladder_is_a_class():
    from cfg_distill.recipe.classes import find_class

    assert all(issubclass(find_class(name, (Ladder,), "a Ladder"), Ladder) for name in LADDERS.values())
