"""``cfg-distill schema``: what an editor needs to complete and check recipes and studies."""

from __future__ import annotations

from collections.abc import Sequence

from cfg_distill.cli.arguments import Arguments, place, refuse_existing
from cfg_distill.errors import ConfigError


def run(argv: Sequence[str]) -> None:
    parser = Arguments(
        "schema", "Print the JSON schema of a kind of file, for editors: they complete keys and mark wrong ones."
    )
    parser.add_argument("kind", choices=("recipe", "study", "metrics"), help="of the file")
    parser.add_argument("--out", type=place, metavar="FILE", help="write it into a file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    given = parser.read(argv)
    if given.out is not None and given.out.is_dir():
        raise ConfigError(f"Option `--out`: expected a file, but `{given.out}` is a folder. Name a file in it.")
    if given.out is not None and (problems := refuse_existing(given.out, given.overwrite)):
        raise ConfigError(problems)
    from cfg_distill.study.schema import text_of_schema

    text = text_of_schema(given.kind)
    if given.out is None:
        print(text, end="")
        return
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text, encoding="utf-8")
    print(f"Wrote {given.out}.")
