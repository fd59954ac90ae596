"""Samples of an engine: against our own loop, with a stand-in for vLLM's server (tests/vllm_stand_in.py)."""

from __future__ import annotations

import copy
import logging
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_adapted, tiny_folder
from vllm_stand_in import StandIn, serving

from cfg_distill.errors import ConfigError
from cfg_distill.generators import AceStep, CausalLM, LoRA, YuE
from cfg_distill.generators.lora import adapter_of
from cfg_distill.sampling import VLLM, Codes, Rollout, Sampling, Seeds, rollout, vllm
from cfg_distill.sampling.engines import room_for

PROMPTS = ["w1 w2", "w3", "w4 w5 w6"]
GREEDY = Sampling(samples=2, max_new_tokens=9, temperature=0)
RANDOM = Sampling(samples=3, max_new_tokens=9)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return tiny_adapted(tiny_folder(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def stand_in(student: CausalLM) -> StandIn:
    return StandIn(student.path)


@pytest.fixture(scope="module")
def url(stand_in: StandIn) -> Iterator[str]:
    with serving(stand_in) as found:
        yield found


def test_greedy_tokens_and_their_log_probabilities_are_those_of_our_own_loop(student: CausalLM, url: str) -> None:
    own = rollout(student, PROMPTS, GREEDY)
    found = VLLM(url=url, patience_seconds=30).rollout(student, PROMPTS, GREEDY)
    same(found, own)
    without = rollout(CausalLM(student.path).load(), PROMPTS, GREEDY)
    assert not torch.equal(without.tokens_BGKT[..., :3], own.tokens_BGKT[..., :3]), "the adapter changes nothing here"


def same(found: Rollout, own: Rollout) -> None:
    assert torch.equal(found.tokens_BGKT, own.tokens_BGKT)
    assert torch.equal(found.mask_BGKT, own.mask_BGKT)
    torch.testing.assert_close(found.log_probs_BGKT, own.log_probs_BGKT, rtol=1e-4, atol=1e-4)


def test_a_sample_depends_on_its_own_keys_alone_and_all_parameters_are_stated(
    student: CausalLM, stand_in: StandIn, url: str
) -> None:
    sampler = VLLM(url=url, patience_seconds=30)
    stand_in.requests.clear()
    whole = sampler.rollout(student, PROMPTS, RANDOM, Seeds((7, 1, 0), range(3)))
    part = sampler.rollout(student, PROMPTS[1:], RANDOM, Seeds((7, 1, 0), range(1, 3)))
    length = part.tokens_BGKT.shape[-1]
    assert torch.equal(whole.tokens_BGKT[1:, ..., :length] * part.mask_BGKT, part.tokens_BGKT * part.mask_BGKT)
    first = stand_in.requests[0]
    assert {
        key: first[key] for key in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "ignore_eos")
    } == {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "ignore_eos": True,
    }
    assert first["stop_token_ids"] == list(student.end_tokens)
    assert len({each["seed"] for each in stand_in.requests[:9]}) == 9
    assert len(stand_in.adapters) == 0, "an adapter stays loaded"
    assert len(set(stand_in.loaded)) == len(stand_in.loaded)


def test_log_probabilities_are_the_students_under_temperature_and_labels(student: CausalLM, url: str) -> None:
    sampling = Sampling(samples=4, max_new_tokens=6, temperature=0.7)
    labels = Codes(values=2, template="{prompt} {label}", words=["w8", "w9"])
    found = VLLM(url=url, patience_seconds=30).rollout(student, PROMPTS, sampling, 3, labels)
    assert found.labels_BG is not None
    asked = labels.asked(PROMPTS, found.labels_BG)
    predicted = student.predictions(asked, found.tokens_NKT, found.mask_NKT).whole()
    own_NKT = sampling.log_probs(predicted).gather(-1, found.tokens_NKT[..., None])[..., 0]
    torch.testing.assert_close(found.log_probs_BGKT.flatten(0, 1), own_NKT * found.mask_NKT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_student_that_broke_has_no_log_probabilities(student: CausalLM, url: str, broken: float) -> None:
    sampler = VLLM(url=url, patience_seconds=30)
    sampler.rollout(student, PROMPTS, GREEDY)
    begun = sampler.begin(student, PROMPTS, GREEDY)
    weight = student.model.base_model.norm.weight
    kept = weight.clone()
    weight.data.fill_(broken)
    try:
        found = begun()
        assert found.log_probs_BGKT[found.mask_BGKT].isnan().all()
    finally:
        weight.data.copy_(kept)


def test_a_rollout_that_was_begun_is_of_the_student_as_it_was(student: CausalLM, url: str) -> None:
    own = rollout(student, PROMPTS, GREEDY)
    begun = VLLM(url=url, max_staleness=1, patience_seconds=30).begin(student, PROMPTS, GREEDY)
    kept = {name: factors.b_OR.clone() for name, factors in adapter_of(student.model).items()}
    with torch.no_grad():
        for factors in adapter_of(student.model).values():
            factors.b_OR.neg_()
    try:
        assert not torch.equal(rollout(student, PROMPTS, GREEDY).tokens_BGKT, own.tokens_BGKT)
        same(begun(), own)
    finally:
        with torch.no_grad():
            for name, factors in adapter_of(student.model).items():
                factors.b_OR.copy_(kept[name])


def test_a_dead_engine_is_one_message_and_the_rollout_goes_on_when_it_is_back(
    student: CausalLM, caplog: pytest.LogCaptureFixture
) -> None:
    own = rollout(student, PROMPTS, GREEDY)
    first = StandIn(student.path)
    with serving(first) as url:
        sampler = VLLM(url=url, patience_seconds=30)
        first.dead_until = time.monotonic() + 0.5
        with caplog.at_level(logging.WARNING):
            same(sampler.rollout(student, PROMPTS, GREEDY), own)
    assert [("waits" in each, "is back" in each) for each in caplog.messages] == [(True, False), (False, True)]
    caplog.clear()
    found: list[Rollout] = []
    with caplog.at_level(logging.WARNING):
        waiting = threading.Thread(target=lambda: found.append(sampler.rollout(student, PROMPTS, GREEDY)))
        waiting.start()
        time.sleep(0.3)
        assert found == []
        with serving(StandIn(student.path), int(url.rpartition(":")[2])):
            waiting.join()
    same(found[0], own)
    assert len(caplog.messages) == 2 and url in caplog.messages[0]
    with pytest.raises(
        ConfigError, match=r"`model.sampler`: The vLLM server at .* did not come back within 0.1 seconds"
    ):
        VLLM(url=url, patience_seconds=0.1).rollout(student, PROMPTS, GREEDY)


def test_an_engine_of_another_model_is_found_out_at_the_first_rollout(student: CausalLM, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / Path(student.path).name, seed=5)
    with serving(StandIn(other)) as url:
        assert VLLM(url=url, patience_seconds=30).problems_with(student, RANDOM) == []
        with pytest.raises(
            ConfigError,
            match=r"expected an engine whose log-probabilities are the student's.*neither quantised nor tuned\.$",
        ):
            VLLM(url=url, patience_seconds=30).rollout(student, PROMPTS, RANDOM)


def test_an_adapter_that_the_server_refuses_ends_the_fit_at_once(student: CausalLM, url: str) -> None:
    large = CausalLM(student.path, lora=LoRA(rank=16)).load()
    with pytest.raises(
        ConfigError,
        match=r"with status 500: .*rank 16 is greater than max_lora_rank 8.* Start it so: .*--max-lora-rank 16",
    ):
        VLLM(url=url, patience_seconds=30).rollout(large, PROMPTS, GREEDY)


def problems(sampler: VLLM, student: CausalLM, sampling: Sampling = RANDOM) -> str:
    return " ".join(str(each) for each in [*sampler.problems(), *sampler.problems_with(student, sampling)])


def test_what_is_wrong_is_said_before_weights_are_loaded(
    student: CausalLM, stand_in: StandIn, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unloaded = CausalLM(student.path, lora=LoRA(rank=2))
    assert problems(VLLM(url=url, patience_seconds=30), unloaded) == ""
    assert "expected 0 or 1" in problems(VLLM(url=url, max_staleness=2), unloaded)
    assert "expected the address" in str(VLLM(url="here").problems()[0])
    (unread,) = VLLM(url=url, options={"max_model_len": 64}).problems()
    assert "expected none under mode server" in str(unread) and "got max_model_len. Give them to `vllm serve`" in str(
        unread
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'not installed: pip install ".[vllm]"' in str(VLLM(mode="colocate").problems()[0])
    monkeypatch.undo()
    gone = problems(VLLM(url="http://127.0.0.1:9"), unloaded)
    assert (
        "does not answer" in gone
        and f"vllm serve {Path(student.path).resolve()} --enable-lora --max-lora-rank 8" in gone
    )
    assert "top_p" in problems(VLLM(url=url, patience_seconds=30), unloaded, Sampling(min_p=0.1, top_p=0.9))
    assert "max-model-len" in problems(VLLM(url=url, patience_seconds=30), unloaded, Sampling(max_new_tokens=64))
    other = CausalLM(tiny_folder(tmp_path / "other"), lora=LoRA(rank=2))
    assert "expected a server of the student's base" in problems(VLLM(url=url, patience_seconds=30), other)
    assert problems(VLLM(url=url, model=stand_in.served), other) == ""
    assert "expected one of" in problems(VLLM(url=url, model="unknown"), unloaded)
    with serving(StandIn(student.path, lora=False)) as plain:
        assert "loads adapters while it runs" in problems(VLLM(url=plain), unloaded)
    renamed = tmp_path / Path(student.path).name
    tiny_folder(renamed)
    text = (renamed / "tokenizer.json").read_text().replace('"w1"', '"v1"')
    (renamed / "tokenizer.json").write_text(text)
    with serving(StandIn(str(renamed))) as wrong:
        assert "expected a server with the tokenizer" in problems(VLLM(url=wrong), unloaded)


@pytest.mark.parametrize("kind", [AceStep, YuE])
def test_a_model_that_forbids_tokens_is_refused(kind: type[CausalLM]) -> None:
    """An engine knows the network alone, and would draw the tokens that the student gives no probability."""
    assert f"but {kind.__name__} forbids some" in problems(VLLM(url="http://localhost:1"), kind("nowhere", lora=LoRA()))


def test_a_server_of_something_else_is_told_with_the_start_of_the_right_one(student: CausalLM, tmp_path: Path) -> None:
    class Files(SimpleHTTPRequestHandler):
        def log_message(self, *words: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        (problem,) = VLLM(url=url).problems_with(CausalLM(student.path, lora=LoRA(rank=2)), GREEDY)
        server.shutdown()
    said = str(problem.under("model.sampler"))
    assert said.startswith("Key `model.sampler.url`: expected a vLLM server") and said.count("model.sampler") == 1
    assert "refuses it with status 404" in said and "Start one so: VLLM_ALLOW" in said
    assert said.split("--max-lora-rank ")[1].startswith("8")  # vLLM takes no less


def test_vllm_has_room_for_some_ranks_alone() -> None:
    assert [room_for(rank) for rank in (1, 8, 9, 16, 48, 512)] == [8, 8, 16, 16, 64, 512]


def test_options_that_the_student_decides_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    sampler = VLLM(mode="colocate", options={"model": "other", "logits_processors": [], "max_model_len": 128})
    assert [each.key for each in sampler.engine.problems()] == ["options.model", "options.logits_processors"]


def test_an_unknown_option_is_a_message(student: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(model: str, **settings: Any) -> None:
        EngineArgs(**{name: value for name, value in settings.items() if name == "enforce_eagre"})

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=engine))
    with pytest.raises(
        ConfigError, match=r"`model.sampler.init_args.options`: expected options of vllm.LLM, but .*eagre"
    ):
        VLLM(mode="colocate", options={"enforce_eagre": True}).engine._engine(student)


@dataclass
class EngineArgs:
    """As vLLM's: unknown words are a TypeError of its constructor."""

    enforce_eager: bool = False


def test_a_server_that_serves_nothing_is_a_problem(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = VLLM(url="http://localhost:1")
    monkeypatch.setattr(sampler.engine, "_ask", lambda path: {"data": []})
    (problem,) = sampler.problems_with(CausalLM(tiny_model, lora=LoRA(rank=2)), GREEDY)
    assert "serves none. Start it so: " in str(problem)


# All weights are trained


@pytest.fixture(scope="module")
def whole(student: CausalLM) -> CausalLM:
    """All weights of the same base, moved away from it."""
    return moved(CausalLM(student.path).load(), 1)


@torch.no_grad()
def moved(student: CausalLM, seed: int) -> CausalLM:
    torch.manual_seed(seed)
    for parameter in student.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return student


def test_whole_weights_reach_the_server_before_every_rollout(student: CausalLM, whole: CausalLM) -> None:
    stand_in = StandIn(student.path, lora=False, development=True)
    with serving(stand_in) as url:
        sampler = VLLM(url=url, patience_seconds=30)
        assert problems(sampler, CausalLM(student.path)) == ""
        found = sampler.rollout(whole, PROMPTS, GREEDY)
        own = rollout(whole, PROMPTS, GREEDY)
        same(found, own)
        assert not torch.equal(own.tokens_BGKT, rollout(CausalLM(student.path).load(), PROMPTS, GREEDY).tokens_BGKT)
        again = moved(CausalLM(student.path).load(), 2)
        same(sampler.rollout(again, PROMPTS, GREEDY), rollout(again, PROMPTS, GREEDY))
        same(sampler.rollout(whole, PROMPTS, GREEDY), own)
        assert len(stand_in.loaded) == 4, "the proof that all weights arrive, and three rollouts"
        assert sampler._home is not None and not list(sampler._home.iterdir()), "weights stay on the disk"


def test_a_rollout_of_whole_weights_that_was_begun_is_scored_by_the_student_as_it_was(student: CausalLM) -> None:
    moving = moved(CausalLM(student.path).load(), 3)
    parameters, before = list(moving.parameters()), copy.deepcopy(moving)
    with serving(StandIn(student.path, development=True)) as url:
        begun = VLLM(url=url, max_staleness=1, patience_seconds=30).begin(moving, PROMPTS, RANDOM)
        moved(moving, 4)
        after = copy.deepcopy(moving)
        found = begun()
    own_NKT = log_probs(before, found)
    torch.testing.assert_close(found.log_probs_NKT, own_NKT, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(log_probs(after, found), own_NKT, atol=0.1), "the weights hardly moved"
    torch.testing.assert_close(log_probs(moving, found), log_probs(after, found))
    assert all(now is then for now, then in zip(moving.parameters(), parameters, strict=True))


@torch.no_grad()
def log_probs(student: CausalLM, drawn: Rollout) -> torch.Tensor:
    predicted = student.predictions(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT).whole()
    return RANDOM.log_probs(predicted).gather(-1, drawn.tokens_NKT[..., None])[..., 0] * drawn.mask_NKT


def test_whole_weights_that_another_fit_has_replaced_are_found_out(student: CausalLM, whole: CausalLM) -> None:
    stand_in = StandIn(student.path, development=True)
    with serving(stand_in) as url:
        sampler = VLLM(url=url, patience_seconds=30)
        sampler.rollout(whole, PROMPTS, RANDOM)
        answer = stand_in._reload
        stand_in._reload = lambda body: (answer(body), setattr(stand_in, "model", student.model))[0]  # type: ignore[method-assign]
        with pytest.raises(ConfigError, match=r"neither quantised nor tuned. Let no other fit use the engine"):
            sampler.rollout(whole, PROMPTS, RANDOM)


def test_what_an_engine_of_whole_weights_needs_is_said_before_a_fit(student: CausalLM) -> None:
    unloaded = CausalLM(student.path)
    with serving(StandIn(student.path)) as plain:
        said = problems(VLLM(url=plain), unloaded)
    assert "loads weights while it runs" in said
    assert f"Start it so: VLLM_SERVER_DEV_MODE=1 vllm serve {Path(student.path).resolve()}" in said
    adapted = CausalLM(student.path, lora=LoRA(rank=2))
    server, process = VLLM(url="http://localhost:1"), VLLM(mode="colocate")
    assert server.problems_in(1, unloaded) == server.problems_in(2, adapted) == process.problems_in(1, unloaded) == []
    assert "expected a LoRA student in 2 processes" in str(server.problems_in(2, unloaded)[0])
    assert "got colocate in 2" in str(process.problems_in(2, adapted)[0])


def test_an_engine_that_keeps_some_of_its_weights_is_found_out_before_the_first_samples(
    student: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM 0.32 does on a CPU with the head of a model whose head is its embedding."""
    monkeypatch.setattr(vllm, "NUDGE", 2.0)  # the logits of a tiny random model hardly move otherwise
    stand_in = StandIn(student.path, development=True)
    answer, head = stand_in._reload, stand_in.model.lm_head.weight

    def keeping(body: dict[str, Any]) -> tuple[int, Any]:
        answered = answer(body)
        stand_in.model.lm_head.weight = head
        return answered

    stand_in._reload = keeping  # type: ignore[method-assign]
    with serving(stand_in) as url, pytest.raises(ConfigError, match=r"vLLM 0.32 keeps the old head"):
        VLLM(url=url, patience_seconds=30).rollout(CausalLM(student.path).load(), PROMPTS, RANDOM)
