"""``cfg-distill demo``: a page to play with. Gradio brings the form; pictures and players are those of report.html.

Nothing is asked of a network: fonts are the system's, and analytics are off.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.report.page import environment
from cfg_distill.report.playground import Playground
from cfg_distill.study.processes import sigterm_as_interrupt

PORT = 7860
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


@dataclass(frozen=True)
class DemoRequest:
    """A page to play with.

    Args:
        study: the folder of a finished study, or its file.
        against: the guided system to compare with; None for the one that was distilled.
        samples: samples per prompt and model.
        host: the address to serve at; others on the network can reach the page at ``0.0.0.0``.
        port: of the page; 0 for any that is free.
        trust: modules, beside this package, that a model's folder may name for its renderer.
    """

    study: Path
    against: str | None = None
    samples: int = 2
    host: str = "127.0.0.1"
    port: int = PORT
    trust: Sequence[str] = ()


class Server:
    """A page that is being served.

    Args:
        request: what to serve.

    Attributes:
        url: where.

    Raises:
        ConfigError: everything that is wrong with the request, before a model is loaded.
    """

    def __init__(self, request: DemoRequest) -> None:
        problems = _problems_of_gradio() + _problems_of_port(request.host, request.port)
        try:
            playground = Playground(request.study, request.against, request.samples, request.trust)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)
        playground.load()
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
        gradio: Any = importlib.import_module("gradio")
        self._playground, pieces = playground, Pieces(playground)
        self._blocks = _blocks(gradio, pieces)
        _without_proxy(request.host)
        try:
            _, url, _ = self._blocks.launch(
                server_name=request.host,
                server_port=request.port or _free_port(request.host),
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                head=pieces.head(),
                theme=gradio.themes.Base(font=_FONTS, font_mono=_MONO),
                footer_links=[],
                ssr_mode=False,
                mcp_server=False,
            )
        except (OSError, importlib.import_module("httpx").HTTPError) as error:
            self.close()
            text = f"expected an address to serve at, but {request.host} and port {request.port} do not do: {error}"
            raise ConfigError(Problem("port", f"{text.rstrip('.')}. Name another port.")) from error
        self.url = str(url)

    def wait(self) -> None:
        """Serve until Ctrl-C, or until asked to end."""
        with contextlib.suppress(KeyboardInterrupt), sigterm_as_interrupt():
            threading.Event().wait()
        self.close()

    def close(self) -> None:
        """Stop serving, and remove what was merged."""
        self._blocks.close(verbose=False)
        self._playground.close()


def _without_proxy(host: str) -> None:
    """The page asks its own address once, and no proxy for it."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name, ""), host, "127.0.0.1", "localhost"]))


