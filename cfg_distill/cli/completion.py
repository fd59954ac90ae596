"""``cfg-distill completion``: a script for the shell that completes commands, options, and names of recipes."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence

from cfg_distill.cli.arguments import Arguments

_SCRIPTS = {
    "bash": """\
_cfg_distill() {
  local IFS=$'\\n'
  COMPREPLY=($(cfg-distill completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -o bashdefault -F _cfg_distill cfg-distill
""",
    "zsh": """\
#compdef cfg-distill
_cfg_distill() {
  local -a found
  found=("${(@f)$(cfg-distill completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  compadd -- $found
  _files
}
compdef _cfg_distill cfg-distill
""",
    "fish": """\
complete -c cfg-distill -a '(cfg-distill completion words -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
""",
}
_HOW = {
    "bash": 'eval "$(cfg-distill completion bash)"  in ~/.bashrc',
    "zsh": 'eval "$(cfg-distill completion zsh)"  in ~/.zshrc, behind compinit',
    "fish": "cfg-distill completion fish > ~/.config/fish/completions/cfg-distill.fish",
}


def run(argv: Sequence[str]) -> None:
    if argv[:2] == ["words", "--"]:  # what the scripts ask
        print("\n".join(candidates(argv[2:])))
        return
    how = "; ".join(f"{shell}: {line}" for shell, line in _HOW.items())
    parser = Arguments("completion", f"Print a script for the shell that completes commands and options. {how}.")
    parser.add_argument("shell", choices=_SCRIPTS, help="the shell")
    print(_SCRIPTS[parser.read(argv).shell], end="")


def candidates(words: Sequence[str]) -> list[str]:
    """What may stand in the place of the last word. Where this is nothing, the shell completes files.

    Args:
        words: behind ``cfg-distill``; the last one is being typed, and may be empty.

    Example:
        >>> candidates(["val"]), candidates(["merge", "--kn"])
        (['validate', 'validate-metrics'], ['--knob'])
    """
    from cfg_distill.cli import COMMANDS
    from cfg_distill.cli.recipes import shipped

    typed = words[-1] if words else ""
    if len(words) < 2:
        known = [*COMMANDS, "--help", "--version"]
    elif typed.startswith("-"):
        known = options(words[0])
    elif words[0] == "recipes":
        known = list(shipped())
    elif words[-2] == "--config" or (words[0] == "study" and len(words) == 2):
        known = [f"recipes/{name}.yaml" for name in shipped()]
    else:
        known = []
    return [each for each in known if each.startswith(typed)]


def options(command: str) -> list[str]:
    """The options of a command, as its help lists them."""
    from cfg_distill.cli import COMMANDS, main

    said = io.StringIO()
    if command in COMMANDS:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([command, "--help"])
    found = re.findall(r"^  (?:-h, )?(--[a-z][\w.-]*)", said.getvalue(), re.MULTILINE)
    return list(dict.fromkeys(found))
