"""``cfg-distill plan``: what a fit will hold and compute, before it runs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cfg_distill.cli.arguments import Arguments
from cfg_distill.errors import ConfigError
from cfg_distill.recipe.overrides import sorted_words
from cfg_distill.recipe.resolved import Recipe


def run(argv: Sequence[str]) -> int:
    about = (
        "Compute the memory, the work and the least time of a step of a recipe, and which strategy and micro-batch fit."
        " No weights are loaded. Any key of the recipe may be overridden, as for fit."
    )
    parser = Arguments("plan", about)
    parser.add_argument("--config", metavar="FILE", help="a recipe; several as for fit: later files win")
    parser.add_argument("--devices", type=int, metavar="N", help="devices; default: those of the recipe")
    parser.add_argument("--memory", type=float, metavar="GB", help="memory of a device; default: that of --gpu")
    parser.add_argument("--gpu", metavar="NAME", help="a kind of GPU (h100, a100, l4, ...); default: this machine")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes, FLOPs and seconds")
    own, words = _apart(argv)
    given = parser.read(own)
    _refuse_of_fit(words)
    sorted_out = sorted_words(words)  # a missing file is found before torch is imported
    recipe = Recipe.read(sorted_out.files, sorted_out.overrides)
    devices = recipe.devices if given.devices is None else given.devices
    with parser.naming_options():
        from cfg_distill.planning import device_of, fit_of, plan_of, problems_of_device, table
        from cfg_distill.recipe.quiet import quieten

        quieten()
        with fit_of(recipe, problems_of_device(given.gpu, given.memory, devices)) as fit:
            plan = plan_of(fit, device_of(given.gpu, given.memory, devices), devices)
    print(json.dumps(plan.as_json(), indent=1) if given.json else table(plan))
    return 0 if plan.fits else 1


def _refuse_of_fit(words: Sequence[str]) -> None:
    """Refuse the options of ``fit`` that are no keys of a recipe: here they would do nothing, or take the next word.

    Raises:
        ConfigError: those that are among the words.
    """
    found = dict.fromkeys(word.partition("=")[0] for word in words if word.startswith("--"))
    saying = [name for name in found if name in ("--quiet", "--verbose")]
    problems = [f"Option `{name}`: plan has none, and says nothing but its plan. Leave it out." for name in saying]
    shown = [name for name in found if name == "--print_config" or name.endswith(".help")]
    problems += [
        f"Option `{name}`: plan has none. Give it to `cfg-distill fit`, with the same recipe." for name in shown
    ]
    if problems:
        raise ConfigError(problems)


def _apart(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of this command, and those about the recipe: its files and dotted keys."""
    options = {"--devices": 1, "--memory": 1, "--gpu": 1, "--json": 0, "--help": 0, "-h": 0}
    own: list[str] = []
    others: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, _ = word.partition("=")
        taken = 0 if equals else options.get(name, 0)
        (own if name in options else others).extend([word, *words[:taken]])
        del words[:taken]
    return own, others
