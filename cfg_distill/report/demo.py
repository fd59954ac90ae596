"""``cfg-distill demo``: a page to play with. Gradio brings the form; pictures and players are those of report.html.

Nothing is asked of a network: fonts are the system's, and analytics are off.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.report.page import environment
from cfg_distill.report.playground import Playground

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
        self._page = _Page(playground)
        port = request.port or _free_port(request.host)
        self.url = self._page.serve(request.host, port)

    def wait(self) -> None:
        """Serve until Ctrl-C."""
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            self.close()

    def close(self) -> None:
        """Stop serving."""
        self._page.blocks.close(verbose=False)


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


class _Page:
    """The form, its pictures, and what happens when somebody moves the knob or draws."""

    def __init__(self, playground: Playground) -> None:
        self.gradio: Any = importlib.import_module("gradio")
        self.playground = playground
        self.templates = environment()
        self.blocks = self._blocks()

    def serve(self, host: str, port: int) -> str:
        """Serve the page, and return its address."""
        gradio = self.gradio
        head = self.templates.get_template("demo_head.html.j2").render()
        _, url, _ = self.blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            head=head,
            theme=gradio.themes.Base(font=_FONTS, font_mono=_MONO),
            footer_links=[],
            ssr_mode=False,
            mcp_server=False,
        )
        return str(url)

    def _blocks(self) -> Any:
        gradio, playground = self.gradio, self.playground
        name = playground.finished.folder.resolve().name
        with gradio.Blocks(title=f"Demo {name}", analytics_enabled=False) as blocks:
            gradio.HTML(self._intro(name))
            with gradio.Row(elem_id="form"):
                with gradio.Column(scale=5, min_width=280):
                    prompt = gradio.Textbox(value=playground.prompts[0], label="Prompt", lines=2, elem_id="prompt")
                    gradio.Examples([[each] for each in playground.prompts[1:6]], prompt, label="Prompts of the study")
                with gradio.Column(scale=4, min_width=280):
                    setting = self._setting()
                    seed = gradio.Number(value=0, precision=0, minimum=0, label="Seed", elem_id="seed")
                    with gradio.Row():
                        draw = gradio.Button("Draw", variant="primary", elem_id="draw")
                        again = gradio.Button("Next seed", elem_id="again")
            samples = gradio.HTML(self._hint(), elem_id="samples")
            front = gradio.HTML(self.front(playground.start), elem_id="front")
            given = [prompt, setting, seed]
            gradio.on([draw.click, prompt.submit], self.samples, given, samples, api_name="draw")
            again.click(lambda now: (now or 0) + 1, seed, seed, api_name=False).then(
                self.samples, given, samples, api_name=False
            )
            setting.change(self.front, setting, front, show_progress="hidden", queue=False, api_name="front")
        return blocks

    def _setting(self) -> Any:
        gradio, playground = self.gradio, self.playground
        if playground.line is None:
            return gradio.Dropdown(playground.students, value=playground.start, label="Model", elem_id="setting")
        first, last = playground.ends
        info = f"0 is {first}, 1 is {last}"
        return gradio.Slider(
            0, 1, value=playground.start, step=0.05, label="Knob", info=info, elem_id="setting", buttons=[]
        )

    def _intro(self, name: str) -> str:
        return self.templates.get_template("demo_intro.html.j2").render(
            name=name, guided=self.playground.guided, knob=self.playground.line is not None
        )

    def _hint(self) -> str:
        return str(
            Markup('<p class="cfg-distill note">Press <b>Draw</b>. Both models get the same prompt and seed.</p>')
        )

    def front(self, setting: float | str) -> str:
        """The front, with the setting marked."""
        context = self.playground.front.context(setting)
        if not context["panels"]:
            return ""
        about = self.playground.name_of(setting)
        return self.templates.get_template("demo_front.html.j2").render(context, setting=about)

    def samples(self, prompt: str, setting: float | str, seed: float | None) -> str:
        """Samples of the setting and of the guided base, side by side; what is wrong, where something is."""
        template = self.templates.get_template("demo_samples.html.j2")
        try:
            drawn, remarks = self.playground.draw(prompt.strip(), setting, int(seed or 0))
        except ConfigError as error:
            return template.render(problems=[str(problem) for problem in error.problems])
        return template.render(problems=[], drawn=drawn, remarks=remarks, prompt=prompt.strip())