def serve(request: DemoRequest) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ConfigError: everything that is wrong with the request.
    """
    server = Server(request)
    print(f"Open {server.url} in a browser. Ctrl-C ends it.", flush=True)
    server.wait()


def _problems_of_gradio() -> list[Problem]:
    if importlib.util.find_spec("gradio") is not None:
        return []
    return [Problem("", 'Expected the demo extra, but Gradio is not installed. Install it: pip install ".[demo]"')]


def _problems_of_port(host: str, port: int) -> list[Problem]:
    if not 0 <= port < 2**16:
        return [Problem("port", f"expected a number from 0 to 65535, but got {port}.")]
    try:
        with socket.socket() as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind((host, port))
    except OSError as error:
        free = "Name another one, or 0 for any that is free"
        if isinstance(error, socket.gaierror) or "assign" in str(error):
            return [Problem("host", f"expected an address of this machine, but got `{host}`: {error.strerror}.")]
        return [Problem("port", f"expected a free port, but {port} cannot be used: {error.strerror}. {free}.")]
    return []


def _free_port(host: str) -> int:
    with socket.socket() as attempt:
        attempt.bind((host, 0))
        return int(attempt.getsockname()[1])


class Pieces:
    """The parts of the page that are ours, as HTML: they need no Gradio.

    Args:
        playground: the models.
    """

    def __init__(self, playground: Playground) -> None:
        self.playground = playground
        self.templates = environment()

    def head(self) -> str:
        """Styles and players."""
        return self._render("head")

    def intro(self) -> str:
        """What the page is about."""
        name = self.playground.finished.folder.resolve().name
        return self._render("intro", name=name, guided=self.playground.guided, knob=self.playground.line is not None)

    def hint(self) -> str:
        """In the place of samples, until there are some."""
        return self._render(
            "samples", problems=[], drawn=[], remarks=["Press Draw. Both get the same prompt and seed."]
        )

    def front(self, setting: float | str) -> str:
        """The front, with the setting marked; nothing where the study has no picture."""
        context = self.playground.front.context(setting)
        measured = self.playground.dial_of(setting) if self.playground.dial else None
        name = self.playground.name_of(setting)
        return self._render("front", **context, setting=name, dial=measured) if context["panels"] else ""

    def samples(self, prompt: str, setting: float | str, seed: float | None, dial: float | None = None) -> str:
        """Samples of the setting and of the guided base, side by side; what is wrong, where something is."""
        try:
            drawn, remarks = self.playground.draw(prompt.strip(), setting, int(seed or 0), dial)
        except ConfigError as error:
            return self._render("samples", problems=[str(problem) for problem in error.problems], drawn=[], remarks=[])
        except OSError as error:  # a full disk
            return self._render("samples", problems=[f"The system refuses: {error}."], drawn=[], remarks=[])
        return self._render("samples", problems=[], drawn=drawn, remarks=remarks, prompt=prompt.strip())

    def _render(self, template: str, /, **context: Any) -> str:
        return self.templates.get_template(f"demo_{template}.html.j2").render(context)


def _blocks(gradio: Any, pieces: Pieces) -> Any:
    """The form, and what happens when somebody moves the knob or draws."""
    playground, private = pieces.playground, {"api_visibility": "private"}
    title = f"Demo {playground.finished.folder.resolve().name}"
    with gradio.Blocks(title=title, analytics_enabled=False) as blocks:
        gradio.HTML(pieces.intro(), apply_default_css=False)
        with gradio.Row():
            with gradio.Column(scale=5, min_width=280):
                prompt = gradio.Textbox(value=playground.prompts[0], label="Prompt", max_lines=6, elem_id="prompt")
                others = [[each] for each in playground.prompts[1:6]]
                gradio.Examples(others, prompt, label="Prompts of the study", preload=False)
            with gradio.Column(scale=4, min_width=280):
                setting = _setting(gradio, playground)
                dials = _dial(gradio, playground)
                seed = gradio.Number(value=0, precision=0, minimum=0, label="Seed", elem_id="seed")
                with gradio.Row():
                    draw = gradio.Button("Draw", variant="primary", elem_id="draw")
                    again = gradio.Button("Next seed", elem_id="again")
        samples = gradio.HTML(pieces.hint(), elem_id="samples", apply_default_css=False)
        front = gradio.HTML(pieces.front(playground.start), elem_id="front", apply_default_css=False)
        given = [prompt, setting, seed, *dials]
        private_turn = private | {"concurrency_id": "draw", "concurrency_limit": 1}  # of both buttons together
        gradio.on([draw.click, prompt.submit], pieces.samples, given, samples, **private_turn)
        drawn = again.click(lambda now: (now or 0) + 1, seed, seed, **private)
        drawn.then(pieces.samples, given, samples, **private_turn)
        setting.change(pieces.front, setting, front, show_progress="hidden", queue=False, **private)
    return blocks


def _setting(gradio: Any, playground: Playground) -> Any:
    """The knob; in a study without a line of merges, a choice of models."""
    if playground.line is None:
        return gradio.Dropdown(playground.students, value=playground.start, label="Model", elem_id="setting")
    first, last = playground.ends
    info = f"0 is {first}, 1 is {last}"
    low, high = playground.front.reach
    return gradio.Slider(
        low, high, playground.start, step=0.025, label="Knob", info=info, elem_id="setting", buttons=[]
    )


def _dial(gradio: Any, playground: Playground) -> list[Any]:
    """The dial for guidance, where a student was trained with one."""
    if not playground.dial:
        return []
    start = min(playground.dial_of(playground.start), 1.0)
    return [gradio.Slider(0, 1, start, step=0.05, label="Dial", info=playground.dial, elem_id="dial", buttons=[])]
