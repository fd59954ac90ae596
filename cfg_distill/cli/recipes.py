"""``cfg-distill recipes``: list the shipped recipes, or copy one to edit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfg_distill.cli.arguments import Arguments, place, refuse_existing
from cfg_distill.errors import ConfigError, nearest
from cfg_distill.folders import RECIPES

_COST = "# Cost: "


def shipped() -> dict[str, Path]:
    """Name (``tunes/quality``) to file of every shipped recipe."""
    return {str(path.relative_to(RECIPES).with_suffix("")): path for path in sorted(RECIPES.rglob("*.yaml"))}


def description(path: Path) -> str:
    """The first comment line of a recipe."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ").rstrip(": ") for line in lines if line.startswith("#")), "")


def cost(path: Path) -> str:
    """Time and memory, from the comment of a recipe in which they were measured or computed; empty where they were not."""
    lines = path.read_text(encoding="utf-8").splitlines()
    told = next((line for line in lines if line.startswith(_COST)), "")
    return told.removeprefix(_COST).partition("(")[0].strip()


def run(argv: Sequence[str]) -> None:
    parser = Arguments("recipes", "List the recipes with time and memory where these are known, or copy one to edit.")
    parser.add_argument("name", nargs="?", help="the recipe to copy, e.g. tunes/quality; without it, all are listed")
    parser.add_argument(
        "--out", type=place, help="where the copy goes; default: the recipe's file name, in this folder"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    given = parser.read(argv)
    recipes = shipped()
    if given.name is None:
        parser.refuse_idle(argv, ["--out", "--overwrite"], "name")
        costs = {name: cost(path) for name, path in recipes.items()}
        width, wide = (max(map(len, column), default=0) for column in (recipes, costs.values()))
        for name, path in recipes.items():
            print(f"recipes/{name + '.yaml':{width + 5}}  {costs[name]:{wide}}  {description(path)}")
        return
    name = given.name.removeprefix("recipes/").removesuffix(".yaml")
    if name not in recipes:
        raise ConfigError(
            f"Recipe `{given.name}`: no such recipe.{nearest(name, recipes)} `cfg-distill recipes` lists all."
        )
    out = given.out or Path(recipes[name].name)
    if out.is_dir():
        out = out / recipes[name].name
    problems = refuse_existing(out, given.overwrite)
    if problems:
        raise ConfigError(problems)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(recipes[name].read_text(encoding="utf-8"), encoding="utf-8")
    print(f"Wrote {out}. Edit it, then run it.")
